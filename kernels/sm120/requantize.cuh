// SPDX-License-Identifier: Apache-2.0
// h of a tile on to NVFP4 within GEMM1, where the input scale of GEMM2 is one number: the tile's 64 features lie in
// shared memory as bf16, and each thread quantises blocks of 16, by the code that quantises rows.
#pragma once
#include "../quantize/quantize_row.cuh"
#include "load.cuh"

namespace nvfp4::sm120 {

constexpr int kTileFeatures = kTileRows / 2;  // a gate and an up each

// GEMM1's parameters for a tile; with `keep`, so that the epilogue leaves h in shared memory.
template <class C>
__device__ GemmParams params_of_tile(const GemmParams& p, const Tile& tile, bool keep, SharedStorage<C>& shared) {
  GemmParams q = p;
  if constexpr (C::kHBytes == 0) return q;
  if (keep) {
    const int64_t first = int64_t{tile.first_row} * C::kHStride + tile.first_m_tile * kTileFeatures;
    q.out = reinterpret_cast<__nv_bfloat16*>(shared.h) - first;
    q.out_row_stride = C::kHStride;
  }
  // The compiler takes a pointer that may be one of a kernel's parameters for global memory, and stores there
  // (nvcc 13.0): it must not see where this one comes from.
  asm volatile("" : "+l"(q.out));
  return q;
}

// Quantises what the consumers have left there.
template <class C>
__device__ void requantize(const GemmSm120Params& p, float static_scale, const Tile& tile,
                           const SharedStorage<C>& shared) {
  constexpr int kTileBlocks = kTileFeatures / kBlockSize;
  const QuantScale scale = QuantScale::from_global_scale(static_scale);
  const int num_blocks = p.gemm.features / kBlockSize, first_block = tile.first_m_tile * kTileBlocks;
  const int blocks = min(tile.num_m_tiles * kTileBlocks, num_blocks - first_block);
  ptx::named_barrier(kConsumerBarrier, C::kConsumers);
  for (int i = threadIdx.x; i < tile.num_rows * blocks; i += C::kConsumers) {
    const int r = i / blocks, b = i % blocks, row = tile.first_row + r;
    float values[kBlockSize];
    load_block(reinterpret_cast<const __nv_bfloat16*>(shared.h) + r * C::kHStride + b * kBlockSize, values);
    const Block block = quantize_block(values, scale);
    report(p.h.input.status, block, token_of(p.h.input, row, Row{}));
    store_swizzled(p.h, row, first_block + b, num_blocks, block);
    if (first_block + b == 0) p.h.row_scale[row] = static_scale;
  }
  ptx::named_barrier(kConsumerBarrier, C::kConsumers);  // the next tile's h may come
}

}  // namespace nvfp4::sm120
