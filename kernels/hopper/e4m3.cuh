// SPDX-License-Identifier: Apache-2.0
// bf16 to e4m3 with a scale of each row: the law of rust/format/row.rs. By the conversion of sm_89 and later.
#pragma once
#include "../common/format.cuh"

namespace nvfp4 {

__device__ inline float fp8_row_scale(float amax) {
  return amax == 0.0f ? 1.0f : fmaxf(__fdiv_rn(amax, kE4m3Max), kMinGlobalScale);
}

// Two values, the first in the low byte; ties to even, saturating; NaN is 0x7F.
__device__ inline uint32_t e4m3_pair(float low, float high) {
  uint16_t both;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(high), "f"(low));
  return both;
}

}  // namespace nvfp4
