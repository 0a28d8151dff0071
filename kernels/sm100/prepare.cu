// SPDX-License-Identifier: Apache-2.0
// Checkpoint weights into tiles, once at load.
#include "../common/row_order.cuh"
#include "../prepare/checkpoint.cuh"
#include "layout.cuh"
#include "params.h"

namespace nvfp4::sm100 {
namespace {

constexpr int kUnits = kLineBytes / 16;  // of a tile's row
constexpr int kUnitCols = kTileCols / kUnits;

// The checkpoint's row that is row `row` of tile `m`; -1 in the padding. With a gate tiles of gate and up take turns.
__device__ int checkpoint_row(const PrepareSm100Params& p, int m, int row) {
  if (p.row_order == ROWS_PLAIN) {
    const int at = m * kTileRows + row;
    return at < p.source.rows ? at : -1;
  }
  const int features = p.source.rows / 2, feature = m / 2 * kTileRows + row;
  return feature < features ? projection_row(p.row_order, m % 2 != 0, feature, features) : -1;
}

__device__ void copy_unit(const PrepareSm100Params& p, int64_t first_row, int slab, int row, int from, int unit,
                          uint8_t* tile) {
  const int col = slab * kTileCols + unit * kUnitCols;
  uint2 halves[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (from < 0 || col + 16 * i >= p.source.cols) continue;
    halves[i] = load_8_bytes(p.source.codes + (first_row + from) * (p.source.cols / 2) + col / 2 + 8 * i);
  }
  *reinterpret_cast<uint4*>(tile + tile_code(row, unit * kUnitCols)) =
      make_uint4(halves[0].x, halves[0].y, halves[1].x, halves[1].y);
}

// Four neighbours, of which `num` are there; the others are 0.
__device__ uint32_t load_scales(const uint8_t* at, int num) {
  if (num >= 4 && reinterpret_cast<uintptr_t>(at) % 4 == 0) return *reinterpret_cast<const uint32_t*>(at);
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) word |= i < num ? uint32_t{at[i]} << (8 * i) : 0;
  return word;
}

__device__ void copy_scales_of_step(const PrepareSm100Params& p, int64_t first_row, int slab, int row, int from,
                                    int step, uint8_t* tile) {
  const int num_blocks = p.source.cols / kBlockSize, block = (slab * kTileSteps + step) * 4;
  const uint8_t* const at = p.source.block_scale + (first_row + from) * num_blocks + block;
  *reinterpret_cast<uint32_t*>(tile + tile_scale(row, 4 * step)) = from < 0 ? 0 : load_scales(at, num_blocks - block);
}

}  // namespace
}  // namespace nvfp4::sm100

// Grid (slabs, tiles of rows, L).
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS)
    prepare_sm100(const __grid_constant__ PrepareSm100Params p) {
  using namespace nvfp4::sm100;
  const int slab = blockIdx.x, m = blockIdx.y;
  const bool is_gated = p.row_order != ROWS_PLAIN;
  const int64_t first_row = int64_t{blockIdx.z} * p.source.rows;
  uint8_t* const tile =
      p.tiles + blockIdx.z * p.source.expert_stride +
      (is_gated ? tile_offset(m / 2, slab, p.num_slabs, 2, m % 2) : tile_offset(m, slab, p.num_slabs, 1, 0));
#pragma unroll 4
  for (int i = threadIdx.x; i < kTileRows * kUnits; i += BLOCK_THREADS) {
    const int row = i / kUnits;
    copy_unit(p, first_row, slab, row, checkpoint_row(p, m, row), i % kUnits, tile);
  }
  for (int i = threadIdx.x; i < kTileRows * kTileSteps; i += BLOCK_THREADS) {
    const int row = i / kTileSteps;
    copy_scales_of_step(p, first_row, slab, row, checkpoint_row(p, m, row), i % kTileSteps, tile);
  }
}
