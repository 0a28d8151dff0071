// SPDX-License-Identifier: Apache-2.0
// What becomes of the sums. A thread holds weight rows g and g + 8 of its warp's 16, and of each 8 token rows 2c and 2c
// + 1 (g = lane / 4, c = lane % 4): the result fragment of wgmma, and of mma.sync with 16 weight rows.
#pragma once
#include <cuda_bf16.h>

#include "../tile_params.h"
#include "activation.cuh"
#include "gemm.cuh"
#include "overlap.cuh"
#include "ptx.cuh"
#include "tiles.cuh"

namespace nvfp4 {

// Values of two neighbouring weight rows.
struct Pair {
  float even, odd;

  // Lanes g and g ^ 1 swap, so that a thread stores two neighbours of one token row, 2c + g % 2, instead of one of two.
  __device__ static Pair transpose(float row_2c, float row_2c_1) {
    const bool is_odd = threadIdx.x & 4;
    const float other = __shfl_xor_sync(~0u, is_odd ? row_2c : row_2c_1, 4);
    return is_odd ? Pair{other, row_2c_1} : Pair{row_2c, other};
  }

  __device__ __nv_bfloat162 round() const { return __floats2bfloat162_rn(even, odd); }

  // Lanes of neighbouring pairs swap, so that four of them store 32 bytes of a token row, a whole sector, at once.
  // `low` and `high` are pairs of weight rows 8 apart. The four begin at first_of_four() of the warp's 16.
  __device__ static uint2 gather_four(const Pair& low, const Pair& high) {
    const bool takes_high = threadIdx.x & 8;
    const __nv_bfloat162 own_low = low.round(), own_high = high.round();
    const __nv_bfloat162 other = __shfl_xor_sync(~0u, takes_high ? own_low : own_high, 8);
    const __nv_bfloat162 four[2] = {takes_high ? other : own_low, takes_high ? own_high : other};
    return *reinterpret_cast<const uint2*>(four);
  }
  __device__ static int first_of_four() { return threadIdx.x % 32 / 16 * 4 + (threadIdx.x & 8); }
};

// Stores the sums of one tile of rows. Made before they are computed, so that what it reads comes meanwhile. C is the
// family's Config: kM warpgroups along the weight rows, of kGroupTiles tiles each, whose warps take 16 rows of each.
// Shared has `row_scale`, an array for each warp; or, kScalesByProducer, one for each tile in flight, which the
// producer fills before the tile's sums are complete. `stores` is false for a warp that will not store.
template <class C, Epilogue kEpilogue, class Shared>
class Output {
 public:
  __device__ Output(const GemmParams& p, const Tile& tile, Shared& shared, uint32_t scale_slot = 0, bool stores = true)
      : p_(p), tile_(tile), scale_slot_(scale_slot) {
    const int lane = threadIdx.x % 32;
    if constexpr (kEpilogue == Epilogue::kLinear) {
      const int m_tile = tile.first_m_tile + threadIdx.x / 128 % C::kM * C::kGroupTiles + lane / 16;
      const int own = m_tile * kTileRows + warp() * 16 + lane % 16;
      if (lane / 16 < C::kGroupTiles && own < p.features) {
        alpha_ = p.alphas[own];
        if (p.bias) bias_ = __bfloat162float(static_cast<const __nv_bfloat16*>(p.bias)[own]);
      }
    } else if (lane < 2) {
      const auto* alphas = reinterpret_cast<const uint8_t*>(p.alphas) + tile.expert * p.expert_stride;
      alpha_ = reinterpret_cast<const float*>(alphas)[is_gemm1(kEpilogue) ? lane : 0];
      if (may_have_bias() && p.bias && lane < C::kGroupTiles) {
        const int m_tile = tile.first_m_tile + threadIdx.x / 128 % C::kM * C::kGroupTiles + lane;
        const int first = is_gemm1(kEpilogue) ? first_feature(m_tile) : first_row(m_tile);
        if (first < p.features) ptx::prefetch(biases() + first);
        if (is_gemm1(kEpilogue) && first < p.features) ptx::prefetch(biases() + p.features + first);
      }
    }
    if (C::kScalesByProducer || !p.row_scale || !stores) return;
    wait_for_previous();  // which may have written them
    __syncwarp();         // the previous tile's have been read
    for (int r = lane; r < tile.num_rows; r += 32) {
      const int64_t row = tile.first_row + r;
      ptx::cp_async_4(ptx::shared_address(&shared.row_scale[threadIdx.x / 32][r]),
                      p.row_scale + (p.row_to_slot ? p.row_to_slot[row] / p.top_k : row));
    }
  }

