// SPDX-License-Identifier: Apache-2.0
// Codes of blocks that lie below what rounded weights of mode fp8 can store: the law of rust/format/rounding.rs.
#pragma once
#include "layout.cuh"

namespace nvfp4 {

// The codes, a nibble each, that the eight magnitudes of a block have with a scale of 2^floor instead of a smaller one.
__device__ inline uint32_t codes_at_floor(uint32_t e4m3, int floor) {
  const float factor = e4m3_decode(e4m3) * __uint_as_float(static_cast<uint32_t>(127 - floor) << 23);
  uint32_t codes = 0;
#pragma unroll
  for (uint32_t code = 0; code < 8; ++code) codes |= e2m1_code(e2m1_round(e2m1_decode(code) * factor)) << 4 * code;
  return codes;
}

// Eight codes by such a table; signs stay.
__device__ inline uint32_t look_up_codes(uint32_t eight, uint32_t table) {
  uint32_t codes = eight & 0x88888888u;
#pragma unroll
  for (int i = 0; i < 8; ++i) codes |= (table >> 4 * (eight >> 4 * i & 7) & 7) << 4 * i;
  return codes;
}

}  // namespace nvfp4
