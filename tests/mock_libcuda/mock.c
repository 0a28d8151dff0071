// SPDX-License-Identifier: Apache-2.0
/* A stand-in for libcuda.so.1 that logs every call to stderr and succeeds: shows what a host layer asks of the driver,
 * without a GPU. It plays one GPU of 132 multiprocessors, an H100 (compute capability 9.0) or what MOCK_CAPABILITY
 * says, 100 for 10.0, with the shared memory that such a GPU has. Device memory is never touched, but the last copy to
 * it is kept. With MOCK_QUIET in the environment it logs nothing and counts launches instead, so that the time of a
 * call is the host's own. Two families of kernels compute the same, or, with MOCK_DIFFERENCE, what compares them finds
 * this byte everywhere. MOCK_CAPTURING sets mock_capturing. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void* current_context;
static uint64_t next_address = 0x10000000;

static int quiet, difference;
static uint64_t launches;

/* For a program that looks these up. The first group it sets:
 *   capturing    every stream of the caller's is being captured, in the strictest mode
 *   failing      the name of a call that fails
 *   calls_left   so many more calls succeed, then one fails; negative: none fails
 *   read_byte    what device memory is full of
 *   generation   streams die when it grows, and new ones get their handles */
int mock_capturing;
const char* mock_failing;
int mock_calls_left = -1;
int mock_read_byte;
int mock_generation;
/* How often was a stream waited for? How many captures were broken? What memory is allocated, in all, in how many
 * pieces, and what was the largest? What was last copied to the device, and where? What was launched last; where is the
 * workspace of the last routing, the first word of its parameters; how often were weights written; and how often did a
 * forward of few tokens begin that does not follow the end of another? */
int mock_waits;
int mock_broken_captures;
uint64_t mock_bytes, mock_pieces, mock_largest;
const char* mock_launched = "";
uint64_t mock_workspace;
int mock_prepares;
int mock_interleaved;
uint64_t mock_copied_to;
unsigned char mock_copied[64];
/* Host memory that kernels may write, as the last call for some got it. */
void* mock_mapped;

static struct {
  uint64_t address, bytes;
} pieces[4096];
static _Thread_local int relaxed;

__attribute__((constructor)) static void read_environment(void) {
  quiet = getenv("MOCK_QUIET") != NULL;
  difference = getenv("MOCK_DIFFERENCE") ? atoi(getenv("MOCK_DIFFERENCE")) : 0;
  mock_capturing = getenv("MOCK_CAPTURING") ? atoi(getenv("MOCK_CAPTURING")) : 0;
}

uint64_t mock_launches(void) { return launches; }

static int outcome(const char* name) {
  if (strcmp(name, "cuStreamSynchronize") == 0 || strcmp(name, "cuCtxSynchronize") == 0) mock_waits++;
  if (mock_calls_left >= 0 && mock_calls_left-- == 0) return 2;
  return mock_failing != NULL && strcmp(name, mock_failing) == 0 ? 2 : 0; /* 2: out of memory */
}

static int ok(const char* name) {
  if (!quiet) fprintf(stderr, "call %s\n", name);
  return outcome(name);
}

/* A call that a capture in the strictest mode forbids to all threads. */
static int unsafe(const char* name) {
  if (!mock_capturing || relaxed) return ok(name);
  ok(name);
  mock_broken_captures++;
  return 900; /* not permitted while a stream is capturing */
}

/* Calls of which nothing but their order matters. */
#define PLAIN(name) \
  int name(void) { return ok(#name); }
PLAIN(cuInit)
PLAIN(cuDevicePrimaryCtxRelease_v2)
PLAIN(cuModuleUnload)
PLAIN(cuFuncLoad)
PLAIN(cuMemcpyDtoDAsync_v2)
PLAIN(cuMemsetD8Async)
PLAIN(cuStreamWaitEvent)

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ok("cuDeviceGet");
}

static int capability(void) {
  const char* text = getenv("MOCK_CAPABILITY");
  return text ? atoi(text) : 90;
}

/* Shared memory that a block may opt in for. Source: CUDA C++ Programming Guide, technical specifications. */
static int most_shared_bytes(void) {
  const int both = capability();
  return both == 86 || both == 89 || both >= 120 ? 101376 : both < 90 ? 166912 : 232448;
}

/* Shared memory that a kernel has without being launched with any. */
static int fixed_shared_bytes(const char* function) { return strcmp(function, "route_cluster") == 0 ? 1024 : 0; }

int cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = attribute == 1 ? fixed_shared_bytes(function) : 0;
  return ok("cuFuncGetAttribute");
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  const int most = most_shared_bytes() - fixed_shared_bytes(function);
  if (attribute == 8 && value > most) return 1; /* 8: dynamic shared memory; 1: invalid value */
  return ok("cuFuncSetAttribute");
}

int cuOccupancyMaxActiveClusters(int* clusters, void* function, const void* config) {
  (void)function, (void)config;
  *clusters = 66;
  return ok("cuOccupancyMaxActiveClusters");
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  const int both = capability(), shared = most_shared_bytes();
  /* 16: multiprocessors; 97: shared memory that a block may opt in for */
  *value = attribute == 75   ? both / 10
           : attribute == 76 ? both % 10
           : attribute == 16 ? 132
           : attribute == 97 ? shared
                             : 1;
  return ok("cuDeviceGetAttribute");
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  (void)device;
  *context = (void*)0xC0;
  return ok("cuDevicePrimaryCtxRetain");
}

int cuCtxGetCurrent(void** context) {
  *context = current_context;
  return ok("cuCtxGetCurrent");
}

