// SPDX-License-Identifier: Apache-2.0
// What mode fp8 asks of a checkpoint's block scales, counted before weights are prepared.
#include "../prepare/checkpoint.cuh"
#include "params.h"

namespace nvfp4 {
namespace {

// One scale more.
__device__ void add(MatrixScales& seen, uint32_t e4m3) {
  if (e4m3 == 0) return;
  seen.not_powers += e4m3 >= 8 ? e4m3 % 8 != 0 : (e4m3 & (e4m3 - 1)) != 0;
  seen.smallest = min(seen.smallest, e4m3);
  seen.largest = max(seen.largest, e4m3);
}

// Two neighbours, one of which is scale `at` of the matrix.
__device__ void compare(MatrixScales& seen, uint32_t first, uint32_t second, int64_t at, int64_t paired_row) {
  if (first == second || paired_row == 0) return;
  seen.unpaired = min(seen.unpaired, static_cast<uint32_t>(at / paired_row));
}

}  // namespace
}  // namespace nvfp4

// Grid (blocks of a matrix, experts, matrices of an expert).
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) part_scales(const __grid_constant__ MatrixScalesParams p) {
  using namespace nvfp4;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, step = int64_t{gridDim.x} * blockDim.x;
  const int64_t own = int64_t{blockIdx.y} * gridDim.z + blockIdx.z;
  const uint8_t* const scales =
      p.block_scale + (p.row_scales ? 2 * blockIdx.y * p.scales_each + blockIdx.z * p.row_scales : own * p.scales_each);
  MatrixScales seen = {0, 0x7F, 0, NO_ROW};
  for (int64_t at = first; p.row_scales && at < p.scales_each; at += step) {
    const uint8_t* const own = scales + at / p.row_scales * 2 * p.row_scales + at % p.row_scales;
    add(seen, *own);
    if (at % 2 != 0) compare(seen, own[-1], *own, at, p.paired_row);
  }
  for (int64_t at = first; !p.row_scales && at < p.scales_each / 8; at += step) {
    const uint2 eight = load_8_bytes(scales + 8 * at);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      add(seen, eight.x >> 8 * i & 0xFF);
      add(seen, eight.y >> 8 * i & 0xFF);
    }
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const uint32_t two = (i < 4 ? eight.x : eight.y) >> 8 * (i % 4);
      compare(seen, two & 0xFF, two >> 8 & 0xFF, 8 * at + i, p.paired_row);
    }
  }
  seen = {__reduce_add_sync(~0u, seen.not_powers), __reduce_min_sync(~0u, seen.smallest),
          __reduce_max_sync(~0u, seen.largest), __reduce_min_sync(~0u, seen.unpaired)};
  if (threadIdx.x % 32 != 0) return;
  MatrixScales& matrix = p.matrices[own];
  atomicAdd(&matrix.not_powers, seen.not_powers);
  atomicMin(&matrix.smallest, seen.smallest);
  atomicMax(&matrix.largest, seen.largest);
  if (seen.unpaired != NO_ROW) atomicMin(&matrix.unpaired, seen.unpaired);
}
