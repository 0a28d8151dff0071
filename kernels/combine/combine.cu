// out[t] = sum over k of topk_weights[t, k] * y[row of (t, k)]: y is bf16, the sum f32, in order of k, rounded to bf16.
// Tokens with no expert here become 0.
#include <cuda_bf16.h>

#include "../common/overlap.cuh"
#include "../common/tiles.cuh"
#include "../params.h"

namespace nvfp4 {
namespace {

constexpr int kColumns = COMBINE_COLUMNS;
constexpr int kBatch = 4;  // rows whose loads are in flight together

// Calls add(rows, weights, valid) for a token's routed slots in order, kBatch at a time, the first `valid` of which
// count. The whole warp takes part, a lane for each slot: reading them costs instructions, which this kernel is short
// of.
template <class Add>
__device__ void for_each_batch(const CombineParams& p, int64_t token, Add add) {
  const int lane = threadIdx.x % 32;
  for (int first = 0; first < p.top_k; first += 32) {
    const int k = first + lane;
    const int32_t own_row = k < p.top_k ? p.slot_to_row[token * p.top_k + k] : -1;
    const bool weighted = own_row >= 0 && p.topk_weights;
    const float own_weight = weighted ? p.topk_weights[token * p.topk_weights_row_stride + k] : 1.0f;
    uint32_t routed = __ballot_sync(~0u, own_row >= 0);
    while (routed) {
      int32_t row[kBatch];
      float weight[kBatch];
      const int valid = __popc(routed);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int from = __ffs(routed) - 1;  // -1 past the last: any lane's
        row[i] = __shfl_sync(~0u, own_row, from);
        weight[i] = __shfl_sync(~0u, own_weight, from);
        routed &= routed - 1;
      }
      add(row, weight, valid);
    }
  }
}

static_assert(kColumns * sizeof(__nv_bfloat16) == sizeof(uint4), "what a thread reads of a row at once");

// y has `num_cols` columns, from first_col of out on; `col` counts from there.
__device__ void combine_columns(const CombineParams& p, int64_t token, int first_col, int num_cols, int col) {
  const bool inside = col < num_cols;
  float sum[kColumns] = {};
  for_each_batch(p, token, [&](const int32_t (&row)[kBatch], const float (&weight)[kBatch], int valid) {
    uint4 y[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (i < valid && inside) {
        y[i] =
            *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(p.y) + int64_t{row[i]} * num_cols + col);
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
  });
  if (!inside) return;
  auto* out = static_cast<__nv_bfloat16*>(p.out) + token * p.out_row_stride + first_col + col;
  if (reinterpret_cast<uintptr_t>(out) % sizeof(uint4) == 0) {
    uint4 all;
    auto* const two = reinterpret_cast<__nv_bfloat162*>(&all);
#pragma unroll
    for (int j = 0; j < kColumns / 2; ++j) two[j] = __floats2bfloat162_rn(sum[2 * j], sum[2 * j + 1]);
    *reinterpret_cast<uint4*>(out) = all;
  } else {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) out[j] = __float2bfloat16_rn(sum[j]);
  }
}

}  // namespace
}  // namespace nvfp4

// Grid: x strides over the columns, y over the chunk's tokens.
extern "C" __global__ void __launch_bounds__(256) combine(const __grid_constant__ CombineParams p) {
  nvfp4::follow_previous();
  const nvfp4::MTiles m_tiles = nvfp4::MTiles::of(p.m_tiles);
  const int num_cols = m_tiles.columns(p.hidden);
  const int step = gridDim.x * blockDim.x * nvfp4::kColumns;
  for (int token = p.chunk_first_token[0] + blockIdx.y; token < p.chunk_first_token[1]; token += gridDim.y) {
    for (int first = blockIdx.x * blockDim.x * nvfp4::kColumns; first < num_cols; first += step) {
      nvfp4::combine_columns(p, token, m_tiles.first_column(), num_cols, first + threadIdx.x * nvfp4::kColumns);
    }
  }
}
