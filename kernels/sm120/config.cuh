// SPDX-License-Identifier: Apache-2.0
// What a GEMM kernel of compute capability 12.x is made of: tile, warps, shared memory. One instance a row-tile size;
// rust/cuda/sm120/tiles.rs chooses.
#pragma once
#include "layout.cuh"
#include "params.h"

namespace nvfp4::sm120 {

// What token rows are: NVFP4, which the tensor core multiplies as it is; or bf16, to which weights are dequantised.
enum class Rows { kNvfp4, kBf16 };

// A CTA multiplies two weight tiles of 64 rows with kN token rows. Its consumer warps take 16 rows of each tile and all
// token rows, or half of them where they are many; memory is what these GPUs are short of, not instructions.
template <int kN_, Rows kRows_, bool kKeepsH>
struct Config {
  static constexpr int kN = kN_;  // token rows of a tile
  static constexpr Rows kRows = kRows_;
  static constexpr bool kIsNvfp4 = kRows == Rows::kNvfp4;
  static constexpr bool kScalesByProducer = false;
  static constexpr int kTiles = 2;               // weight tiles of a CTA, and of each warp
  static constexpr int kM = 1, kGroupTiles = 2;  // as the epilogue (../common/epilogue.cuh) counts them
  static constexpr int kSplit = kN >= GEMM_SM120_WIDE_ROWS ? 2 : 1;  // groups of warps along the token rows
  static constexpr int kWarpRows = kN / kSplit;                      // token rows of a warp
  static constexpr int kConsumers = 128 * kSplit;
  static constexpr int kProducers = 128;
  static constexpr int kThreads = kConsumers + kProducers;
  // h of a tile, before it is quantised: 64 features of each row, and 8 more, so that rows lie in different banks.
  static constexpr int kHStride = 72;
  static constexpr int kHBytes = kKeepsH ? kN * kHStride * 2 : 0;
  static constexpr int kOtherBytes = kHBytes + kConsumers / 32 * kWarpRows * 4 + kN * 4 + 1024;
  // Of a token row in a slab: codes and block scales, or bf16.
  static constexpr int kRowBytes = kIsNvfp4 ? kSlabCols / 2 : kSlabCols * 2;
  static constexpr int kSlabBytes = kTiles * kTileBytes + kN * (kRowBytes + (kIsNvfp4 ? 4 : 0));
  static constexpr int stages_of(int slabs) {
    return (GEMM_SM120_SHARED_BYTES - kOtherBytes) / (slabs * kSlabBytes + 16);
  }
  // Slabs of a pipeline stage: as many as leave four stages.
  static constexpr int kSlabs = stages_of(4) >= 4 ? 4 : stages_of(2) >= 4 ? 2 : 1;
  static constexpr int kStages = stages_of(kSlabs) < 8 ? stages_of(kSlabs) : 8;
  // Token rows lie in lines: one of a whole stage in mode nvfp4, one a slab in mode bf16.
  static constexpr int kLines = kIsNvfp4 ? 1 : kSlabs;
  static constexpr int kLineBytes = kRowBytes * kSlabs / kLines;
};

template <int kN, Rows kRows, Epilogue kEpilogue>
struct ConfigOf : Config<kN, kRows, kRows == Rows::kNvfp4 && is_gemm1(kEpilogue)> {};

template <class C>
struct SharedStorage {
  alignas(128) uint8_t tiles[C::kStages][C::kTiles][C::kSlabs * kTileBytes];
  alignas(128) uint8_t rows[C::kStages][C::kLines][C::kN * C::kLineBytes];  // RowPlace's layout
  uint32_t scales[C::kIsNvfp4 ? C::kStages : 1][C::kSlabs][C::kN];          // four block scales of a row in a slab
  alignas(16) uint8_t h[C::kHBytes > 0 ? C::kHBytes : 16];
  float row_scale[C::kConsumers / 32][C::kWarpRows];  // of a warp's token rows
  int32_t source[C::kN];                              // rows of x that the tile's rows read
  uint64_t full[C::kStages];
  uint64_t empty[C::kStages];
};

template <class C>
constexpr bool kFitsLaunch =
    C::kThreads == (C::kN >= GEMM_SM120_WIDE_ROWS ? GEMM_SM120_WIDE_THREADS : GEMM_SM120_THREADS) && C::kStages >= 4 &&
    sizeof(SharedStorage<C>) <= GEMM_SM120_SHARED_BYTES;

}  // namespace nvfp4::sm120
