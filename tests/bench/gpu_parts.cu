// SPDX-License-Identifier: Apache-2.0
// One GEMM1 and one GEMM2 of a layer's experts, by themselves: median time of each, and the clock that its first
// multiprocessor ran at. Included after a copy of hopper/gemm.cu whose kernels count clocks (gpu_parts.py makes both);
// compiled with NAME1 and NAME2, the kernels, and TILE_ROWS, COLUMN_BYTES, EXPERTS, HIDDEN, INTERMEDIATE.
// Arguments: mean rows of an expert, launches. Weights and rows are random bits; results are not looked at.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#define CHECK(call)                                                  \
  do {                                                               \
    const cudaError_t error = call;                                  \
    if (error != cudaSuccess) {                                      \
      fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(error)); \
      exit(1);                                                       \
    }                                                                \
  } while (0)

namespace {

constexpr bool kFp8 = COLUMN_BYTES == 1;
constexpr int kTileBytes = kFp8 ? nvfp4::kPairedTileBytes : nvfp4::kTileBytes;
// Bytes of what is codes first, then scales.
constexpr int kRunBytes = kFp8 ? nvfp4::kPairBytes : kTileBytes;
constexpr int kRunCodeBytes = kFp8 ? nvfp4::kPairCodeBytes : nvfp4::kTileCodeBytes;

__device__ uint32_t random_bits(size_t i) {
  uint32_t h = static_cast<uint32_t>(i) * 2654435761u;
  h = (h ^ h >> 15) * 2246822519u;
  return h ^ h >> 13;
}

// Codes of any value; scales of a few powers of two (fp8) or near 1.
__global__ void fill_tiles(uint32_t* words, size_t count) {
  constexpr size_t kWords = kRunBytes / 4;
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    const uint32_t bits = random_bits(i);
    const bool is_scale = i % kWords >= kRunCodeBytes / 4;
    words[i] = !is_scale ? bits : kFp8 ? 0x40404040u + (bits & 0x18181818u) : 0xA0A0A0A0u + (bits & 0x1F1F1F1Fu);
  }
}

// Magnitudes within a factor of 16, either sign.
__global__ void fill_rows(void* rows, size_t count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    const uint32_t bits = random_bits(i);
    if constexpr (kFp8) {
      static_cast<uint8_t*>(rows)[i] = (bits & 0x80) | (0x48 + (bits >> 8 & 0x1F));
    } else {
      static_cast<uint16_t*>(rows)[i] = (bits & 0x8000) | (0x3F00 + (bits & 0x1FF));
    }
  }
}

template <class T>
T* device_memory(size_t count) {
  T* memory;
  CHECK(cudaMalloc(&memory, count * sizeof(T)));
  return memory;
}

