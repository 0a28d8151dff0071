// SPDX-License-Identifier: Apache-2.0
// The grouped GEMM of any GPU: out = rows x weights^T, in the layouts of Blackwell. The oracle on a device, and the
// stand-in by which all of Blackwell's pipeline runs on other GPUs. Plain first: a tile of both operands is decoded to
// bf16 in shared memory, exactly, and multiplied by mma.sync with f32 sums in order of K.
//
//   for each tile of 64 rows x 64 features:
//     for each slab of 64 columns:  fill(rows), fill(weights), multiply()
//     store(): sums * (global scale of the row * alpha of the feature)
#include "../common/overlap.cuh"
#include "../common/tiles.cuh"
#include "operands.cuh"
#include "params.h"

namespace nvfp4 {
namespace {

constexpr int kTile = GEMM_PORTABLE_TILE;
constexpr int kSlabBlocks = 4;                   // blocks of 16 columns held at a time
constexpr int kThreads = GEMM_PORTABLE_THREADS;  // four warps, 32 rows x 32 features each
static_assert(kTile == 64 && kThreads == 128, "four quarters of a tile");
constexpr int kPitch = kSlabBlocks * kBlockSize + 8;  // the 8 rows x 4 words of a fragment fall on 32 banks

struct SharedTile {
  __nv_bfloat16 values[kTile][kPitch];

  __device__ uint32_t pair(int row, int col) const { return *reinterpret_cast<const uint32_t*>(&values[row][col]); }
};

// kSlabBlocks blocks of up to 64 rows; zeros past num_rows and past the last block.
template <class Rows>
__device__ void fill(SharedTile& shared, const Rows& rows, int64_t first_row, int num_rows, int first_block,
                     int num_blocks) {
  for (int i = threadIdx.x; i < kTile * kSlabBlocks; i += kThreads) {
    const int r = i / kSlabBlocks, b = i % kSlabBlocks;
    float x[kBlockSize] = {};
    if (r < num_rows && first_block + b < num_blocks) rows.load(first_row + r, first_block + b, x);
    auto* to = reinterpret_cast<__nv_bfloat162*>(&shared.values[r][b * kBlockSize]);
#pragma unroll
    for (int j = 0; j < kBlockSize / 2; ++j) to[j] = __floats2bfloat162_rn(x[2 * j], x[2 * j + 1]);
  }
}

// acc += a x b^T for 16 rows, 8 features, 16 columns. Source: PTX ISA, mma.m16n8k16 with .bf16.
__device__ void mma(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A warp's 32 rows x 32 features: acc[i][j] are rows 16 i + g and + 8, features 8 j + 2 c and + 1.
using Sums = float[2][4][4];

struct Lane {
  int first_row, first_feature, g, c;

  __device__ Lane()
      : first_row(threadIdx.x / 64 * 32),
        first_feature(threadIdx.x / 32 % 2 * 32),
        g(threadIdx.x % 32 / 4),
        c(threadIdx.x % 4) {}
};

__device__ void multiply(const SharedTile& rows, const SharedTile& weights, const Lane& lane, Sums& acc) {
#pragma unroll
  for (int k = 0; k < kSlabBlocks * kBlockSize; k += 16) {
    const int col = k + 2 * lane.c;
    uint32_t a[2][4], b[4][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = lane.first_row + 16 * i + lane.g;
      a[i][0] = rows.pair(r, col);
      a[i][1] = rows.pair(r + 8, col);
      a[i][2] = rows.pair(r, col + 8);
      a[i][3] = rows.pair(r + 8, col + 8);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      b[j][0] = weights.pair(lane.first_feature + 8 * j + lane.g, col);
      b[j][1] = weights.pair(lane.first_feature + 8 * j + lane.g, col + 8);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) mma(acc[i][j], a[i], b[j]);
    }
  }
}

__device__ void store(const PortableGemmParams& p, const float* alphas, int64_t row, int feature, float sum) {
  const float global_scale = p.x_global_scale ? p.x_global_scale[row] : 1.0f;
  const float alpha = alphas[feature / p.alpha_features], both = global_scale * alpha;
  // Where both factors together overflow, a sum of 0 is still 0.
  const float factor = isinf(both) ? alpha : both;
  if (isinf(both)) sum *= global_scale;
  if (p.sums) {
    p.sums[row * p.out_row_stride + feature] = sum * factor;
  } else {
    const auto* bias = static_cast<const __nv_bfloat16*>(p.bias);
    const float value = fmaf(sum, factor, bias ? __bfloat162float(bias[feature]) : 0.0f);
    static_cast<__nv_bfloat16*>(p.out)[row * p.out_row_stride + feature] = __float2bfloat16_rn(value);
  }
}

__device__ void store_tile(const PortableGemmParams& p, const Tile& tile, const Lane& lane, const Sums& acc) {
  const float* alphas =
      reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(p.alphas) + tile.expert * p.expert_stride);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int r = lane.first_row + 16 * i + lane.g + v / 2 * 8;
        const int feature = tile.first_m_tile * kTile + lane.first_feature + 8 * j + 2 * lane.c + v % 2;
        if (r < tile.num_rows && feature < p.features) store(p, alphas, tile.first_row + r, feature, acc[i][j][v]);
      }
    }
  }
}

template <class Rows>
__device__ void gemm(const PortableGemmParams& p, const Rows& rows) {
  __shared__ SharedTile shared_rows, shared_weights;
  const Lane lane;
  const int num_blocks = p.k / kBlockSize;
  for_each_tile<1>(p.list, [&](const Tile& tile) {
    const uint64_t expert = tile.expert * p.expert_stride;
    const Nvfp4Rows weights{reinterpret_cast<const uint64_t*>(p.codes + expert), p.block_scale + expert, num_blocks};
    const int first_feature = tile.first_m_tile * kTile;
    Sums acc = {};
    for (int b = 0; b < num_blocks; b += kSlabBlocks) {
      fill(shared_rows, rows, tile.first_row, tile.num_rows, b, num_blocks);
      fill(shared_weights, weights, first_feature, p.features - first_feature, b, num_blocks);
      __syncthreads();
      multiply(shared_rows, shared_weights, lane, acc);
      __syncthreads();
    }
    store_tile(p, tile, lane, acc);
  });
}

}  // namespace
}  // namespace nvfp4

extern "C" __global__ void __launch_bounds__(GEMM_PORTABLE_THREADS)
    gemm_portable_bf16(const __grid_constant__ PortableGemmParams p) {
  nvfp4::follow_previous();
  nvfp4::gemm(p, nvfp4::Bf16Rows{static_cast<const __nv_bfloat16*>(p.x), p.x_row_stride, p.row_to_slot, p.top_k});
}

extern "C" __global__ void __launch_bounds__(GEMM_PORTABLE_THREADS)
    gemm_portable_nvfp4(const __grid_constant__ PortableGemmParams p) {
  nvfp4::follow_previous();
  nvfp4::gemm(p, nvfp4::Nvfp4Rows{static_cast<const uint64_t*>(p.x), p.x_block_scale, p.k / nvfp4::kBlockSize});
}
