// SPDX-License-Identifier: Apache-2.0
// The grouped GEMM of compute capability 12.x: out = rows x weights^T, weights as the 16-row operand of mma.sync
// (swapAB), so that a few tokens fill the narrow side of the tensor core's tile and weights are read from memory once.
//
//   4 or 8 consumer warps  multiply()  block-scaled mma.sync of NVFP4, or dequantise and mma.sync of bf16; store
//   4 producer warps       load()      weight tiles by bulk copy, token rows by gather, kStages ahead
#include "../common/epilogue.cuh"
#include "mma.cuh"
#include "requantize.cuh"

namespace nvfp4::sm120 {
namespace {

// The token rows of this warp among those of the CTA's tile; maybe none.
template <class C>
__device__ Tile rows_of_warp(Tile tile) {
  const int first = threadIdx.x / 128 * C::kWarpRows;
  tile.first_row += first;
  tile.num_rows = min(tile.num_rows - first, C::kWarpRows);
  return tile;
}

template <class C, Epilogue kEpilogue>
__device__ void multiply(const GemmSm120Params& p, SharedStorage<C>& shared) {
  const bool is_fused = C::kHBytes > 0 && p.h.packed;
  if (is_fused) wait_for_previous();  // which left the scale
  const float static_scale = is_fused ? static_scale_of(p.h) : 0.0f;
  Ring<C> ring;
  for_each_tile<C::kTiles>(p.gemm.list, [&](const Tile& tile) {
    const Tile own = rows_of_warp<C>(tile);
    const GemmParams gemm = params_of_tile<C>(p.gemm, tile, is_fused, shared);
    const Output<C, kEpilogue, SharedStorage<C>> output(gemm, own, shared);
    Accumulation<C> sums(tile.num_m_tiles);
    for (int slab = 0; slab < p.gemm.num_slabs; slab += C::kSlabs) {
      wait_until_full(p, shared, ring.stage, ring.parity);
      if (own.num_rows > 0) sums.add(shared, ring.stage, p.gemm.num_slabs - slab);
      __syncwarp();
      if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(shared.empty[ring.stage]);
      ring.advance();
    }
    sums.finish();
#pragma unroll
    for (int i = 0; i < C::kTiles; ++i) {
      if (i < tile.num_m_tiles) output.store(tile.first_m_tile + i, i, sums.acc[i], shared);
    }
    if (is_fused) requantize<C>(p, static_scale, tile, shared);
  });
}

template <class C, Epilogue kEpilogue>
__device__ void gemm(const GemmSm120Params& p) {
  static_assert(kFitsLaunch<C>, "every instance has the launch shape of params.h");
  extern __shared__ __align__(128) uint8_t bytes[];
  auto& shared = *reinterpret_cast<SharedStorage<C>*>(bytes);
  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      ptx::mbarrier_init(shared.full[s], C::kProducers);
      ptx::mbarrier_init(shared.empty[s], C::kConsumers / 32);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (!p.gemm.tiles_known) follow_previous();
  if (threadIdx.x < C::kConsumers) {
    multiply<C, kEpilogue>(p, shared);
  } else {
    load<C>(p, shared);
  }
}

}  // namespace
}  // namespace nvfp4::sm120

// One kernel for each epilogue, kind of row and row-tile size.
#define NVFP4_GEMM(name, n, rows, epilogue)                                                            \
  extern "C" __global__ void __launch_bounds__(                                                        \
      nvfp4::sm120::ConfigOf<n, nvfp4::sm120::Rows::rows, nvfp4::Epilogue::epilogue>::kThreads, 1)     \
      name##_n##n(const __grid_constant__ GemmSm120Params p) {                                         \
    nvfp4::sm120::gemm<nvfp4::sm120::ConfigOf<n, nvfp4::sm120::Rows::rows, nvfp4::Epilogue::epilogue>, \
                       nvfp4::Epilogue::epilogue>(p);                                                  \
  }
#define NVFP4_GEMMS(n)                                \
  NVFP4_GEMM(gemm1_nvfp4_sm120, n, kNvfp4, kGemm1Any) \
  NVFP4_GEMM(gemm1_bf16_sm120, n, kBf16, kGemm1Any)   \
  NVFP4_GEMM(gemm2_nvfp4_sm120, n, kNvfp4, kGemm2Any) \
  NVFP4_GEMM(gemm2_bf16_sm120, n, kBf16, kGemm2Any)   \
  NVFP4_GEMM(linear_nvfp4_sm120, n, kNvfp4, kLinear)  \
  NVFP4_GEMM(linear_bf16_sm120, n, kBf16, kLinear)

GEMM_SM120_ROW_TILES(NVFP4_GEMMS)
