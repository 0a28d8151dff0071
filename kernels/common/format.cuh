// SPDX-License-Identifier: Apache-2.0
// NVFP4 on the device: the same law as rust/format, bit for bit. Every operation rounds once to f32; the order of
// operations is part of the format.
#pragma once
#include <cstdint>

namespace nvfp4 {

constexpr int kBlockSize = 16;  // values that share one block scale
constexpr float kE2m1Max = 6.0f;
constexpr float kE4m3Max = 448.0f;
constexpr float kMinGlobalScale = 0x1p-110f;  // its reciprocal over the smallest block scale is still finite

// The tensor core reads block scales in 512-byte tiles of 128 rows x 4 scales. Inside a tile rows are dealt like
// cards: r, r+32, r+64, r+96 sit side by side. Tiles run along K first.
// Source: PTX ISA, tcgen05, scale-factor layout for scale_vec::4X.
__host__ __device__ constexpr uint64_t sf_offset_128x4(uint64_t row, uint64_t col, uint64_t num_cols) {
  const uint64_t tile = row / 128 * ((num_cols + 3) / 4) + col / 4;
  return tile * 512 + row % 32 * 16 + row % 128 / 32 * 4 + col % 4;
}
static_assert(sf_offset_128x4(1, 0, 4) == 16, "neighbouring rows are 16 bytes apart");
static_assert(sf_offset_128x4(32, 0, 4) == 4, "row 32 sits beside row 0");
static_assert(sf_offset_128x4(0, 4, 8) == 512, "the next tile is along K");
static_assert(sf_offset_128x4(128, 0, 5) == 1024, "5 scale columns are two tiles");

// Value of a 4-bit code; only its low four bits count.
__device__ inline float e2m1_decode(uint32_t code) {
  const uint32_t magnitude = code & 7;
  // Halves: 0 1 2 3 4 6 8 12, a nibble each.
  const float value = static_cast<float>(0xC8643210u >> (4 * magnitude) & 15u) * 0.5f;
  return code & 8 ? -value : value;
}

// The nearest e2m1 value, ties to the even code, saturating at 6; NaN becomes 6. Values are multiples of half the power
// of two below, and of 1/2 below 1: adding 3/2 * 2^23 of that step makes f32's own ties-to-even round to it. Equal to a
// comparison with all seven borders for every f32.
__device__ inline float e2m1_round(float x) {
  const float clamped = fmaxf(fminf(x, kE2m1Max), -kE2m1Max), a = fabsf(clamped);
  const float power = __uint_as_float(__float_as_uint(fmaxf(a, 1.0f)) & 0x7F800000u);
  return copysignf(__fmaf_rn(power, -0x1.8p22f, __fmaf_rn(power, 0x1.8p22f, a)), clamped);
}

// The code of an e2m1 value: from 1 on exponent and first bit of the fraction, below 0.5 and 0.
__device__ inline uint32_t e2m1_code(float value) {
  const uint32_t bits = __float_as_uint(value), magnitude = bits & 0x7FFFFFFFu;
  return (magnitude >= 0x3F800000u ? (magnitude >> 22) - 0xFC : magnitude != 0) | bits >> 31 << 3;
}

// Value of an e4m3 ("fn") byte; NaN for 0x7F and 0xFF.
__device__ inline float e4m3_decode(uint32_t bits) {
  const uint32_t magnitude = bits & 0x7F;
  if (magnitude == 0x7F) return __uint_as_float(0x7FC00000u);
  // Placed in the f32 fields the value is off by 2^(127 - 7); the multiplication is exact, subnormals included.
  const float value = __uint_as_float(magnitude << 20) * 0x1p120f;
  return bits & 0x80 ? -value : value;
}

// Exponent of two of a positive finite e4m3 byte, rounded down.
__host__ __device__ constexpr int e4m3_exponent(uint32_t e4m3) {
  return e4m3 >= 8 ? static_cast<int>(e4m3 >> 3) - 7 : e4m3 >= 4 ? -7 : e4m3 >= 2 ? -8 : -9;
}

// Three bits of mantissa of a positive finite e4m3 byte, as a normal value would have them.
__host__ __device__ constexpr uint32_t e4m3_mantissa(uint32_t e4m3) {
  return (e4m3 >= 4 ? e4m3 << (e4m3 < 8) : e4m3 == 3 ? 4 : 0) & 7;
}

// The nearest e4m3 byte of a non-negative value, ties to even, saturating at 448; NaN gives 0x7F.
__device__ inline uint32_t e4m3_encode(float a) {
  if (isnan(a)) return 0x7F;
  if (a >= kE4m3Max) return 0x7E;
  // Subnormals count units of 2^-9: adding 2^23 makes f32's own ties-to-even round to whole units.
  if (a < 0x1p-6f) return static_cast<uint32_t>(__fsub_rn(__fadd_rn(a * 0x1p9f, 0x1p23f), 0x1p23f));
  const uint32_t bits = __float_as_uint(a);
  return ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3);
}

