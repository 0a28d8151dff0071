// SPDX-License-Identifier: Apache-2.0
// Prefix sums over the lanes of a warp, and over the threads of a block for a few counters at once.
#pragma once
#include <cstdint>

namespace nvfp4 {

// The sum over this lane and those below it. All lanes take part.
__device__ inline int32_t warp_inclusive_scan(int32_t value) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int32_t below = __shfl_up_sync(~0u, value, step);
    if (lane >= step) value += below;
  }
  return value;
}

template <int kCounters>
struct Counts {
  int32_t v[kCounters];
};

// Replaces each lane's counts by the sums over the lanes before it; returns the sums over the warp.
template <int kCounters>
__device__ Counts<kCounters> warp_exclusive_scan(Counts<kCounters>& mine) {
  Counts<kCounters> all;
#pragma unroll
  for (int i = 0; i < kCounters; ++i) {
    const int32_t end = warp_inclusive_scan(mine.v[i]);
    mine.v[i] = end - mine.v[i];
    all.v[i] = __shfl_sync(~0u, end, 31);
  }
  return all;
}

// Replaces each thread's counts by the sums over the threads before it; returns the sums over all threads. The whole
// block takes part, blockDim.x a multiple of 32. `scratch` is shared memory and may be reused right after.
template <int kCounters>
__device__ Counts<kCounters> block_exclusive_scan(Counts<kCounters>& mine, Counts<kCounters> (&scratch)[33]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
  Counts<kCounters> sum;
#pragma unroll
  for (int i = 0; i < kCounters; ++i) sum.v[i] = warp_inclusive_scan(mine.v[i]);
  __syncthreads();
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  if (warp == 0) {
#pragma unroll
    for (int i = 0; i < kCounters; ++i) {
      const int32_t own = lane < num_warps ? scratch[lane].v[i] : 0, end = warp_inclusive_scan(own);
      scratch[lane].v[i] = end - own;
      if (lane == 31) scratch[32].v[i] = end;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCounters; ++i) mine.v[i] = sum.v[i] - mine.v[i] + scratch[warp].v[i];
  return scratch[32];
}

}  // namespace nvfp4
