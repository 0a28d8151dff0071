// SPDX-License-Identifier: Apache-2.0
// The CUDA runtime of a machine without a GPU, preloaded: so that a program runs its whole course, and compiles every
// kernel that it would compile. Device memory is host memory that nobody touches, and kernels do nothing.
//
// Functions that are not here return success and leave their results alone (absent.py makes them).

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <map>
#include <mutex>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr size_t TOTAL_BYTES = 150109880320;
constexpr size_t PAGE = 2 << 20;
// Larger copies and fills within the device are left out: what they would move is never read.
constexpr size_t MOST_TOUCHED = 1 << 20;

std::mutex lock;
std::map<char*, size_t> regions;
size_t used_bytes = 0;
cudaStream_t capturing = nullptr;
unsigned long long captures = 0;

// Address space only: no memory until it is written.
cudaError_t take(void** address, size_t bytes) {
  bytes = (std::max<size_t>(bytes, 1) + PAGE - 1) / PAGE * PAGE;
  std::lock_guard guard(lock);
  if (used_bytes + bytes > TOTAL_BYTES) return cudaErrorMemoryAllocation;
  void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return cudaErrorMemoryAllocation;
  regions[static_cast<char*>(found)] = bytes;
  used_bytes += bytes;
  *address = found;
  return cudaSuccess;
}

cudaError_t give_back(void* address) {
  std::lock_guard guard(lock);
  auto region = regions.find(static_cast<char*>(address));
  if (region != regions.end()) {
    munmap(region->first, region->second);
    used_bytes -= region->second;
    regions.erase(region);
  }
  return cudaSuccess;
}

bool on_device(const void* address) {
  std::lock_guard guard(lock);
  auto next = regions.upper_bound(static_cast<char*>(const_cast<void*>(address)));
  if (next == regions.begin()) return false;
  auto region = std::prev(next);
  return address < region->first + region->second;
}

cudaError_t copy(void* to, const void* from, size_t bytes) {
  if (bytes <= MOST_TOUCHED || !on_device(to) || !on_device(from)) memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t fill(void* to, int value, size_t bytes) {
  if (bytes <= MOST_TOUCHED) memset(to, value, bytes);
  return cudaSuccess;
}

// A handle that nobody looks into.
template <typename Handle>
auto make(Handle* handle) {
  *handle = static_cast<Handle>(calloc(1, 64));
  return cudaSuccess;
}

cudaError_t status(cudaStreamCaptureStatus* found) {
  *found = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

}  // namespace

// What an H200 answers; by the driver's numbers, which are the runtime's.
EXPORT int absent_attribute(int attribute) {
  static const std::map<int, int> answers = {
      {1, 1024},      {2, 1024},  {3, 1024},   {4, 64},       {5, 2147483647}, {6, 65535},   {7, 65535},    {8, 49152},
      {9, 65536},     {10, 32},   {12, 65536}, {13, 1980000}, {16, 132},       {31, 1},      {36, 3201000}, {37, 6144},
      {38, 62914560}, {39, 2048}, {40, 3},     {41, 1},       {75, 9},         {81, 233472}, {82, 65536},   {95, 1},
      {97, 232448},   {98, 1},    {99, 1},     {102, 1},      {106, 32},       {111, 1024},  {115, 1},      {120, 1},
  };
  auto found = answers.find(attribute);
  return found == answers.end() ? 0 : found->second;
}
EXPORT int absent_take(void** address, size_t bytes) { return take(address, bytes); }
EXPORT int absent_is_capturing() { return capturing != nullptr; }

// ---- The device -----------------------------------------------------------------------------------------------------

EXPORT cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
EXPORT cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
EXPORT cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
EXPORT cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  return *value = absent_attribute(attribute), cudaSuccess;
}
EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) {
  *found = {};
  strcpy(found->name, "NVIDIA absent");
  found->totalGlobalMem = TOTAL_BYTES;
  found->major = absent_attribute(75);
  found->multiProcessorCount = absent_attribute(16);
  found->warpSize = absent_attribute(10);
  found->maxThreadsPerBlock = absent_attribute(1);
  found->maxThreadsPerMultiProcessor = absent_attribute(39);
  found->regsPerBlock = found->regsPerMultiprocessor = absent_attribute(82);
  found->sharedMemPerBlock = absent_attribute(8);
  found->sharedMemPerBlockOptin = absent_attribute(97);
  found->sharedMemPerMultiprocessor = absent_attribute(81);
  found->reservedSharedMemPerBlock = absent_attribute(111);
  found->l2CacheSize = absent_attribute(38);
  for (int axis = 0; axis < 3; ++axis) {
    found->maxThreadsDim[axis] = absent_attribute(2 + axis);
    found->maxGridSize[axis] = absent_attribute(5 + axis);
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  std::lock_guard guard(lock);
  *total = TOTAL_BYTES;
  *free = TOTAL_BYTES - used_bytes;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int) {
  return snprintf(id, size, "0000:00:00.0"), cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}
EXPORT const char* cudaGetErrorString(cudaError_t error) { return error ? "an error of no GPU" : "no error"; }
EXPORT const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }

