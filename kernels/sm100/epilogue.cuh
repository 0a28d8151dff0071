// SPDX-License-Identifier: Apache-2.0
// What becomes of the sums, by four warps. A thread has a feature: lane of tensor memory and row of the weight tile;
// with a gate, of both tiles. Eight token rows at a time.
#pragma once
#include <cuda_bf16.h>

#include "../common/activation.cuh"
#include "load.cuh"
#include "requantize.cuh"

namespace nvfp4::sm100 {

// Where results go: bf16 by rows; bf16 lines of token rows; e2m1 lines with their scales.
enum class Output { kRows, kBf16Lines, kNvfp4Lines };

template <class F, Output kOutput>
class Epilogue {
 public:
  __device__ explicit Epilogue(const Cta<F>& cta) : cta_(cta), p_(cta.p), sums_(cta.shape.sums) {}

  __device__ void run() {
    wait_for_previous();
    if constexpr (kOutput == Output::kNvfp4Lines) quant_ = QuantScale::from_global_scale(__ldcg(p_.out_scale));
    for_each_tile(cta_, [&](const Tile& tile) {
      const Factors factors(*this, tile);
      wait(cta_, cta_.control().sums_full, sums_.at, sums_.turn, SM100_BARRIER_SUMS_FULL);
      fence_after();
      for (int n = 0; n < tile.num_rows; n += 8) {
        float values[8];
        finish(tile, factors, n, values);
        store(tile, n, values);
      }
      fence_before();
      __syncwarp();
      if (threadIdx.x % 32 == 0) arrive(cta_.control().sums_empty[sums_.at]);
      sums_.advance();
    });
  }

 private:
  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int first_feature(const Tile& tile) { return tile.first_m_tile * kTileRows + warp() * 32; }
  __device__ static int feature(const Tile& tile) { return first_feature(tile) + threadIdx.x % 32; }

  // What a thread's sums are multiplied by and what is added, of each half.
  struct Factors {
    float alpha[F::kHalves], bias[F::kHalves];

    __device__ Factors(const Epilogue& e, const Tile& tile) {
      const GemmSm100Params& p = e.p_;
      const uint64_t expert = tile.expert * p.expert_stride;
      const auto* alphas = reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(p.alphas) + expert);
      const auto* biases = reinterpret_cast<const __nv_bfloat16*>(static_cast<const uint8_t*>(p.bias) + expert);
      const int at = feature(tile);
      const bool valid = at < p.features;
#pragma unroll
      for (int half = 0; half < F::kHalves; ++half) {
        alpha[half] = p.alpha_by_row ? (valid ? alphas[at] : 0.0f) : alphas[half];
        if (F::kBf16) alpha[half] *= kMissingFactor;
        bias[half] = p.bias && valid ? __bfloat162float(biases[half * p.features + at]) : 0.0f;
      }
    }
  };

  // Results of token rows n .. n + 7; 0 of what is no feature.
  __device__ void finish(const Tile& tile, const Factors& factors, int n, float (&values)[8]) const {
    __syncwarp();  // tcgen05.ld is for lanes that go together
    float sums[F::kHalves][8];
    const uint32_t lanes = static_cast<uint32_t>(warp() * 32) << 16;
#pragma unroll
    for (int half = 0; half < F::kHalves; ++half) tmem_load(sums[half], cta_.sums(sums_.at, half) + lanes + n);
#pragma unroll
    for (int half = 0; half < F::kHalves; ++half) tmem_wait_load(sums[half]);
    const bool valid = feature(tile) < p_.features;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int64_t row = tile.first_row + min(n + i, tile.num_rows - 1);
      const float scale = p_.row_scale ? p_.row_scale[row * p_.row_scale_stride] : 1.0f;
      float x[F::kHalves];
#pragma unroll
      for (int half = 0; half < F::kHalves; ++half) {
        x[half] = fmaf(sums[half][i] * scale, factors.alpha[half], factors.bias[half]);
      }
      float result;
      if constexpr (F::kHalves == 2) {
        result = activate_gated(p_.activation, x[0], x[1]);
      } else {
        result = activate_plain(p_.activation.kind, x[0]);
      }
      values[i] = valid && n + i < tile.num_rows ? result : 0.0f;
    }
  }

  __device__ void store(const Tile& tile, int n, const float (&values)[8]) const {
    if constexpr (kOutput == Output::kNvfp4Lines) {
      requantize(p_, tile, first_feature(tile), n, quant_, values);
    } else {
      const int at = feature(tile);
      const int end = kOutput == Output::kRows ? p_.features : (p_.features + kBf16Cols - 1) / kBf16Cols * kBf16Cols;
      const int rows = p_.pad_rows ? (tile.num_rows + 7) / 8 * 8 : tile.num_rows;
      if (at >= end) return;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int64_t row = tile.first_row + n + i;
        if (n + i >= rows) return;
        const __nv_bfloat16 value = __float2bfloat16_rn(values[i]);
        if constexpr (kOutput == Output::kRows) {
          static_cast<__nv_bfloat16*>(p_.out)[row * p_.out_row_stride + at] = value;
        } else {
          *reinterpret_cast<__nv_bfloat16*>(static_cast<uint8_t*>(p_.out) + row_bf16(row, at, p_.num_rows)) = value;
        }
      }
    }
  }

  const Cta<F>& cta_;
  const GemmSm100Params& p_;
  Ring sums_;
  QuantScale quant_ = {};
};

}  // namespace nvfp4::sm100
