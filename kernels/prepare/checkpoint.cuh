// SPDX-License-Identifier: Apache-2.0
// Reading a checkpoint's tensors. They may start at any byte. Scales are checked on the way: a bad one is counted, and
// prepare refuses.
#pragma once
#include <cstdint>

namespace nvfp4 {

__device__ inline void count_bad(uint64_t* bad) { atomicAdd(reinterpret_cast<unsigned long long*>(bad), 1ull); }

// Eight bytes, the first in the low byte of x.
__device__ inline uint2 load_8_bytes(const uint8_t* at) {
  if (reinterpret_cast<uintptr_t>(at) % 8 == 0) return *reinterpret_cast<const uint2*>(at);
  uint2 both = {};
  for (int i = 0; i < 4; ++i) {
    both.x |= uint32_t{at[i]} << 8 * i;
    both.y |= uint32_t{at[i + 4]} << 8 * i;
  }
  return both;
}

// Block scales are finite and not negative.
__device__ inline void check_block_scale(uint32_t e4m3, uint64_t* bad) {
  if (e4m3 >= 0x7F) count_bad(bad);
}

// Global scales are finite and positive.
__device__ inline void check_global_scale(float scale, uint64_t* bad) {
  if (!(scale > 0.0f) || isinf(scale)) count_bad(bad);
}

}  // namespace nvfp4
