// A block-wide exclusive prefix sum of a few counters at once.
#pragma once
#include <cstdint>

namespace nvfp4 {

template <int kCounters>
struct Counts {
  int32_t v[kCounters];
};

// Replaces each thread's counts by the sums over the threads before it; returns the sums over all threads. The whole
// block takes part, blockDim.x a multiple of 32. `scratch` is shared memory and may be reused right after.
template <int kCounters>
__device__ Counts<kCounters> block_exclusive_scan(Counts<kCounters>& mine, Counts<kCounters> (&scratch)[33]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
  Counts<kCounters> sum = mine;
#pragma unroll
  for (int i = 0; i < kCounters; ++i) {
    for (int step = 1; step < 32; step *= 2) {
      const int32_t below = __shfl_up_sync(~0u, sum.v[i], step);
      if (lane >= step) sum.v[i] += below;
    }
  }
  __syncthreads();
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    Counts<kCounters> total = {};
    for (int w = 0; w < num_warps; ++w) {
      const Counts<kCounters> own = scratch[w];
      scratch[w] = total;
      for (int i = 0; i < kCounters; ++i) total.v[i] += own.v[i];
    }
    scratch[32] = total;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCounters; ++i) mine.v[i] = sum.v[i] - mine.v[i] + scratch[warp].v[i];
  return scratch[32];
}

}  // namespace nvfp4
