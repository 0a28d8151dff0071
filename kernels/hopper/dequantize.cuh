// SPDX-License-Identifier: Apache-2.0
// Words of layout.cuh to bf16, or to e4m3.
#pragma once
#include "layout.cuh"
#include "ptx.cuh"

namespace nvfp4 {

// Four scales as bf16 of scale * 2^118, two a register: bytes 0 and 2 in `even`, 1 and 3 in `odd`. `word` is
// scale_word() of them.
struct ScalePairs {
  uint32_t even, odd;

  __device__ static ScalePairs decode(uint32_t word) {
    return {ptx::masked_or(word, 0x0FF00FF0u, 0x70007000u),
            ptx::masked_or(__funnelshift_r(word, word, 8), 0x0FF00FF0u, 0x70007000u)};
  }
};

// One word of codes to four pairs (a wgmma A fragment), times the scales of pairs 0, 2 and of 1, 3 (rows g and g + 8),
// which are half kHalf of both registers, times 2^-8.
template <int kHalf>
__device__ void dequantize(uint32_t word, uint32_t scale_02, uint32_t scale_13, uint32_t (&a)[4]) {
  const PairWords words(word);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a[i] = ptx::mul_bf16x2_half<kHalf>(words.pair[i] & kPairBits, i % 2 == 0 ? scale_02 : scale_13);
  }
}

// The magnitudes of a block in mode fp8, a byte each.
struct Fp8Table {
  uint32_t low, high;

  __device__ explicit Fp8Table(uint32_t scale) : low(fp8_table_low(scale)), high(fp8_table_high(scale)) {}
  // Of rounded weights.
  __device__ static Fp8Table rounded(uint32_t stored) {
    Fp8Table table(stored);
    table.low += (stored & kRoundedUp) * kRoundedLow;
    table.high += (stored & kRoundedUp) * kRoundedHigh;
    return table;
  }
  // Of four codes, the low half of `magnitudes`.
  __device__ uint32_t look_up(uint32_t magnitudes) const { return ptx::select_bytes(low, high, magnitudes); }
};

// One word of codes to two registers of an e4m3 A fragment: of rows g and g + 8.
__device__ inline void dequantize_fp8(uint32_t word, Fp8Table g, Fp8Table g8, uint32_t& row_g, uint32_t& row_g8) {
  constexpr uint32_t kSigns = 0x80808080u;
  const uint32_t magnitudes = word & 0x77777777u;
  row_g = ptx::masked_or(word, kSigns, g.look_up(magnitudes));
  row_g8 = ptx::masked_or(word << 4, kSigns, g8.look_up(ptx::high_half_f16(magnitudes)));  // f16 below 0x7777
}

}  // namespace nvfp4
