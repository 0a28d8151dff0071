// SPDX-License-Identifier: Apache-2.0
// Results of GEMM1 to NVFP4 by a static global scale, in the epilogue: what quantize_rows makes of the same values
// rounded to bf16, bit for bit. A warp has 32 features, two blocks of 16, of eight token rows.
#pragma once
#include <cuda_bf16.h>

#include "../common/format.cuh"
#include "../common/status.cuh"
#include "../common/tiles.cuh"
#include "layout.cuh"

namespace nvfp4::sm100 {

// Lanes of eight exchange, so that lane j has what the eight held as nibble j: its nibble i is lane i's.
__device__ inline uint32_t transpose_nibbles(uint32_t word) {
#pragma unroll
  for (int d = 1; d < 8; d *= 2) {
    // Nibbles whose index has bit d (mask) change places with those of the partner that have it not.
    const uint32_t mask = d == 1 ? 0xF0F0F0F0u : d == 2 ? 0xFF00FF00u : 0xFFFF0000u;
    const bool upper = threadIdx.x & d;
    const uint32_t got = __shfl_xor_sync(~0u, upper ? word & ~mask : word & mask, d);
    word = upper ? (word & mask) | got >> (4 * d) : (word & ~mask) | got << (4 * d);
  }
  return word;
}

// The largest magnitude of this half warp; NaN if one is, which lies above all by its bits.
__device__ inline float half_warp_amax(float v) {
  uint32_t amax = __float_as_uint(v) & 0x7FFFFFFFu;
#pragma unroll
  for (int d = 8; d > 0; d /= 2) amax = max(amax, __shfl_xor_sync(~0u, amax, d));
  return __uint_as_float(amax);
}

// Counts what a block of this half warp lost. All lanes call.
__device__ inline void report_half_warp(const GemmSm100Params& p, int64_t row, bool saturated, float value) {
  const uint32_t nonfinite = __ballot_sync(~0u, !isfinite(value)) >> (threadIdx.x & 16) & 0xFFFF;
  if (threadIdx.x % 16 == 0 && (saturated || nonfinite != 0))
    report_block(p.status, saturated, __popc(nonfinite), p.row_to_slot[row] / p.top_k);
}

// Stores token rows n .. n + 7 of a tile; `values` are this lane's feature of each.
__device__ inline void requantize(const GemmSm100Params& p, const Tile& tile, int first_feature, int n,
                                  const QuantScale& quant, const float (&values)[8]) {
  const int lane = threadIdx.x % 32;
  uint32_t codes = 0, own_scale = 0;  // nibble i: row n + i
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float h = __bfloat162float(__float2bfloat16_rn(values[i]));
    const float wanted = __fmul_rn(half_warp_amax(h), quant.encode_sixth);
    const uint32_t scale = e4m3_encode(wanted);
    if (__any_sync(~0u, !(wanted <= kE4m3Max))) report_half_warp(p, tile.first_row + n + i, wanted > kE4m3Max, h);
    const float decoded = e4m3_decode(scale);
    const float factor = decoded == 0.0f ? 0.0f : __fdiv_rn(quant.encode, decoded);
    codes |= e2m1_code(e2m1_round(__fmul_rn(h, factor))) << (4 * i);
    if (lane % 16 == i) own_scale = scale;
  }
  // Lane 8 q + j has features 8 q .. 8 q + 7 of row n + j; lane 16 b + j stores the scale of block b.
  const uint32_t word = transpose_nibbles(codes);
  const int at = n + lane % 8, feature = first_feature + lane / 8 * 8, block = (first_feature + lane) / kBlockSize;
  const int64_t row = tile.first_row + at;
  if (at >= tile.num_rows || first_feature / kStepCols >= steps_of(p.features)) return;
  *reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(p.out) + row_code(row, feature, p.num_rows)) = word;
  // The next GEMM has the same tiles, so that the row's quarter is known.
  if (lane % 16 < 8)
    p.out_block_scale[row_block_scale(row, block, at % 128 / 32, p.num_rows)] = static_cast<uint8_t>(own_scale);
}

}  // namespace nvfp4::sm100
