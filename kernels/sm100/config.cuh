// SPDX-License-Identifier: Apache-2.0
// How a CTA divides its shared memory into stages and its tensor memory into columns. By the tile's rows, at run time:
// one kernel serves every size.
//
//   tensor memory   sums[2 or 1][halves][rows] | of each stage: scales of weights, scales of tokens
//   mode bf16       sums[2 or 1][halves][rows] | 8 pieces of weights: 128 rows x 64 columns of bf16
//
// A stage owns its scale columns: no copy overtakes the multiplication that reads them, an order that the PTX ISA does
// not promise (9.7.16.6.2).
#pragma once
#include "../common/tiles.cuh"
#include "layout.cuh"

namespace nvfp4::sm100 {

constexpr int kTmemColumns = 512;
constexpr int kMostStages = 8;
constexpr int kControlBytes = 1024;  // barriers, after the stages
constexpr int kScaleColumns = 4;     // of one step: 128 rows
constexpr int kPieces = 8;           // of dequantised weights
constexpr int kPieceColumns = kStepCols / 2;
constexpr int kRowStep = 64;  // tiles of an expert's rows start at multiples of this

struct Shape {
  int stages;
  int sums;           // sets of accumulators
  int stage_bytes;    // weights, then token rows, then their scales
  int rows_at;        // of a stage
  int row_scales_at;  // of a stage
  int scale_tiles;    // tiles of 128 token rows
  int operands_at;    // column of the first stage's scales, or of the first piece
  int stage_columns;  // of scales

  __host__ __device__ constexpr int sum_columns(int set, int halves, int half, int tile_rows) const {
    return (set * halves + half) * tile_rows;
  }
};

// `halves`: weight tiles of a CTA, 2 with a gate.
__host__ __device__ constexpr Shape shape_of(bool bf16, int halves, int tile_rows) {
  Shape s = {};
  s.scale_tiles = (tile_rows + 127) / 128;
  s.rows_at = halves * kTileBytes;
  s.row_scales_at = s.rows_at + tile_rows * kLineBytes * (bf16 ? kTileCols / kBf16Cols : 1);
  s.stage_bytes = s.row_scales_at + (bf16 ? 0 : s.scale_tiles * kTileSteps * kStepScaleBytes);
  s.stages = (GEMM_SM100_SHARED_BYTES - kControlBytes) / s.stage_bytes;
  if (s.stages > kMostStages) s.stages = kMostStages;
  s.stage_columns = bf16 ? 0 : (halves + s.scale_tiles) * kTileSteps * kScaleColumns;
  const int operands = bf16 ? kPieces * kPieceColumns : s.stages * s.stage_columns;
  s.sums = 2 * halves * tile_rows + operands <= kTmemColumns ? 2 : 1;
  s.operands_at = s.sums * halves * tile_rows;
  return s;
}

// Does it fit, with two stages or more?
__host__ __device__ constexpr bool fits(bool bf16, int halves, int tile_rows) {
  const Shape s = shape_of(bf16, halves, tile_rows);
  const int columns = s.operands_at + (bf16 ? kPieces * kPieceColumns : s.stages * s.stage_columns);
  return s.stages >= 2 && s.stage_bytes % 1024 == 0 && columns <= kTmemColumns;
}
static_assert(fits(false, 2, 64) && fits(false, 2, 128) && fits(false, 1, 256), "rust/cuda/sm100/tiles.rs has these");
static_assert(fits(true, 2, 64) && fits(true, 2, 128) && fits(true, 1, 128) && !fits(true, 1, 256), "");
static_assert(!fits(false, 2, 256), "");
static_assert(shape_of(false, 2, 64).sums == 2 && shape_of(false, 1, 128).sums == 2 && shape_of(true, 1, 128).sums == 2,
              "sums of one tile are stored while those of the next are made");

// Rows that the tensor core multiplies for a tile of so many.
__host__ __device__ constexpr int columns_of(bool bf16, int num_rows) {
  return bf16 ? (num_rows + 15) / 16 * 16 : (num_rows + 7) / 8 * 8;
}

// A warp's role.
enum Role {
  kEpilogue = 0,
  kProducer = 4,
  kMma = 5,
  kDequantise = 6
};  // first warps; epilogue has four, dequantise eight

}  // namespace nvfp4::sm100