  // `group_tile` counts the warpgroup's weight tiles.
  template <int kValues>
  __device__ void store(int m_tile, int group_tile, float (&acc)[kValues], const Shared& shared) const {
    if (p_.row_scale) scale_rows(acc, shared);
    if constexpr (is_gemm1(kEpilogue)) {
      activate_and_store(m_tile, acc);
    } else if constexpr (kEpilogue != Epilogue::kLinear) {
      finish_and_store(m_tile, acc);
    } else {
      store_linear(m_tile * kTileRows + warp() * 16 + Pair::first_of_four(), group_tile, acc);
    }
  }

 private:
  __device__ static constexpr bool may_have_bias() {
    return kEpilogue == Epilogue::kGemm1Any || kEpilogue == Epilogue::kGemm2Any;
  }
  __device__ static int warp() { return threadIdx.x % 128 / 32; }
  __device__ static int first_row(int m_tile) { return m_tile * kTileRows + warp() * 16; }
  __device__ static int first_feature(int m_tile) { return m_tile * (kTileRows / 2) + warp() * 8; }
  __device__ const __nv_bfloat16* biases() const {
    return reinterpret_cast<const __nv_bfloat16*>(static_cast<const uint8_t*>(p_.bias) +
                                                  tile_.expert * p_.expert_stride);
  }
  // Of one of `features` that begin at `first`, if there are biases.
  __device__ float bias_of(int first, int feature) const {
    return p_.bias && feature < p_.features ? __bfloat162float(biases()[first + feature]) : 0.0f;
  }
  __device__ static int first_even() { return threadIdx.x % 32 / 8 * 2; }
  __device__ static int token() { return threadIdx.x % 4 * 2 + threadIdx.x / 4 % 2; }  // first that this thread stores
  template <class T>
  __device__ T* at(int feature) const {
    return static_cast<T*>(p_.out) + (tile_.first_row + token()) * p_.out_row_stride + feature;
  }

  template <int kValues>
  __device__ void scale_rows(float (&acc)[kValues], const Shared& shared) const {
    if (!C::kScalesByProducer) {
      ptx::cp_async_wait_all();
      __syncwarp();
    }
    const uint32_t slot = C::kScalesByProducer ? scale_slot_ : threadIdx.x / 32;
#pragma unroll
    for (int j = 0; j < kValues / 4; ++j) {
      const float2 scale = *reinterpret_cast<const float2*>(&shared.row_scale[slot][8 * j + threadIdx.x % 4 * 2]);
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[4 * j + i] *= i % 2 == 0 ? scale.x : scale.y;
    }
  }

  // Calls put(element offset, acc[4 j ...]) for each 8 token rows; `valid` where this thread has one to store. All
  // lanes call.
  template <int kValues, class Put>
  __device__ void for_each_row(const float (&acc)[kValues], Put put) const {
#pragma unroll
    for (int j = 0; j < kValues / 4; ++j) {
      if (8 * j >= tile_.num_rows) return;
      put(8 * j * p_.out_row_stride, 8 * j + token() < tile_.num_rows, &acc[4 * j]);
    }
  }

  template <int kValues>
  __device__ void activate_and_store(int m_tile, const float (&acc)[kValues]) const {
    const float gate_alpha = __shfl_sync(~0u, alpha_, 0), up_alpha = __shfl_sync(~0u, alpha_, 1);
    const int feature = first_feature(m_tile) + first_even();
    if constexpr (kEpilogue == Epilogue::kGemm1) {
      store_h(feature, acc,
              [&](float gate, float up) { return swiglu(p_.activation, gate * gate_alpha, up * up_alpha); });
    } else {
      const int own = first_feature(m_tile) + threadIdx.x % 32 / 4;
      const float gate_bias = bias_of(0, own), up_bias = bias_of(p_.features, own);
      store_h(feature, acc, [&](float gate, float up) {
        return activate_gated(p_.activation, fmaf(gate, gate_alpha, gate_bias), fmaf(up, up_alpha, up_bias));
      });
    }
  }