// A global scale, turned round for encoding.
struct QuantScale {
  float encode;        // 1 / global_scale
  float encode_sixth;  // encode / 6: an amax of 6 quanta fills a block

  __device__ static QuantScale from_global_scale(float global_scale) {
    const float encode = __fdiv_rn(1.0f, global_scale);
    return {encode, __fdiv_rn(encode, kE2m1Max)};
  }
};

// The global scale of a row in the dynamic policy; `amax` over its finite values.
__device__ inline float dynamic_global_scale(float amax) {
  return amax == 0.0f ? 1.0f : fmaxf(__fdiv_rn(amax, kE2m1Max * kE4m3Max), kMinGlobalScale);
}

// The largest magnitude; NaN if one value is. Magnitudes order as their bits do, and NaN lies above all.
__device__ inline float block_amax(const float (&x)[kBlockSize]) {
  uint32_t amax = 0;
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) {
    const uint32_t magnitude = __float_as_uint(x[i]) & 0x7FFFFFFFu;
    amax = magnitude > amax ? magnitude : amax;
  }
  return __uint_as_float(amax);
}

// NaN and infinite values of a block with this amax.
__device__ inline int count_nonfinite(const float (&x)[kBlockSize], float amax) {
  int count = 0;
  if (isfinite(amax)) return count;
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) count += !isfinite(x[i]);
  return count;
}

struct Block {
  float values[kBlockSize];  // e2m1: what the codes stand for
  uint32_t scale;            // e4m3
  bool saturated;            // the scale would have passed 448
  int nonfinite;             // NaN or infinite inputs

  // The first in the lowest nibble.
  __device__ uint64_t codes() const {
    uint64_t all = 0;
#pragma unroll
    for (int i = 0; i < kBlockSize; ++i) all |= static_cast<uint64_t>(e2m1_code(values[i])) << (4 * i);
    return all;
  }
};

// Quantise 16 values:
//   scale = e4m3(amax * ((1 / g) / 6)), saturating;  code = e2m1(x * ((1 / g) / scale)), factor 0 where scale is 0.
// A NaN gives the block the scale NaN, so that it cannot hide; an infinity saturates. Source: rust/format/block.rs.
__device__ inline Block quantize_block(const float (&x)[kBlockSize], QuantScale scale) {
  const float amax = block_amax(x), wanted = __fmul_rn(amax, scale.encode_sixth);
  Block block;
  block.scale = e4m3_encode(wanted);
  block.saturated = wanted > kE4m3Max;
  block.nonfinite = count_nonfinite(x, amax);
  const float decoded = e4m3_decode(block.scale);
  const float factor = decoded == 0.0f ? 0.0f : __fdiv_rn(scale.encode, decoded);
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) block.values[i] = e2m1_round(__fmul_rn(x[i], factor));
  return block;
}

}  // namespace nvfp4
