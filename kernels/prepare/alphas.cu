// SPDX-License-Identifier: Apache-2.0
// What every family's products are multiplied by, and what is added to them, once at load.
#include <cuda_bf16.h>

#include "../common/format.cuh"
#include "../common/row_order.cuh"
#include "../params.h"

namespace nvfp4 {
namespace {

// What the block scales of a matrix lack where they are stored relative to the largest.
__device__ float stored_factor(const PrepareAlphaParams& p, const MatrixScales& scales) {
  if (scales.largest == 0) return 1.0f;
  const int more = p.rounded && e4m3_mantissa(scales.largest) > 1 ? 1 : 0;
  return exp2f(static_cast<float>(e4m3_exponent(scales.largest) - p.stored_exponent + more));
}

}  // namespace
}  // namespace nvfp4

extern "C" __global__ void prepare_alphas(const __grid_constant__ PrepareAlphaParams p) {
  using namespace nvfp4;
  const int expert = blockIdx.x * blockDim.x + threadIdx.x;
  if (expert >= p.num_local_experts) return;
  float* out = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(p.alphas) + expert * p.expert_stride);
  const int projections = p.row_order == ROWS_PLAIN ? 1 : 2;
  for (int i = 0; i <= projections; ++i) {
    const bool is_down = i == projections;
    const int at = is_down ? expert : projections * expert + (p.row_order == ROWS_UP_FIRST ? 1 - i : i);
    const float scale = is_down ? p.w2_global_scale[at] : p.w13_global_scale[at];
    const MatrixScales* counted = is_down ? p.w2_scales : p.w13_scales;
    out[i] = scale * p.factor * (counted ? stored_factor(p, counted[at]) : 1.0f);
  }
}

// Grid (blocks of threads, L).
extern "C" __global__ void prepare_biases(const __grid_constant__ PrepareBiasParams p) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  const int64_t expert = blockIdx.y;
  if (row >= p.rows) return;
  auto* out = reinterpret_cast<__nv_bfloat16*>(static_cast<uint8_t*>(p.out) + expert * p.expert_stride);
  const auto* bias = static_cast<const __nv_bfloat16*>(p.bias);
  out[row] = bias ? bias[expert * p.rows + nvfp4::checkpoint_row_of(p.row_order, row, p.rows)] : __nv_bfloat16{};
}

extern "C" __global__ void prepare_row_alphas(const __grid_constant__ PrepareRowAlphaParams p) {
  const float scale = p.global_scale[p.part];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < p.num_rows) p.row_alpha[p.first_row + i] = scale * p.factor;
}
