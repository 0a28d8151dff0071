// SPDX-License-Identifier: Apache-2.0
// out[t] = sum over k of topk_weights[t, k] * y[row of (t, k)]: y is bf16, the sum f32, in order of k, rounded to bf16.
// Tokens with no expert here become 0.
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

// Columns `col` and on of a token; `slots` are its first ones.
__device__ void combine_columns(const CombineParams& p, int64_t token, const Slots& slots, int col) {
  const bool inside = col < p.hidden;
  float sum[kColumns] = {};
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

}  // namespace
}  // namespace nvfp4

// Grid: x strides over the columns, y over the chunk's tokens.
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 5) combine(const __grid_constant__ CombineParams p) {
  const int step = gridDim.x * blockDim.x * nvfp4::kColumns;
  const int64_t end = p.chunk_first_token[1];
  int64_t token = p.chunk_first_token[0] + blockIdx.y;
  if (token >= end) return nvfp4::pass_by();
  nvfp4::Slots slots = nvfp4::Slots::read(p, token, end, 0);
  nvfp4::follow_previous();  // routing was complete before it began
  for (; token < end; token += gridDim.y) {
    const nvfp4::Slots next = nvfp4::Slots::read(p, token + gridDim.y, end, 0);
    for (int first = blockIdx.x * blockDim.x * nvfp4::kColumns; first < p.hidden; first += step) {
      nvfp4::combine_columns(p, token, slots, first + threadIdx.x * nvfp4::kColumns);
    }
    slots = next;
  }
}
