// SPDX-License-Identifier: Apache-2.0
// Are a checkpoint's scales such as prepare takes? Asked before it writes, so that a refusal leaves the old weights.
// And do two families of kernels compute the same? Asked before one is used on a chip that it never ran on.
#include "../params.h"
#include "checkpoint.cuh"

namespace nvfp4 {
namespace {

// NaN and negative ones among four e4m3 bytes: those from 0x7F on.
__device__ uint32_t bad_of_four(uint32_t four) { return __popc(__vcmpgeu4(four, 0x7F7F7F7Fu)) / 8; }

// Of this thread's share.
__device__ uint32_t bad_block_scales(const CheckScalesParams& p, int64_t first, int64_t step) {
  const int64_t whole = p.num_block_scales / 8;
  uint32_t bad = 0;
  for (int64_t at = first; at < whole; at += step) {
    const uint2 eight = load_8_bytes(p.block_scale + 8 * at);
    bad += bad_of_four(eight.x) + bad_of_four(eight.y);
  }
  for (int64_t at = 8 * whole + first; at < p.num_block_scales; at += step) bad += p.block_scale[at] >= 0x7F;
  return bad;
}

__device__ uint32_t bad_global_scales(const CheckScalesParams& p, int64_t first, int64_t step) {
  uint32_t bad = 0;
  for (int64_t at = first; at < p.num_global_scales; at += step) {
    const float scale = p.global_scale[at];
    bad += !(scale > 0.0f && scale < 0x1p120f);
  }
  return bad;
}

}  // namespace
}  // namespace nvfp4

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) check_scales(const __grid_constant__ CheckScalesParams p) {
  using namespace nvfp4;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, step = int64_t{gridDim.x} * blockDim.x;
  const uint32_t bad = bad_block_scales(p, first, step) + bad_global_scales(p, first, step);
  const uint32_t of_warp = __reduce_add_sync(~0u, bad);
  if (threadIdx.x % 32 == 0 && of_warp != 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(p.bad_scales), static_cast<unsigned long long>(of_warp));
}

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) compare_values(const __grid_constant__ CompareParams p) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.num_values; i += step) {
    if (p.own[i] == p.portable[i]) continue;
    atomicAdd(&p.found->values, 1u);
    atomicMax(&p.found->first, static_cast<uint32_t>(p.num_values - i));
  }
}
