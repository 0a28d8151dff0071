// SPDX-License-Identifier: Apache-2.0
// What the bits of operands mean: codes, scales, descriptors. Given Running and fail(); also compiled for the host,
// where layouts.cpp holds all of it against CuTe.
#pragma once
#include "standin.h"
#ifdef __CUDACC__
#include "state.cuh"
#endif

namespace standin {

// ---- values

__device__ inline int e2m1_twice(uint32_t code) {
  const int magnitude = static_cast<int>(0xC8643210u >> (4 * (code & 7)) & 15u);
  return code & 8 ? -magnitude : magnitude;
}
// Eight codes of a word as signed bytes, twice their values.
__device__ inline uint2 decode8(uint32_t word) {
  uint2 r{0, 0};
#pragma unroll
  for (int i = 0; i < 4; ++i) r.x |= static_cast<uint32_t>(e2m1_twice(word >> (4 * i)) & 0xFF) << (8 * i);
#pragma unroll
  for (int i = 0; i < 4; ++i) r.y |= static_cast<uint32_t>(e2m1_twice(word >> (16 + 4 * i)) & 0xFF) << (8 * i);
  return r;
}
// Unsigned: bit 7 must be 0, and what is not a number is NaN.
__device__ inline float ue4m3(uint32_t byte) {
  byte &= 0xFF;
  if (byte >= 0x7F) return __uint_as_float(0x7FC00000u);
  return __uint_as_float(byte << 20) * 0x1p120f;
}
__device__ inline float e4m3(uint32_t byte) {
  const float magnitude = ue4m3(byte & 0x7F);
  return byte & 0x80 ? -magnitude : magnitude;
}
__device__ inline float e5m2(uint32_t byte) {
  byte &= 0xFF;
  const uint32_t sign = byte >> 7 << 31, rest = byte & 0x7F;
  if (rest >= 0x7C) return __uint_as_float(sign | (rest == 0x7C ? 0x7F800000u : 0x7FC00000u));
  const float magnitude = __uint_as_float(rest << 21) * 0x1p112f;
  return sign ? -magnitude : magnitude;
}
__device__ inline float f16(uint32_t half) {
  half &= 0xFFFF;
  const uint32_t sign = half >> 15 << 31, rest = half & 0x7FFF;
  if (rest >= 0x7C00) return __uint_as_float(sign | (rest == 0x7C00 ? 0x7F800000u : 0x7FC00000u));
  const float magnitude = __uint_as_float(rest << 13) * 0x1p112f;
  return sign ? -magnitude : magnitude;
}
__device__ inline float bf16(uint32_t half) { return __uint_as_float(half << 16); }

// ---- shared memory descriptor (PTX ISA 9.0, table 40), K-major

struct SharedMatrix {
  const Running& it;
  uint32_t start, leading, stride, layout, line;

  __device__ SharedMatrix(const Running& running, uint64_t bits, uint32_t at_line) : it(running), line(at_line) {
    start = static_cast<uint32_t>(bits & 0x3FFF) << 4;
    leading = static_cast<uint32_t>(bits >> 16 & 0x3FFF) << 4;
    stride = static_cast<uint32_t>(bits >> 32 & 0x3FFF) << 4;
    layout = static_cast<uint32_t>(bits >> 61);
    require(1, (bits >> 46 & 7) == 1, bits);                                     // version of Blackwell
    require(2, (bits >> 14 & 3) == 0 && (bits >> 30 & 3) == 0, bits);            // reserved
    require(3, (bits >> 49 & 7) == 0, bits);                                     // base offset: none of ours needs one
    require(4, (bits >> 52 & 1) == 0, bits);                                     // absolute leading dimension
    require(5, (bits >> 53 & 0xFF) == 0, bits);                                  // reserved
    require(6, layout == 0 || layout == 2 || layout == 4 || layout == 6, bits);  // swizzle
  }
  __device__ void require(uint32_t rule, bool kept, uint64_t bits) const {
    if (!kept) fail(it, kDescriptor, line, rule, bits);
  }

