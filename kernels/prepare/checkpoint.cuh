// SPDX-License-Identifier: Apache-2.0
// Reading a checkpoint's tensors. They may start at any byte.
#pragma once
#include <cstdint>

namespace nvfp4 {

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

}  // namespace nvfp4
