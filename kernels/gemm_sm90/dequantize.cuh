// Words of layout.cuh to bf16.
#pragma once
#include "ptx.cuh"

namespace nvfp4 {

// Byte `kByte` of `scales` as two bf16 of scale * 2^118 (layout.cuh).
template <int kByte>
__device__ uint32_t decode_scale(uint32_t scales) {
  return __byte_perm(scales, 0, 0x4040 | kByte | kByte << 8) * 16 + 0x70007000u;
}

// One word of codes to four pairs (a wgmma A fragment), times the scales of pairs 0, 2 and of 1, 3 (rows g and g + 8),
// times 2^-8.
__device__ inline void dequantize(uint32_t word, uint32_t scale_lo, uint32_t scale_hi, uint32_t (&a)[4]) {
  constexpr uint32_t kPair = 0x81C081C0u;
  a[0] = ptx::mul_bf16x2(word & kPair, scale_lo);
  a[1] = ptx::mul_bf16x2(word << 3 & kPair, scale_hi);
  a[2] = ptx::mul_bf16x2(word << 6 & kPair, scale_lo);
  const uint32_t low_bits = ptx::masked_or(word << 1, 0x80008000u, word >> 4 & 0x00C000C0u);
  a[3] = ptx::mul_bf16x2(ptx::masked_or(word >> 5, 0x01000100u, low_bits), scale_hi);
}

}  // namespace nvfp4
