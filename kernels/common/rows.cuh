// SPDX-License-Identifier: Apache-2.0
// Row-wise kernels: which rows there are, and whose tokens they belong to.
#pragma once
#include <cuda_bf16.h>

#include "../params.h"
#include "format.cuh"
#include "overlap.cuh"

namespace nvfp4 {

struct Row {
  bool visit;      // false: nothing reads this row
  int64_t source;  // row of the input, -1 for a row of zeros
  bool counts;     // false: another row counts the same input
};

// Follows the previous kernel, then calls body(row) for this block's share of the rows.
template <class Body>
__device__ void for_each_row_of_block(const RowSource& source, Body body) {
  if (!source.rows_known) follow_previous();
  const int32_t first = (source.first_row_on_device ? *source.first_row_on_device : 0) + blockIdx.x;
  const int32_t end = source.end_row_on_device ? *source.end_row_on_device : source.num_rows;
  if (source.rows_known) {
    if (first >= end) return pass_by();
    follow_previous();
  }
  for (int32_t row = first; row < end; row += gridDim.x) body(row);
}

__device__ inline Row row_at(const RowSource& source, int32_t row) {
  if (source.row_to_slot) {
    const int32_t slot = source.row_to_slot[row];
    if (slot < 0) return {true, -1, false};
    const int32_t token = slot / source.top_k;
    bool first = true;
    for (int32_t s = token * source.top_k; source.slot_to_row && s < slot; ++s) first &= source.slot_to_row[s] < 0;
    return {true, token, first};
  }
  if (source.slot_to_row) {
    bool routed = false;
    for (int k = 0; k < source.top_k; ++k) routed |= source.slot_to_row[int64_t{row} * source.top_k + k] >= 0;
    return {routed, row, true};
  }
  return {true, row, true};
}

// 16 neighbours of a bf16 row, which may start at any element.
__device__ inline void load_block(const __nv_bfloat16* at, float (&x)[kBlockSize]) {
  if (reinterpret_cast<uintptr_t>(at) % 16 == 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 v = reinterpret_cast<const uint4*>(at)[half];
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[half * 8 + 2 * i] = __uint_as_float(words[i] << 16);
        x[half * 8 + 2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 16; ++i) x[i] = __bfloat162float(at[i]);
  }
}

// Gives a bf16 row in blocks of 16.
struct LoadRow {
  const __nv_bfloat16* row;

  __device__ LoadRow(const void* x, int64_t row_stride, int64_t row)
      : row(static_cast<const __nv_bfloat16*>(x) + row * row_stride) {}
  __device__ void operator()(int b, float (&values)[kBlockSize]) const { load_block(row + b * kBlockSize, values); }
};

// The largest value over the block, in every thread. `scratch` is shared memory and may be reused right after.
__device__ inline float block_max(float value, float (&scratch)[32]) {
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  for (int w = 0; w < blockDim.x / 32; ++w) value = fmaxf(value, scratch[w]);
  return value;
}

// The largest finite magnitude of a block of 16.
__device__ inline float finite_amax(const float (&x)[kBlockSize]) {
  float amax = block_amax(x);
  if (isfinite(amax)) return amax;
  amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) amax = fmaxf(amax, isfinite(x[i]) ? fabsf(x[i]) : 0.0f);
  return amax;
}

// The largest finite magnitude of a row of blocks of 16, in every thread of the block; load(b, values) gives the b-th.
template <class Load>
__device__ inline float row_amax(int num_blocks, Load load, float (&scratch)[32]) {
  float amax = 0.0f;
  for (int b = threadIdx.x; b < num_blocks; b += blockDim.x) {
    float x[kBlockSize];
    load(b, x);
    amax = fmaxf(amax, finite_amax(x));
  }
  return block_max(amax, scratch);
}

}  // namespace nvfp4
