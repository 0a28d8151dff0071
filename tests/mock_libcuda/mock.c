// SPDX-License-Identifier: Apache-2.0
/* A stand-in for libcuda.so.1 that logs every call to stderr and succeeds: shows what a host layer asks of the driver,
 * without a GPU. It plays one GPU of 132 multiprocessors, an H100 (compute capability 9.0) or what MOCK_CAPABILITY
 * says, 100 for 10.0. Device memory is never touched. With MOCK_QUIET in the environment it logs nothing and counts
 * launches instead, so that the time of a call is the host's own. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *current_context;
static uint64_t next_address = 0x10000000;

static int quiet;
static uint64_t launches;

/* For a program that looks these up: is every stream being captured? which call fails? how often was one waited for? */
int mock_capturing;
const char *mock_failing;
int mock_waits;

__attribute__((constructor)) static void read_environment(void) { quiet = getenv("MOCK_QUIET") != NULL; }

uint64_t mock_launches(void) { return launches; }

static int outcome(const char *name) {
  if (strcmp(name, "cuStreamSynchronize") == 0 || strcmp(name, "cuCtxSynchronize") == 0) mock_waits++;
  return mock_failing != NULL && strcmp(name, mock_failing) == 0 ? 2 : 0; /* 2: out of memory */
}

static int ok(const char *name) {
  if (!quiet) fprintf(stderr, "call %s\n", name);
  return outcome(name);
}

/* Calls of which nothing but their order matters. */
#define PLAIN(name) \
  int name(void) { return ok(#name); }
PLAIN(cuInit)
PLAIN(cuDevicePrimaryCtxRelease_v2)
PLAIN(cuCtxSynchronize)
PLAIN(cuModuleUnload)
PLAIN(cuFuncLoad)
PLAIN(cuFuncSetAttribute)
PLAIN(cuStreamSynchronize)
PLAIN(cuMemFree_v2)
PLAIN(cuMemcpyHtoDAsync_v2)
PLAIN(cuMemcpyDtoDAsync_v2)

int cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return ok("cuDeviceGet");
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  const char *capability = getenv("MOCK_CAPABILITY");
  const int both = capability ? atoi(capability) : 90;
  *value = attribute == 75 ? both / 10 : attribute == 76 ? both % 10 : attribute == 16 ? 132 : 1; /* 16: processors */
  return ok("cuDeviceGetAttribute");
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
  (void)device;
  *context = (void *)0xC0;
  return ok("cuDevicePrimaryCtxRetain");
}

int cuCtxGetCurrent(void **context) {
  *context = current_context;
  return ok("cuCtxGetCurrent");
}

int cuCtxSetCurrent(void *context) {
  current_context = context;
  return ok("cuCtxSetCurrent");
}

int cuModuleLoadData(void **module, const void *image) {
  (void)image;
  *module = (void *)0xD0;
  return ok("cuModuleLoadData");
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
  (void)module;
  *function = strdup(name); /* a handle that launches can name; modules are never unloaded */
  return ok("cuModuleGetFunction");
}

/* More arguments follow, of which nothing is read. The last member of the configuration counts its attributes. */
int cuLaunchKernelEx(const void *config, void *function) {
  ++launches;
  if (quiet) return outcome("cuLaunchKernelEx");
  const int overlaps = *(const uint32_t *)((const char *)config + 48) > 0;
  fprintf(stderr, "call cuLaunchKernelEx %s%s\n", (const char *)function, overlaps ? " overlapping" : "");
  return outcome("cuLaunchKernelEx");
}

int cuStreamIsCapturing(void *stream, int *status) {
  (void)stream;
  *status = mock_capturing;
  return ok("cuStreamIsCapturing");
}

int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
  *address = next_address;
  next_address += (bytes + 511) / 256 * 256;
  return ok("cuMemAlloc_v2");
}

int cuMemcpyDtoHAsync_v2(void *host, uint64_t device, size_t bytes, void *stream) {
  (void)device, (void)stream;
  memset(host, 0, bytes);
  return ok("cuMemcpyDtoHAsync_v2");
}

int cuGetErrorString(int error, const char **text) {
  (void)error;
  *text = "stand-in";
  return ok("cuGetErrorString");
}