  // finish(gate, up) is a value of h.
  template <int kValues, class Finish>
  __device__ void store_h(int feature, const float (&acc)[kValues], Finish finish) const {
    auto* const h = at<__nv_bfloat16>(feature);
    for_each_row(acc, [&](int64_t row, bool valid, const float* sum) {
      const Pair pair = Pair::transpose(finish(sum[0], sum[2]), finish(sum[1], sum[3]));
      if (valid && feature < p_.features) *reinterpret_cast<__nv_bfloat162*>(h + row) = pair.round();
    });
  }

  // GEMM2's results; or, by kGemm2Any, h of experts without a gate, whose weight rows are plain as well.
  template <int kValues>
  __device__ void finish_and_store(int m_tile, const float (&acc)[kValues]) const {
    const float alpha = __shfl_sync(~0u, alpha_, 0);
    const int feature = first_row(m_tile) + Pair::first_of_four();
    if constexpr (kEpilogue == Epilogue::kGemm2) {
      store_y(feature, acc, [&](float sum, float) { return sum * alpha; }, 0.0f, 0.0f);
    } else {
      const int own = first_row(m_tile) + threadIdx.x % 32 / 4;
      const auto finish = [&](float sum, float bias) {
        return activate_plain(p_.activation.kind, fmaf(sum, alpha, bias));
      };
      store_y(feature, acc, finish, bias_of(0, own), bias_of(0, own + 8));
    }
  }

  // finish(sum, bias) is a value of y; `low` and `high` are the biases of this thread's weight rows.
  template <int kValues, class Finish>
  __device__ void store_y(int feature, const float (&acc)[kValues], Finish finish, float low, float high) const {
    auto* const y = at<__nv_bfloat16>(feature);
    for_each_row(acc, [&](int64_t row, bool valid, const float* sum) {
      const uint2 four = Pair::gather_four(Pair::transpose(finish(sum[0], low), finish(sum[1], low)),
                                           Pair::transpose(finish(sum[2], high), finish(sum[3], high)));
      if (valid && feature < p_.features) *reinterpret_cast<uint2*>(y + row) = four;
    });
  }

  template <int kValues>
  __device__ void store_linear(int feature, int group_tile, const float (&acc)[kValues]) const {
    const int own =
        group_tile * 16 + threadIdx.x % 32 / 4;  // lane that holds the first weight row of this thread's sums
    const float alpha_low = __shfl_sync(~0u, alpha_, own), alpha_high = __shfl_sync(~0u, alpha_, own + 8);
    const float bias_low = __shfl_sync(~0u, bias_, own), bias_high = __shfl_sync(~0u, bias_, own + 8);
    // out is the caller's, and may begin anywhere.
    const bool aligned = (reinterpret_cast<uintptr_t>(p_.out) | p_.out_row_stride * 2) % 8 == 0;
    auto* const out = at<__nv_bfloat16>(feature);
    for_each_row(acc, [&](int64_t row, bool valid, const float* sum) {
      const uint2 four =
          Pair::gather_four(Pair::transpose(fmaf(sum[0], alpha_low, bias_low), fmaf(sum[1], alpha_low, bias_low)),
                            Pair::transpose(fmaf(sum[2], alpha_high, bias_high), fmaf(sum[3], alpha_high, bias_high)));
      if (!valid) return;
      if (aligned && feature + 4 <= p_.features) {
        *reinterpret_cast<uint2*>(out + row) = four;
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (feature + i < p_.features) out[row + i] = reinterpret_cast<const __nv_bfloat16*>(&four)[i];
        }
      }
    });
  }

  const GemmParams& p_;
  const Tile& tile_;
  const uint32_t scale_slot_;
  // Of the expert: gemm1 {gate, up}, gemm2 {down}, in lanes 0 and 1. Linear: of the warp's 16 weight rows in each tile.
  float alpha_ = 0.0f;
  float bias_ = 0.0f;
};

}  // namespace nvfp4
