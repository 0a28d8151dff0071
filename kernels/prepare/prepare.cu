// Checkpoint weights into the layout of Blackwell, and the output factors of every layout, once at load.
#include "../common/format.cuh"
#include "../gemm_sm90/layout.cuh"
#include "checks.cuh"

namespace nvfp4 {
namespace {

__device__ void copy_codes(uint8_t* to, const uint8_t* from) {
  if (reinterpret_cast<uintptr_t>(from) % 8 == 0) {
    *reinterpret_cast<uint64_t*>(to) = *reinterpret_cast<const uint64_t*>(from);
  } else {
    for (int i = 0; i < 8; ++i) to[i] = from[i];
  }
}

// Mode fp8: what the stored block scales of gate, up or down lack.
__device__ float fp8_factor(const PrepareAlphaParams& p, int expert, int i) {
  const PartScales& part = i == 2 ? p.w2_parts[expert] : p.w13_parts[2 * expert + (p.up_first ? 1 - i : i)];
  return part.largest == 0 ? 1.0f : exp2f(static_cast<float>(e4m3_exponent(part.largest) - kFp8Largest));
}

}  // namespace
}  // namespace nvfp4

// One thread a block of 16, padding included; grid (blocks of threads, L).
extern "C" __global__ void __launch_bounds__(256) prepare_swizzled(const __grid_constant__ PrepareSwizzledParams p) {
  using namespace nvfp4;
  const int64_t num_blocks = p.cols / kBlockSize, padded_blocks = (num_blocks + 3) / 4 * 4;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, expert = blockIdx.y;
  const int64_t row = i / padded_blocks, b = i % padded_blocks;
  if (row >= (p.rows + 127) / 128 * 128) return;
  uint32_t scale = 0;
  if (row < p.rows && b < num_blocks) {
    const int64_t from = (expert * p.rows + (row + p.first_row) % p.rows) * num_blocks + b;
    copy_codes(p.out_codes + expert * p.expert_stride + (row * num_blocks + b) * 8, p.codes + from * 8);
    scale = p.block_scale[from];
    check_block_scale(scale, p.bad_scales);
  }
  p.out_block_scale[expert * p.expert_stride + sf_offset_128x4(row, b, num_blocks)] = static_cast<uint8_t>(scale);
}

extern "C" __global__ void prepare_alphas(const __grid_constant__ PrepareAlphaParams p) {
  using namespace nvfp4;
  const int expert = blockIdx.x * blockDim.x + threadIdx.x;
  if (expert >= p.num_local_experts) return;
  const float* w13 = p.w13_global_scale + 2 * expert;
  const float factors[3] = {w13[p.up_first ? 1 : 0], w13[p.up_first ? 0 : 1], p.w2_global_scale[expert]};
  float* out = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(p.alphas) + expert * p.expert_stride);
  for (int i = 0; i < 3; ++i) {
    nvfp4::check_global_scale(factors[i], p.bad_scales);
    out[i] = factors[i] * p.factor * (p.w13_parts ? fp8_factor(p, expert, i) : 1.0f);
  }
}

extern "C" __global__ void prepare_row_alphas(const __grid_constant__ PrepareRowAlphaParams p) {
  const float scale = p.global_scale[p.part];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i == 0) nvfp4::check_global_scale(scale, p.bad_scales);
  if (i < p.num_rows) p.row_alpha[p.first_row + i] = scale * p.factor;
}