template <class Kernel>
void time_kernel(const char* name, Kernel kernel, int threads, const GemmParams& params, int launches) {
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, GEMM_SM90_SHARED_BYTES));
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  cudaEvent_t start, end;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&end));
  std::vector<float> us, mhz;
  constexpr int kWarmUp = 5;
  for (int i = 0; i < launches + kWarmUp; ++i) {
    long long clocks[2] = {};
    CHECK(cudaMemcpyToSymbol(nvfp4::clocks_and_ns, clocks, sizeof clocks));
    CHECK(cudaEventRecord(start));
    kernel<<<device.multiProcessorCount, threads, GEMM_SM90_SHARED_BYTES>>>(params);
    CHECK(cudaEventRecord(end));
    CHECK(cudaDeviceSynchronize());
    float ms;
    CHECK(cudaEventElapsedTime(&ms, start, end));
    CHECK(cudaMemcpyFromSymbol(clocks, nvfp4::clocks_and_ns, sizeof clocks));
    if (i < kWarmUp) continue;
    us.push_back(ms * 1e3f);
    mhz.push_back(static_cast<float>(clocks[0]) / clocks[1] * 1e3f);
  }
  std::sort(us.begin(), us.end());
  std::sort(mhz.begin(), mhz.end());
  printf("%s %.1f %.0f\n", name, us[us.size() / 2], mhz[mhz.size() / 2]);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: %s MEAN_ROWS LAUNCHES\n", argv[0]);
    return 2;
  }
  const int mean_rows = atoi(argv[1]), launches = atoi(argv[2]);
  std::mt19937 generator(1);
  std::binomial_distribution<int> rows_of(mean_rows * 64, 1.0 / 64);
  std::vector<RowGroup> groups;
  int rows = 0, row_tiles = 0;
  for (int e = 0; e < EXPERTS; ++e) {
    groups.push_back({e, rows, std::max(1, rows_of(generator)), row_tiles});
    rows += groups.back().num_rows;
    row_tiles += (groups.back().num_rows + TILE_ROWS - 1) / TILE_ROWS;
  }
  groups.insert(groups.end(), 2, RowGroup{-1, 0, 0, row_tiles});

  constexpr size_t kTiles1 = size_t{INTERMEDIATE / 32} * (HIDDEN / 64);
  constexpr size_t kTiles2 = size_t{HIDDEN / 64} * (INTERMEDIATE / 64);
  uint8_t* const weights1 = device_memory<uint8_t>(EXPERTS * kTiles1 * kTileBytes);
  uint8_t* const weights2 = device_memory<uint8_t>(EXPERTS * kTiles2 * kTileBytes);
  uint16_t* const x = device_memory<uint16_t>(size_t(rows) * HIDDEN);
  uint16_t* const h = device_memory<uint16_t>(size_t(rows) * INTERMEDIATE);
  uint16_t* const out = device_memory<uint16_t>(size_t(rows) * HIDDEN);
  float* const row_scale = device_memory<float>(rows);
  RowGroup* const on_device = device_memory<RowGroup>(groups.size());
  CHECK(cudaMemset(row_scale, 0, rows * sizeof(float)));
  CHECK(cudaMemcpy(on_device, groups.data(), groups.size() * sizeof(RowGroup), cudaMemcpyHostToDevice));
  fill_tiles<<<1024, 256>>>(reinterpret_cast<uint32_t*>(weights1), EXPERTS * kTiles1 * (kTileBytes / 4));
  fill_tiles<<<1024, 256>>>(reinterpret_cast<uint32_t*>(weights2), EXPERTS * kTiles2 * (kTileBytes / 4));
  fill_rows<<<1024, 256>>>(x, size_t(rows) * HIDDEN * 2 / COLUMN_BYTES);
  fill_rows<<<1024, 256>>>(h, size_t(rows) * INTERMEDIATE * 2 / COLUMN_BYTES);
  CHECK(cudaDeviceSynchronize());

  GemmParams gemm1 = {};
  gemm1.list = {on_device, INTERMEDIATE / 32, 0, TILE_ROWS, EXPERTS + 1};
  gemm1.tiles = weights1;
  gemm1.expert_stride = kTiles1 * kTileBytes;
  gemm1.alphas = reinterpret_cast<const float*>(weights1);  // any values
  gemm1.x = x;
  gemm1.x_row_stride = HIDDEN;
  gemm1.row_scale = kFp8 ? row_scale : nullptr;
  gemm1.out = out;
  gemm1.out_row_stride = gemm1.features = INTERMEDIATE;
  gemm1.top_k = 1;
  gemm1.k_valid = HIDDEN;
  gemm1.num_slabs = HIDDEN / 64;
  gemm1.activation = {ACTIVATION_SWIGLU, 10, 1, 0};
  gemm1.tiles_known = 1;
  GemmParams gemm2 = gemm1;
  gemm2.list.m_tiles = HIDDEN / 64;
  gemm2.tiles = weights2;
  gemm2.expert_stride = kTiles2 * kTileBytes;
  gemm2.alphas = reinterpret_cast<const float*>(weights2);
  gemm2.x = h;
  gemm2.x_row_stride = INTERMEDIATE * 2 / COLUMN_BYTES;  // a row of e4m3 lies in the place of its bf16
  gemm2.out_row_stride = gemm2.features = HIDDEN;
  gemm2.k_valid = INTERMEDIATE;
  gemm2.num_slabs = INTERMEDIATE / 64;
  using nvfp4::ConfigOf;
  using nvfp4::Epilogue;
  time_kernel("gemm1", NAME1, ConfigOf<TILE_ROWS, COLUMN_BYTES, Epilogue::kGemm1>::kThreads, gemm1, launches);
  time_kernel("gemm2", NAME2, ConfigOf<TILE_ROWS, COLUMN_BYTES, Epilogue::kGemm2>::kThreads, gemm2, launches);
}