// ---- Memory ---------------------------------------------------------------------------------------------------------

EXPORT cudaError_t cudaMalloc(void** address, size_t bytes) { return take(address, bytes); }
EXPORT cudaError_t cudaMallocAsync(void** address, size_t bytes, cudaStream_t) { return take(address, bytes); }
EXPORT cudaError_t cudaFree(void* address) { return give_back(address); }
EXPORT cudaError_t cudaFreeAsync(void* address, cudaStream_t) { return give_back(address); }
EXPORT cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
  return (*address = calloc(1, bytes)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
EXPORT cudaError_t cudaFreeHost(void* address) { return free(address), cudaSuccess; }
EXPORT cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) { return *device = host, cudaSuccess; }
EXPORT cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return copy(to, from, bytes);
}
EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return copy(to, from, bytes);
}
EXPORT cudaError_t cudaMemset(void* to, int value, size_t bytes) { return fill(to, value, bytes); }
EXPORT cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) { return fill(to, value, bytes); }
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* address) {
  *found = {};
  found->type = on_device(address) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  found->devicePointer = found->hostPointer = const_cast<void*>(address);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetSymbolAddress(void** address, const void*) { return take(address, PAGE); }
EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  return make(reinterpret_cast<void**>(pool));
}
EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  return *static_cast<unsigned long long*>(value) = 0, cudaSuccess;
}

// ---- Streams, graphs, events ----------------------------------------------------------------------------------------

EXPORT cudaError_t cudaStreamCreate(cudaStream_t* made) { return make(reinterpret_cast<void**>(made)); }
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* made, unsigned) { return cudaStreamCreate(made); }
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* made, unsigned, int) { return cudaStreamCreate(made); }
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return capturing = stream, ++captures, cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  return capturing = nullptr, make(reinterpret_cast<void**>(graph));
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* found) { return status(found); }
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* found, unsigned long long* id,
                                            cudaGraph_t* graph, const cudaGraphNode_t** nodes,
                                            const cudaGraphEdgeData** edges, size_t* count) {
  if (id) *id = captures;
  if (graph) *graph = nullptr;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return status(found);
}
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t, unsigned long long) {
  return make(reinterpret_cast<void**>(made));
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t, unsigned long long) {
  return make(reinterpret_cast<void**>(made));
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) { return *count = 1, cudaSuccess; }
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* made) { return make(reinterpret_cast<void**>(made)); }
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* made, unsigned) { return cudaEventCreate(made); }
EXPORT cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { return *ms = 1, cudaSuccess; }

// ---- Kernels --------------------------------------------------------------------------------------------------------

EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  *found = {};
  found->maxThreadsPerBlock = absent_attribute(1);
  found->numRegs = 32;
  found->binaryVersion = found->ptxVersion = 90;
  found->maxDynamicSharedSizeBytes = absent_attribute(97);
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* count, const void*, int, size_t) {
  return *count = 1, cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* count, const void*, int, size_t,
                                                                          unsigned) {
  return *count = 1, cudaSuccess;
}
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  static void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  char with_suffix[256];
  *function = nullptr;
  for (const char* suffix : {"_v3", "_v2", ""}) {
    snprintf(with_suffix, sizeof with_suffix, "%s%s", name, suffix);
    if ((*function = dlsym(driver, with_suffix))) break;
  }
  if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
EXPORT void** __cudaRegisterFatBinary(void*) { return static_cast<void**>(calloc(1, 64)); }
EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = *block = dim3(1);
  *shared = 0;
  *static_cast<void**>(stream) = nullptr;
  return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(const void** kernel, const void* function) {
  return *kernel = function, cudaSuccess;
}

// ---- cuBLAS ---------------------------------------------------------------------------------------------------------

EXPORT int cublasCreate_v2(void** made) { return make(made); }
EXPORT int cublasLtCreate(void** made) { return make(made); }
EXPORT int cublasLtMatmulDescCreate(void** made, int, int) { return make(made); }
EXPORT int cublasLtMatrixLayoutCreate(void** made, int, unsigned long long, unsigned long long, long long) {
  return make(made);
}
EXPORT int cublasLtMatmulPreferenceCreate(void** made) { return make(made); }
EXPORT size_t cublasLtGetVersion() { return 130100; }
EXPORT int cublasGetMathMode(void*, int* mode) { return *mode = 0; }
EXPORT int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0; }
EXPORT const char* cublasGetStatusString(int) { return "an error of no GPU"; }
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* algorithm,
                                          int* count) {
  memset(algorithm, 0, 64);
  return *count = 1, 0;
}
