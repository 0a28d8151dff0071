// Words of layout.cuh to bf16, or to e4m3.
#pragma once
#include "layout.cuh"
#include "ptx.cuh"

namespace nvfp4 {

// Four scales as bf16 of scale * 2^118, two a register: bytes 0 and 2 in `even`, 1 and 3 in `odd`.
struct ScalePairs {
  uint32_t even, odd;

  __device__ static ScalePairs decode(uint32_t bytes) {
    return {ptx::masked_or(bytes << 4, 0x0FF00FF0u, 0x70007000u), ptx::masked_or(bytes >> 4, 0x0FF00FF0u, 0x70007000u)};
  }
};

// One word of codes to four pairs (a wgmma A fragment), times the scales of pairs 0, 2 and of 1, 3 (rows g and g + 8),
// which are half kHalf of both registers, times 2^-8.
template <int kHalf>
__device__ void dequantize(uint32_t word, uint32_t scale_02, uint32_t scale_13, uint32_t (&a)[4]) {
  constexpr uint32_t kSign = 0x80008000u, kMagnitude = 0x01C001C0u;
  a[0] = ptx::mul_bf16x2_half<kHalf>(word & (kSign | kMagnitude), scale_02);
  a[1] = ptx::mul_bf16x2_half<kHalf>(word << 3 & (kSign | kMagnitude), scale_13);
  a[2] = ptx::mul_bf16x2_half<kHalf>(ptx::masked_or(word << 1, kSign, word << 6 & kMagnitude), scale_02);
  a[3] = ptx::mul_bf16x2_half<kHalf>(ptx::masked_or(word << 2, kSign, word >> 3 & kMagnitude), scale_13);
}

// One word of codes to two registers of an e4m3 A fragment: of rows g and g + 8, whose scales are bytes 2 kHalf and
// 2 kHalf + 1.
template <int kHalf>
__device__ void dequantize_fp8(uint32_t word, uint32_t scales, uint32_t& row_g, uint32_t& row_g8) {
  constexpr uint32_t kSigns = 0x80808080u;
  const uint32_t g = scales >> (16 * kHalf) & 0xFF, g8 = scales >> (16 * kHalf + 8) & 0xFF;
  const uint32_t magnitudes = word & 0x77777777u;
  row_g = ptx::masked_or(word, kSigns, ptx::select_bytes(fp8_table_low(g), fp8_table_high(g), magnitudes));
  row_g8 =
      ptx::masked_or(word << 4, kSigns, ptx::select_bytes(fp8_table_low(g8), fp8_table_high(g8), magnitudes >> 16));
}

}  // namespace nvfp4
