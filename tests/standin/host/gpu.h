// SPDX-License-Identifier: Apache-2.0
// What a test program needs of the CUDA driver and of the format. Run with driver/ preloaded and STANDIN_CALLERS naming
// the program: the stand-in's modes come from the environment, and its errors end the process.
#pragma once
#include <cuda.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace standin {

// A function of the driver's, found when it is first asked for.
#define DRIVER_OF(name)                                                                  \
  ([] {                                                                                  \
    static void* const library = dlopen("libcuda.so.1", RTLD_NOW);                       \
    static auto* const found = reinterpret_cast<decltype(&name)>(dlsym(library, #name)); \
    return found;                                                                        \
  }())
#define CU(name, ...) standin::must(DRIVER_OF(name)(__VA_ARGS__), #name)

inline void must(CUresult result, const char* call) {
  if (result == CUDA_SUCCESS) return;
  printf("%s: error %d\n", call, static_cast<int>(result));
  exit(1);
}

inline void open_device() {
  CUdevice device;
  CUcontext context;
  CU(cuInit, 0);
  CU(cuDeviceGet, &device, 0);
  CU(cuDevicePrimaryCtxRetain, &context, device);
  CU(cuCtxSetCurrent, context);
}

template <class T>
struct Buffer {
  CUdeviceptr address = 0;
  size_t count = 0;

  explicit Buffer(size_t n, int fill = 0xFF) : count(n) {
    CU(cuMemAlloc, &address, n * sizeof(T) + 1024);
    CU(cuMemsetD8, address, static_cast<unsigned char>(fill), n * sizeof(T));
  }
  explicit Buffer(const std::vector<T>& v) : Buffer(v.size()) {
    if (count) CU(cuMemcpyHtoD, address, v.data(), count * sizeof(T));
  }
  ~Buffer() { DRIVER_OF(cuMemFree)(address); }
  Buffer(const Buffer&) = delete;
  T* get() const { return reinterpret_cast<T*>(address); }
  std::vector<T> host() const {
    std::vector<T> v(count);
    CU(cuMemcpyDtoH, v.data(), address, count * sizeof(T));
    return v;
  }
};

inline CUmodule load_module(const std::string& path) {
  FILE* file = fopen(path.c_str(), "rb");
  if (!file) {
    printf("%s cannot be read\n", path.c_str());
    exit(1);
  }
  std::vector<char> image;
  char part[65536];
  for (size_t n; (n = fread(part, 1, sizeof part, file)) > 0;) image.insert(image.end(), part, part + n);
  fclose(file);
  CUmodule module;
  CU(cuModuleLoadData, &module, image.data());
  return module;
}

struct Grid {
  unsigned x, y, z;
};
// Launches a kernel and waits for it.
inline void run(CUmodule module, const char* kernel, Grid grid, unsigned threads, unsigned shared, void** arguments) {
  CUfunction function;
  CU(cuModuleGetFunction, &function, module, kernel);
  CU(cuFuncSetAttribute, function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(shared));
  CUlaunchConfig config{};
  config.gridDimX = grid.x, config.gridDimY = grid.y, config.gridDimZ = grid.z;
  config.blockDimX = threads, config.blockDimY = config.blockDimZ = 1, config.sharedMemBytes = shared;
  CU(cuLaunchKernelEx, &config, function, arguments, nullptr);
  CU(cuCtxSynchronize);
}

// Of the format, in double.
inline double e2m1_value(int code) {
  static const double magnitudes[8] = {0, .5, 1, 1.5, 2, 3, 4, 6};
  return code & 8 ? -magnitudes[code & 7] : magnitudes[code & 7];
}
inline double e4m3_value(int byte) {
  const int exponent = byte >> 3 & 15, mantissa = byte & 7;
  double v = exponent ? 8 + mantissa : mantissa;
  for (int i = exponent ? exponent : 1; i < 10; ++i) v *= 0.5;
  for (int i = 10; i < exponent; ++i) v *= 2;
  return v;
}
inline size_t sf_offset(size_t row, size_t col, size_t cols) {
  return (row / 128 * ((cols + 3) / 4) + col / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + col % 4;
}
struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint32_t operator()() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<uint32_t>(state >> 32);
  }
};

}  // namespace standin
