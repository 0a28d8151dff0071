// SPDX-License-Identifier: Apache-2.0
// libcuda.so.1 of a machine without a GPU, beside runtime.cpp: what run-time compilers ask of a driver. Modules and
// functions are handles to nothing, and launches do nothing.

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr size_t TOTAL_BYTES = 150109880320;

template <typename Function>
Function* of_runtime(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

int make(void** handle) { return (*handle = calloc(1, 64)) ? 0 : 2; }

}  // namespace

EXPORT int cuInit(unsigned) { return 0; }
EXPORT int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
EXPORT int cuDeviceGet(int* device, int) { return *device = 0; }
EXPORT int cuDeviceGetCount(int* count) { return *count = 1, 0; }
EXPORT int cuDeviceGetName(char* name, int size, int) { return snprintf(name, size, "NVIDIA absent"), 0; }
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = TOTAL_BYTES, 0; }
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
  auto answer = of_runtime<int(int)>("absent_attribute");
  return *value = answer ? answer(attribute) : 0, 0;
}
EXPORT int cuCtxGetCurrent(void** context) {
  static char only[64];
  return *context = only, 0;
}
EXPORT int cuCtxGetDevice(int* device) { return *device = 0; }
EXPORT int cuDevicePrimaryCtxRetain(void** context, int) { return cuCtxGetCurrent(context); }
EXPORT int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { return *flags = 0, *active = 1, 0; }
EXPORT int cuGetErrorString(int, const char** text) { return *text = "an error of no GPU", 0; }
EXPORT int cuGetErrorName(int, const char** text) { return *text = "an error of no GPU", 0; }

EXPORT int cuMemAlloc_v2(void** address, size_t bytes) {
  return of_runtime<int(void**, size_t)>("absent_take")(address, bytes);
}
EXPORT int cuMemGetAllocationGranularity(size_t* bytes, const void*, int) { return *bytes = 2 << 20, 0; }
EXPORT int cuMemHostAlloc(void** address, size_t bytes, unsigned) { return (*address = calloc(1, bytes)) ? 0 : 2; }
EXPORT int cuMemHostGetDevicePointer_v2(void** device, void* host, unsigned) { return *device = host, 0; }
EXPORT int cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, void*) { return memcpy(to, from, bytes), 0; }
EXPORT int cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, void*) { return memcpy(to, from, bytes), 0; }
EXPORT int cuPointerGetAttribute(void* value, int attribute, unsigned long long address) {
  enum { MEMORY_TYPE = 2, DEVICE_POINTER = 3, HOST_POINTER = 4, ORDINAL = 9, RANGE_START = 11, RANGE_SIZE = 12 };
  switch (attribute) {
    case MEMORY_TYPE: return *static_cast<int*>(value) = 2, 0;  // on the device
    case ORDINAL: return *static_cast<int*>(value) = 0;
    case DEVICE_POINTER:
    case HOST_POINTER:
    case RANGE_START: return *static_cast<unsigned long long*>(value) = address, 0;
    case RANGE_SIZE: return *static_cast<size_t*>(value) = TOTAL_BYTES, 0;
    default: return *static_cast<unsigned long long*>(value) = 0, 0;
  }
}

EXPORT int cuStreamCreate(void** made, unsigned) { return make(made); }
EXPORT int cuEventCreate(void** made, unsigned) { return make(made); }
EXPORT int cuStreamIsCapturing(void*, int* status) {
  auto answer = of_runtime<int()>("absent_is_capturing");
  return *status = answer ? answer() : 0, 0;
}

EXPORT int cuModuleLoad(void** made, const char*) { return make(made); }
EXPORT int cuModuleLoadData(void** made, const void*) { return make(made); }
EXPORT int cuModuleLoadDataEx(void** made, const void*, unsigned, void*, void*) { return make(made); }
EXPORT int cuModuleGetFunction(void** made, void*, const char*) { return make(made); }
EXPORT int cuModuleGetGlobal_v2(void** address, size_t* bytes, void*, const char*) {
  if (bytes) *bytes = 1 << 20;
  return address ? cuMemAlloc_v2(address, 1 << 20) : 0;
}
EXPORT int cuLibraryLoadData(void** made, const void*, void*, void*, unsigned, void*, void*, unsigned) {
  return make(made);
}
EXPORT int cuLibraryLoadFromFile(void** made, const char*, void*, void*, unsigned, void*, void*, unsigned) {
  return make(made);
}
EXPORT int cuLibraryGetKernelCount(unsigned* count, void*) { return *count = 1, 0; }
EXPORT int cuLibraryEnumerateKernels(void** made, unsigned, void*) { return make(made); }
EXPORT int cuLibraryGetKernel(void** made, void*, const char*) { return make(made); }
EXPORT int cuKernelGetFunction(void** function, void* kernel) { return *function = kernel, 0; }
EXPORT int cuFuncGetAttribute(int* value, int attribute, void*) {
  enum { MAX_THREADS = 0, REGISTERS = 4, PTX_VERSION = 5, BINARY_VERSION = 6 };
  bool is_version = attribute == PTX_VERSION || attribute == BINARY_VERSION;
  *value = attribute == MAX_THREADS ? 1024 : attribute == REGISTERS ? 32 : is_version ? 90 : 0;
  return 0;
}
EXPORT int cuOccupancyMaxActiveClusters(int* count, void*, const void*) { return *count = 66, 0; }
EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* count, void*, int, size_t) { return *count = 1, 0; }

EXPORT int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* result) {
  char with_suffix[256];
  *function = nullptr;
  for (const char* suffix : {"_v3", "_v2", ""}) {
    snprintf(with_suffix, sizeof with_suffix, "%s%s", name, suffix);
    static void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    if ((*function = dlsym(self, with_suffix))) break;
  }
  if (result) *result = *function ? 0 : 1;
  return *function ? 0 : 500;  // not found
}
