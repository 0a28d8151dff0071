// SPDX-License-Identifier: Apache-2.0
// The output factors of every family, once at load.
#include "../common/format.cuh"
#include "../params.h"

namespace nvfp4 {
namespace {

// What the block scales of gate, up or down (matrix 0, 1, 2) lack where they are stored relative to the largest.
__device__ float stored_factor(const PrepareAlphaParams& p, int expert, int matrix) {
  const MatrixScales& scales =
      matrix == 2 ? p.w2_scales[expert] : p.w13_scales[2 * expert + (p.up_first ? 1 - matrix : matrix)];
  if (scales.largest == 0) return 1.0f;
  return exp2f(static_cast<float>(e4m3_exponent(scales.largest) - p.stored_exponent));
}

}  // namespace
}  // namespace nvfp4

extern "C" __global__ void prepare_alphas(const __grid_constant__ PrepareAlphaParams p) {
  using namespace nvfp4;
  const int expert = blockIdx.x * blockDim.x + threadIdx.x;
  if (expert >= p.num_local_experts) return;
  const float* w13 = p.w13_global_scale + 2 * expert;
  const float factors[3] = {w13[p.up_first ? 1 : 0], w13[p.up_first ? 0 : 1], p.w2_global_scale[expert]};
  float* out = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(p.alphas) + expert * p.expert_stride);
  for (int i = 0; i < 3; ++i) {
    out[i] = factors[i] * p.factor * (p.w13_scales ? stored_factor(p, expert, i) : 1.0f);
  }
}

extern "C" __global__ void prepare_row_alphas(const __grid_constant__ PrepareRowAlphaParams p) {
  const float scale = p.global_scale[p.part];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < p.num_rows) p.row_alpha[p.first_row + i] = scale * p.factor;
}
