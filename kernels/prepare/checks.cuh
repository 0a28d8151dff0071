// The checkpoint's scales are checked while they are read: a bad one is counted, and prepare refuses.
#pragma once
#include "../params.h"

namespace nvfp4 {

__device__ inline void count_bad(uint64_t* bad) { atomicAdd(reinterpret_cast<unsigned long long*>(bad), 1ull); }

// Block scales are finite and not negative.
__device__ inline void check_block_scale(uint32_t e4m3, uint64_t* bad) {
  if (e4m3 >= 0x7F) count_bad(bad);
}

// Global scales are finite and positive.
__device__ inline void check_global_scale(float scale, uint64_t* bad) {
  if (!(scale > 0.0f) || isinf(scale)) count_bad(bad);
}

}  // namespace nvfp4