  // Address of 16-byte unit `unit` of row `row`: canonical layouts of 9.7.16.3.3, then the swizzle on address bits.
  __device__ uint32_t address(uint32_t row, uint32_t unit) const {
    uint32_t at;
    switch (layout) {
      case 0: at = start + row % 8 * 16 + row / 8 * stride + unit * leading; break;
      case 6: at = start + row % 8 * 32 + row / 8 * stride + unit * 16, at ^= (at >> 7 & 1) << 4; break;
      case 4: at = start + row % 8 * 64 + row / 8 * stride + unit * 16, at ^= (at >> 7 & 3) << 4; break;
      default: at = start + row % 8 * 128 + row / 8 * stride + unit * 16, at ^= (at >> 7 & 7) << 4; break;
    }
    if (at + 16 > it.cta.shared_limit) fail(it, kSmemRange, line, at, it.cta.shared_limit);
    return at;
  }
};

// ---- instruction descriptor

// Tables 43 (kinds f16 and f8f6f4) and 44 (block scales). Fields that no kernel of ours sets must be 0.
struct Instruction {
  uint32_t kind, m, n, a_type, b_type;
  uint64_t broken = 0;  // the first rule that is not kept

  __device__ Instruction(uint32_t which, uint32_t bits) : kind(which) {
    n = (bits >> 17 & 63) * 8, a_type = bits >> 7 & 7, b_type = bits >> 10 & 7;
    require(1, (bits >> 2 & 3) == 0 && (bits & 3) == 0);  // dense, no saturation
    require(2, (bits >> 13 & 3) == 0);                    // no negation
    require(3, (bits >> 15 & 3) == 0);                    // no transposition
    if (kind == kNvf4) {
      m = (bits >> 27 & 3) * 128;
      require(4, a_type == 1 && (b_type & 3) == 1);               // e2m1; bit 12 is reserved
      require(5, (bits >> 4 & 3) == 0 && (bits >> 29 & 3) == 0);  // scale_vec::4X takes all four bytes
      require(6, (bits >> 23 & 1) == 0);                          // scales ue4m3
      require(7, (bits >> 6 & 1) == 0 && (bits >> 12 & 1) == 0 && (bits >> 24 & 7) == 0 && bits >> 31 == 0);
      require(8, n >= 8 && n <= 256);
    } else {
      m = (bits >> 24 & 31) * 16;
      require(4, kind == kF16 ? a_type < 2 && b_type < 2 : (a_type < 2 && b_type < 2));  // f16, bf16; e4m3, e5m2
      require(5, (bits >> 4 & 3) == 1);                                                  // sums in f32
      require(7, (bits >> 6 & 1) == 0 && (bits >> 23 & 1) == 0 && bits >> 29 == 0);
      require(8, n >= 16 && n <= 256 && n % 16 == 0);  // of 128 rows
    }
    require(9, m == 128);  // cta_group::1
  }
  __device__ void require(uint64_t rule, bool kept) {
    if (!kept && broken == 0) broken = rule;
  }
  // Element i of a word of operands of 16 or 8 bits.
  __device__ float element(uint32_t type, uint32_t word, uint32_t i) const {
    if (kind == kF16) return type ? bf16(word >> (16 * i) & 0xFFFF) : f16(word >> (16 * i));
    return type ? e5m2(word >> (8 * i)) : e4m3(word >> (8 * i));
  }
};

__device__ inline uint32_t kind_of(const Op& op) { return op.flags >> kKindShift; }
// Columns of sums that an mma writes; of scales that a copy writes.
__device__ inline Columns written_by(const Op& op) {
  const uint32_t first = op.d & 0xFFFF;
  return {first, first + ((op.kind & ~kDone) == kMma ? (op.idesc >> 17 & 63) * 8 : 4)};
}
constexpr uint32_t kAColumns = 8;  // of A in tensor memory: 32 bytes of a row, whatever the kind
__device__ inline bool overlap(const Columns& a, const Columns& b) { return a.first < b.end && b.first < a.end; }
// Does an mma read any of these columns of tensor memory?
__device__ inline bool reads(const Op& op, const Columns& columns) {
  if ((op.kind & ~kDone) != kMma) return false;
  const uint32_t n = (op.idesc >> 17 & 63) * 8, a = static_cast<uint32_t>(op.a) & 0xFFFF;
  if (op.flags & kAInTmem && overlap(columns, {a, a + kAColumns})) return true;
  return kind_of(op) == kNvf4 && (overlap(columns, {op.sfa & 0xFFFF, (op.sfa & 0xFFFF) + 4}) ||
                                  overlap(columns, {op.sfb & 0xFFFF, (op.sfb & 0xFFFF) + (n + 31) / 32}));
}

}  // namespace standin