int cuCtxSetCurrent(void* context) {
  current_context = context;
  return ok("cuCtxSetCurrent");
}

int cuModuleLoadData(void** module, const void* image) {
  (void)image;
  *module = (void*)0xD0;
  return ok("cuModuleLoadData");
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  (void)module;
  *function = strdup(name); /* a handle that launches can name; modules are never unloaded */
  return ok("cuModuleGetFunction");
}

static int begins_with(const char* name, const char* start) { return strncmp(name, start, strlen(start)) == 0; }

/* Do the routing parameters, of a forward's first launch, come first? */
static int routes(const char* kernel) { return begins_with(kernel, "route_") || begins_with(kernel, "few_"); }

static int ends_forward(const char* kernel) { return begins_with(kernel, "combine") || begins_with(kernel, "few_"); }

/* Does a launch have this CUlaunchAttributeID? The last two members of the configuration are its attributes, of 72
 * bytes each, and their count. */
static int has_attribute(const void* config, int id) {
  const char* const attributes = *(const char* const*)((const char*)config + 40);
  const uint32_t count = *(const uint32_t*)((const char*)config + 48);
  for (uint32_t i = 0; i < count; ++i)
    if (*(const int*)(attributes + 72 * i) == id) return 1;
  return 0;
}

/* One more argument follows, of which nothing is read. */
int cuLaunchKernelEx(const void* config, void* function, void** params) {
  ++launches;
  const int begins = strcmp(function, "route_small") == 0 || begins_with(function, "few_");
  mock_interleaved += begins && !ends_forward(mock_launched);
  mock_launched = function;
  mock_prepares += strncmp(function, "prepare_", 8) == 0;
  if (routes(function)) memcpy(&mock_workspace, params[0], sizeof mock_workspace);
  if (*(const int*)((const char*)config + 24) > most_shared_bytes()) return 1;
  if (quiet) return outcome("cuLaunchKernelEx");
  const int together = has_attribute(config, 2), overlaps = has_attribute(config, 6);
  fprintf(stderr, "call cuLaunchKernelEx %s%s%s\n", (const char*)function, together ? " together" : "",
          overlaps ? " overlapping" : "");
  return outcome("cuLaunchKernelEx");
}

#define OWN_STREAM 0xE0

int cuStreamIsCapturing(void* stream, int* status) {
  *status = stream == (void*)OWN_STREAM ? 0 : mock_capturing;
  return ok("cuStreamIsCapturing");
}

int cuCtxSynchronize(void) { return unsafe("cuCtxSynchronize"); }

int cuStreamSynchronize(void) { return unsafe("cuStreamSynchronize"); }

int cuStreamGetId(void* stream, unsigned long long* id) {
  if (mock_capturing) return 900; /* CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, as an H200's driver */
  *id = (unsigned long long)mock_generation << 56 | (uintptr_t)stream >> 32;
  return ok("cuStreamGetId");
}

int cuStreamCreate(void** stream, unsigned flags) {
  *stream = (void*)OWN_STREAM;
  if (flags != 1) abort(); /* 1: the default stream does not wait for it */
  return unsafe("cuStreamCreate");
}

int cuThreadExchangeStreamCaptureMode(int* mode) {
  const int before = relaxed ? 2 : 0;
  relaxed = *mode == 2;
  *mode = before;
  return outcome("cuThreadExchangeStreamCaptureMode");
}

static size_t place_of(uint64_t address) {
  for (size_t i = 0; i < sizeof pieces / sizeof *pieces; ++i) {
    if (pieces[i].address == address) return i;
  }
  fprintf(stderr, "no memory at %llx\n", (unsigned long long)address);
  abort();
}

int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  const int status = unsafe("cuMemAlloc_v2");
  if (status != 0) return status;
  const size_t place = place_of(0);
  pieces[place].address = *address = next_address;
  pieces[place].bytes = bytes;
  mock_bytes += bytes;
  if (bytes > mock_largest) mock_largest = bytes;
  mock_pieces++;
  next_address += (bytes + 511) / 256 * 256;
  return 0;
}

int cuMemHostAlloc(void** host, size_t bytes, unsigned flags) {
  if (flags != 2) abort(); /* 2: mapped, so that kernels reach it */
  *host = mock_mapped = calloc(1, bytes);
  return unsafe("cuMemHostAlloc");
}

int cuMemHostGetDevicePointer_v2(uint64_t* device, void* host, unsigned flags) {
  (void)flags;
  *device = (uintptr_t)host;
  return ok("cuMemHostGetDevicePointer_v2");
}

int cuMemFree_v2(uint64_t address) {
  const int status = unsafe("cuMemFree_v2");
  if (status != 0) return status;
  const size_t place = place_of(address);
  mock_bytes -= pieces[place].bytes;
  mock_pieces--;
  pieces[place].address = 0;
  return 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t device, const void* host, size_t bytes, void* stream) {
  (void)stream;
  mock_copied_to = device;
  memcpy(mock_copied, host, bytes < sizeof mock_copied ? bytes : sizeof mock_copied);
  return unsafe("cuMemcpyHtoDAsync_v2");
}

int cuMemcpyDtoHAsync_v2(void* host, uint64_t device, size_t bytes, void* stream) {
  (void)device, (void)stream;
  const int is_found = bytes == 8 && strcmp(mock_launched, "compare_values") == 0; /* Differences of kernels/params.h */
  memset(host, is_found ? difference : mock_read_byte, bytes);
  return ok("cuMemcpyDtoHAsync_v2");
}

int cuGetErrorString(int error, const char** text) {
  (void)error;
  *text = "stand-in";
  return 0;
}
