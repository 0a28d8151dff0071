// What becomes of the accumulators. A thread holds weight rows g and g + 8 of its warp's 16, and of each 8 token rows two.
#pragma once
#include "../common/swiglu.cuh"
#include "mma.cuh"

namespace nvfp4 {

// Calls visit(row, row_scale, i) for this thread's token rows; acc[i] and acc[i + 2] are its weight rows g and g + 8.
template <int kValues, class Visit>
__device__ void for_each_row(const GemmParams& p, const Tile& tile, Visit visit) {
  const int c = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < kValues / 4; ++j) {
    if (8 * j >= tile.num_rows) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = 8 * j + 2 * c + i;
      if (r >= tile.num_rows) continue;
      const int64_t row = tile.first_row + r;
      float row_scale = 1.0f;
      if (p.row_scale) row_scale = p.row_scale[p.row_to_slot ? p.row_to_slot[row] / p.top_k : row];
      visit(row, row_scale, 4 * j + i);
    }
  }
}

__device__ inline int warp_in_group() { return threadIdx.x % 128 / 32; }
__device__ inline int row_in_warp() { return threadIdx.x % 32 / 4; }

__device__ inline const float* expert_alphas(const GemmParams& p, const Tile& tile) {
  return reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(p.alphas) + tile.expert * p.expert_stride);
}

template <Epilogue kEpilogue, int kValues>
__device__ void store(const GemmParams& p, const Tile& tile, int m_tile, const float (&acc)[kValues]) {
  if constexpr (kEpilogue == Epilogue::kGemm1) {
    const int feature = m_tile * (kTileRows / 2) + warp_in_group() * 8 + row_in_warp();
    if (feature >= p.features) return;
    const float* alphas = expert_alphas(p, tile);
    const float gate_alpha = alphas[0], up_alpha = alphas[1];
    auto* h = static_cast<__nv_bfloat16*>(p.out);
    for_each_row<kValues>(p, tile, [&](int64_t row, float row_scale, int i) {
      const float value = swiglu(p.swiglu, acc[i] * (row_scale * gate_alpha), acc[i + 2] * (row_scale * up_alpha));
      h[row * p.out_row_stride + feature] = __float2bfloat16_rn(value);
    });
  } else {
    const int feature = m_tile * kTileRows + warp_in_group() * 16 + row_in_warp();
    const bool has_low = feature < p.features, has_high = feature + 8 < p.features;
    if constexpr (kEpilogue == Epilogue::kGemm2) {
      const float alpha = expert_alphas(p, tile)[0];
      // y holds the columns of this launch only.
      float* y = static_cast<float*>(p.out) + (feature - p.list.first_m_tile * kTileRows);
      for_each_row<kValues>(p, tile, [&](int64_t row, float row_scale, int i) {
        if (has_low) y[row * p.out_row_stride] = acc[i] * (row_scale * alpha);
        if (has_high) y[row * p.out_row_stride + 8] = acc[i + 2] * (row_scale * alpha);
      });
    } else {
      const auto* bias = static_cast<const __nv_bfloat16*>(p.bias);
      const float alpha_low = has_low ? p.alphas[feature] : 0.0f, alpha_high = has_high ? p.alphas[feature + 8] : 0.0f;
      const float bias_low = bias && has_low ? __bfloat162float(bias[feature]) : 0.0f;
      const float bias_high = bias && has_high ? __bfloat162float(bias[feature + 8]) : 0.0f;
      auto* out = static_cast<__nv_bfloat16*>(p.out) + feature;
      for_each_row<kValues>(p, tile, [&](int64_t row, float row_scale, int i) {
        if (has_low) out[row * p.out_row_stride] = __float2bfloat16_rn(fmaf(acc[i], row_scale * alpha_low, bias_low));
        if (has_high) out[row * p.out_row_stride + 8] = __float2bfloat16_rn(fmaf(acc[i + 2], row_scale * alpha_high, bias_high));
      });
    }
  }
}

}  // namespace nvfp4
