// SPDX-License-Identifier: Apache-2.0
// out[t] = sum over k of topk_weights[t, k] * y[row of (t, k)]: y is bf16, the sum f32, in order of k, rounded to bf16.
// combine begins the sum with 0, combine_shared with shared_output[t], which tokens with no expert here become.
#include <cuda_bf16.h>

#include "../common/overlap.cuh"
#include "../params.h"

namespace nvfp4 {
namespace {

constexpr int kColumns = COMBINE_COLUMNS;
constexpr int kBatch = 4;  // rows whose loads are in flight together

// Up to 32 slots of a token, one a lane: rows of y or -1, and weights. Reading them costs instructions and latency,
// which this kernel is short of, so that a token's are read once, and while the one before is summed.
struct Slots {
  int32_t row;
  float weight;

  // Of all lanes; `first` and on. A token past the end has none.
  __device__ static Slots read(const CombineParams& p, int64_t token, int64_t end, int first) {
    const int k = first + threadIdx.x % 32;
    Slots slots = {-1, 1.0f};
    if (k < p.top_k && token < end) {
      slots.row = p.slot_to_row[token * p.top_k + k];
      if (p.topk_weights) slots.weight = p.topk_weights[token * p.topk_weights_row_stride + k];
    }
    return slots;
  }

  // Calls add(rows, weights, valid) for those that are routed, in order, kBatch at a time, the first `valid` of which
  // count. The whole warp takes part.
  template <class Add>
  __device__ void for_each_batch(Add add) const {
    uint32_t routed = __ballot_sync(~0u, row >= 0);
    while (routed) {
      int32_t rows[kBatch];
      float weights[kBatch];
      const int valid = __popc(routed);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int from = __ffs(routed) - 1;  // -1 past the last: any lane's
        rows[i] = __shfl_sync(~0u, row, from);
        weights[i] = __shfl_sync(~0u, weight, from);
        routed &= routed - 1;
      }
      add(rows, weights, valid);
    }
  }
};

static_assert(kColumns * sizeof(__nv_bfloat16) == sizeof(uint4), "what a thread reads of a row at once");

// What the sums of columns `col` and on of a token begin with.
__device__ void read_shared(const CombineParams& p, int64_t token, int col, float (&sum)[kColumns]) {
  const auto* from = static_cast<const __nv_bfloat16*>(p.shared_output) + token * p.shared_output_row_stride + col;
  const auto stride = static_cast<uintptr_t>(p.shared_output_row_stride) * sizeof(*from);
  if ((reinterpret_cast<uintptr_t>(p.shared_output) | stride) % sizeof(uint4) == 0) {
    const uint4 all = __ldcs(reinterpret_cast<const uint4*>(from));  // read once
    const auto* const two = reinterpret_cast<const __nv_bfloat162*>(&all);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) sum[j] = j % 2 ? __high2float(two[j / 2]) : __low2float(two[j / 2]);
  } else {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) sum[j] = __bfloat162float(from[j]);
  }
}

// Columns `col` and on of a token; `slots` are its first ones.
template <bool kShared>
__device__ void combine_columns(const CombineParams& p, int64_t token, const Slots& slots, int col) {
  const bool inside = col < p.hidden;
  float sum[kColumns] = {};
  if (kShared && inside) read_shared(p, token, col, sum);
  const auto add = [&](const int32_t (&row)[kBatch], const float (&weight)[kBatch], int valid) {
    uint4 y[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (i < valid && inside) {
        y[i] =
            *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(p.y) + int64_t{row[i]} * p.hidden + col);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (i >= valid) break;
      const auto* const two = reinterpret_cast<const __nv_bfloat162*>(&y[i]);
#pragma unroll
      for (int j = 0; j < kColumns / 2; ++j) {
        sum[2 * j] = fmaf(weight[i], __low2float(two[j]), sum[2 * j]);
        sum[2 * j + 1] = fmaf(weight[i], __high2float(two[j]), sum[2 * j + 1]);
      }
    }
  };
  for (int k = 0; k < p.top_k; k += 32) (k == 0 ? slots : Slots::read(p, token, token + 1, k)).for_each_batch(add);
  if (!inside) return;
  auto* out = static_cast<__nv_bfloat16*>(p.out) + token * p.out_row_stride + col;
  if (reinterpret_cast<uintptr_t>(out) % sizeof(uint4) == 0) {
    uint4 all;
    auto* const two = reinterpret_cast<__nv_bfloat162*>(&all);
#pragma unroll
    for (int j = 0; j < kColumns / 2; ++j) two[j] = __floats2bfloat162_rn(sum[2 * j], sum[2 * j + 1]);
    __stcs(reinterpret_cast<uint4*>(out), all);  // out is large and read late: y stays in L2 instead
  } else {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) out[j] = __float2bfloat16_rn(sum[j]);
  }
}

// All blocks of a launch: x strides over the columns, y over the chunk's tokens.
template <bool kShared>
__device__ void combine_tokens(const CombineParams& p) {
  const int step = gridDim.x * blockDim.x * kColumns;
  const int64_t end = p.chunk_first_token[1];
  int64_t token = p.chunk_first_token[0] + blockIdx.y;
  if (token >= end) return pass_by();
  Slots slots = Slots::read(p, token, end, 0);
  follow_previous();  // routing was complete before it began
  for (; token < end; token += gridDim.y) {
    const Slots next = Slots::read(p, token + gridDim.y, end, 0);
    for (int first = blockIdx.x * blockDim.x * kColumns; first < p.hidden; first += step) {
      combine_columns<kShared>(p, token, slots, first + threadIdx.x * kColumns);
    }
    slots = next;
  }
}

}  // namespace
}  // namespace nvfp4

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 5) combine(const __grid_constant__ CombineParams p) {
  nvfp4::combine_tokens<false>(p);
}

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 5) combine_shared(const __grid_constant__ CombineParams p) {
  nvfp4::combine_tokens<true>(p);
}
