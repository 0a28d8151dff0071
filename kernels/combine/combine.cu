// out[t] = sum over k of topk_weights[t, k] * y[row of (t, k)]: f32, in order of k, rounded once to bf16. Tokens with
// no expert here become 0.
#include <cuda_bf16.h>

#include "../common/overlap.cuh"
#include "../params.h"

namespace nvfp4 {
namespace {

constexpr int kColumns = 4;  // of one thread

__device__ void combine_columns(const CombineParams& p, int64_t token, int col) {
  float sum[kColumns] = {};
  for (int k = 0; k < p.top_k; ++k) {
    const int64_t row = p.slot_to_row[token * p.top_k + k];
    if (row < 0) continue;
    const float weight = p.topk_weights ? p.topk_weights[token * p.topk_weights_row_stride + k] : 1.0f;
    const float4 y = *reinterpret_cast<const float4*>(p.y + row * p.y_row_stride + col);
    sum[0] = fmaf(weight, y.x, sum[0]);
    sum[1] = fmaf(weight, y.y, sum[1]);
    sum[2] = fmaf(weight, y.z, sum[2]);
    sum[3] = fmaf(weight, y.w, sum[3]);
  }
  auto* out = static_cast<__nv_bfloat16*>(p.out) + token * p.out_row_stride + p.first_col + col;
  __nv_bfloat162 two[2] = {__floats2bfloat162_rn(sum[0], sum[1]), __floats2bfloat162_rn(sum[2], sum[3])};
  if (reinterpret_cast<uintptr_t>(out) % 8 == 0) {
    *reinterpret_cast<uint2*>(out) = *reinterpret_cast<const uint2*>(two);
  } else {
    for (int i = 0; i < kColumns; ++i) out[i] = __float2bfloat16_rn(sum[i]);
  }
}

}  // namespace
}  // namespace nvfp4

// Grid: x covers the columns, y strides over the chunk's tokens.
extern "C" __global__ void __launch_bounds__(256) combine(const __grid_constant__ CombineParams p) {
  nvfp4::follow_previous();
  const int col = (blockIdx.x * blockDim.x + threadIdx.x) * nvfp4::kColumns;
  if (col >= p.num_cols) return;
  for (int token = p.chunk_first_token[0] + blockIdx.y; token < p.chunk_first_token[1]; token += gridDim.y) {
    nvfp4::combine_columns(p, token, col);
  }
}
