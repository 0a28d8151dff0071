// SPDX-License-Identifier: Apache-2.0
// What a GEMM kernel is made of: tile, warps, shared memory. One instance a row-tile size; rust/cuda/tiles.rs chooses.
#pragma once
#include <type_traits>

#include "../common/tiles.cuh"
#include "layout.cuh"
#include "params.h"

namespace nvfp4 {

// A CTA multiplies kTiles weight tiles of 64 rows with kN token rows. kM x kK warpgroups compute, each kTiles / kM
// tiles: those along K take slabs in turn and are summed at the end, so that few tokens, which need few CTAs, still
// have enough warps to dequantise.
template <int kN_, int kTiles_, int kM_, int kK_, int kSlabs_, int kColumnBytes_>
struct Config {
  static constexpr int kN = kN_;                          // token rows of a tile
  static constexpr int kTiles = kTiles_;                  // weight tiles of a CTA
  static constexpr int kM = kM_;                          // warpgroups along the weight rows
  static constexpr int kK = kK_;                          // warpgroups along the reduction
  static constexpr int kGroupTiles = kTiles / kM;         // weight tiles of a warpgroup
  static constexpr int kSlabs = kSlabs_;                  // slabs of 64 columns in a pipeline stage
  static constexpr int kGroupSlabs = kSlabs / kK;         // of these, a warpgroup's; in one run
  static constexpr int kColumnBytes = kColumnBytes_;      // of a column of a token row: bf16, or e4m3
  static constexpr int kLineSlabs = 2 / kColumnBytes;     // slabs in 128 bytes of a row
  static constexpr int kLines = kSlabs / kLineSlabs;      // of a row in a stage
  static constexpr int kSteps = kSlabSteps / kLineSlabs;  // of the tensor core in a slab
  static constexpr bool kRounded = false;                 // mode fp8: block scales of any value, in no pairs
  static constexpr int kTileBytes = kColumnBytes == 1 ? kPairedTileBytes : nvfp4::kTileBytes;  // of a slab
  static constexpr bool kByWarps = kColumnBytes == 1;  // how warps look for their next tile (for_each_tile)
  static constexpr int kNarrow = kN;                   // columns of a tile that has no more rows
  static constexpr int kConsumers = kM * kK * 128;
  static constexpr int kProducers = 128;
  static constexpr int kThreads = kProducers + kConsumers;
  static constexpr int kPartialBytes = (kK - 1) * kM * kN * 256;  // sums of warpgroups along K
  static constexpr int kStageBytes = kLines * kN * 128 + kSlabs * kTiles * kTileBytes;
  // Scales of token rows: of e4m3 rows the producer copies them ahead with the rows, since what it takes to find them
  // would hold up consumers at the start of each tile; else each warp those of its tile.
  static constexpr bool kScalesByProducer = kColumnBytes == 1;
  static constexpr int kScaleSlots = kScalesByProducer ? 8 : kConsumers / 32;
  static constexpr int kScaleBytes = kScaleSlots * kN * 4;
  static constexpr int kRingBytes = GEMM_SM90_SHARED_BYTES - kPartialBytes - kScaleBytes - 1024;
  static constexpr int kStages = kRingBytes / (kStageBytes + 16);
  // Registers of a thread. setmaxnreg deals out what the CTA was launched with: 512 * 104 + 128 * 64 = 640 * 96, and
  // 256 * 208 + 128 * 88 = 256 * 200 + 128 * 104 = 384 * 168. Producers of many rows need a pointer for each of theirs.
  static constexpr int kConsumerRegisters = kGroupTiles > 1 ? 208 : kConsumers == 256 ? 200 : 104;
  static constexpr int kProducerRegisters = kGroupTiles > 1 ? 88 : kConsumers == 256 ? 104 : 64;
  static_assert(kTiles % kM == 0 && kSlabs % kK == 0 && kGroupSlabs % kLineSlabs == 0,
                "every warpgroup gets as many tiles and slabs");
  static_assert(kGroupTiles == 1 || (kGroupTiles == 2 && kK == 1),
                "one tile at a time, or two; sums along K are of one");
};

// Weight tiles of a CTA. A linear is one matrix: fewer tiles, so that more CTAs share it.
constexpr int tiles_of_cta(int rows, int column_bytes, bool is_linear) {
  if (column_bytes == 1 && rows >= GEMM_SM90_FP8_WIDE_ROWS) return 2;
  return rows >= (is_linear ? GEMM_SM90_LINEAR_FOUR_TILES_ROWS : GEMM_SM90_FOUR_TILES_ROWS) ? 4
         : rows >= GEMM_SM90_TWO_TILES_ROWS                                                 ? 2
                                                                                            : 1;
}

// Warpgroups along the weight rows of a CTA with four tiles. Words become bf16 by more instructions than e4m3, and so
// by more warps; each tile's sums must leave them the registers.
constexpr int groups_of_cta(int rows, int column_bytes) {
  return column_bytes == 2 && rows <= GEMM_SM90_FOUR_GROUPS_ROWS ? 4 : 2;
}

// Columns that a tile has which has no more rows. Every eight cost as much as 8 % of dequantising; but a loop for them
// costs registers, and code of which a multiprocessor's cache holds little.
constexpr int narrow_columns(int rows, int column_bytes, Epilogue epilogue) {
  const bool is_common = epilogue == Epilogue::kGemm1 || epilogue == Epilogue::kGemm2;
  return column_bytes == 2 && is_common && rows >= GEMM_SM90_FOUR_TILES_ROWS && rows < GEMM_SM90_FOUR_GROUPS_ROWS
             ? rows - 8
             : rows;
}

// Slabs of a stage with four tiles: as many of four as fit three times, because copies and waits cost the less the
// fewer they are (measured for 48 to 144 rows). 8192 bytes hold what is no stage. At 128 rows of e4m3 the compiler
// lacks registers for four.
constexpr int slabs_of_stage(int rows, int column_bytes) {
  if (column_bytes == 1) return rows == 128 ? 2 : 4;
  const int fit = (GEMM_SM90_SHARED_BYTES - 8192) / 3 / (rows * kSlabCols * column_bytes + 4 * kTileBytes);
  return fit < 4 ? fit : 4;
}
static_assert(slabs_of_stage(64, 2) == 4 && slabs_of_stage(112, 2) == 3 && slabs_of_stage(144, 2) == 2, "of bf16");

// Stages are large where rows are few, because every wait and every arrival costs as many instructions as half a slab,
// and instructions are what few rows are short of. Many rows need registers for their sums: fewer threads, of two tiles
// each.
template <int kN, int kColumnBytes, int kTiles>
struct ConfigOfTiles
    : Config<kN, kTiles, groups_of_cta(kN, kColumnBytes), 1, slabs_of_stage(kN, kColumnBytes), kColumnBytes> {};
template <int kN, int kColumnBytes>
struct ConfigOfTiles<kN, kColumnBytes, 2> : Config<kN, 2, 2, 2, 4, kColumnBytes> {};
template <int kN, int kColumnBytes>
struct ConfigOfTiles<kN, kColumnBytes, 1> : Config<kN, 1, 1, 4, kN == 8 ? 16 : 8, kColumnBytes> {};

// So many rows that two tiles of an expert become one: its weights are dequantised once. Tensor cores are what is short
// then, and two warpgroups have the registers for the sums.
template <int kN, int kColumnBytes>
struct WideConfig : Config<kN, 2, 2, 1, 4, kColumnBytes> {};

template <int kN, int kColumnBytes, Epilogue kEpilogue>
struct ConfigOf : std::conditional_t<
                      kN >= GEMM_SM90_FP8_WIDE_ROWS, WideConfig<kN, kColumnBytes>,
                      ConfigOfTiles<kN, kColumnBytes, tiles_of_cta(kN, kColumnBytes, kEpilogue == Epilogue::kLinear)>> {
  static constexpr int kNarrow = narrow_columns(kN, kColumnBytes, kEpilogue);
};

// Of block scales that are any, rounded or not, and in no pairs: kernels of their own, so that others do not pay for
// it.
template <int kN, Epilogue kEpilogue>
struct RoundedConfigOf : ConfigOf<kN, 1, kEpilogue> {
  using Paired = ConfigOf<kN, 1, kEpilogue>;
  static constexpr bool kRounded = true;
  static constexpr int kTileBytes = nvfp4::kTileBytes;
  static constexpr int kStageBytes =
      Paired::kStageBytes + Paired::kSlabs * Paired::kTiles * (kTileBytes - Paired::kTileBytes);
  static constexpr int kStages = Paired::kRingBytes / (kStageBytes + 16);
};

// Lanes of a warp that say that it has read a stage. One is enough, after __syncwarp; but what that orders,
// compute-sanitizer's racecheck does not see, and reports every copy into a stage. In a build for it all of them do.
#ifdef NVFP4_MOE_RACECHECK
constexpr int kReleasingLanes = 32;
#else
constexpr int kReleasingLanes = 1;
#endif

template <class C>
struct SharedStorage {
  alignas(1024) uint8_t rows[C::kStages][C::kLines][C::kN * 128];  // RowsDescriptor's layout
  alignas(128) uint8_t tiles[C::kStages][C::kTiles][C::kSlabs * C::kTileBytes];
  float partial[C::kK > 1 ? C::kK - 1 : 1][C::kM][C::kK > 1 ? C::kN / 2 : 1][C::kK > 1 ? 128 : 1];
  alignas(8) float row_scale[C::kScaleSlots][C::kN];  // of a tile's token rows
  uint64_t full[C::kStages];
  uint64_t empty[C::kStages];
};

static_assert(GEMM_SM90_WIDEST_ROWS == kWidestTile && GEMM_SM90_COLUMN_STEP == kWidthStep,
              "routing orders experts by what the widest kernel's work follows");

// Which slot of row scales the next tile has; both roles count. A tile's scales are copied once the stages before it
// are, and read after its last stage is free again. Tiles may be of one stage: so two slots more than stages.
template <class C>
struct ScaleSlot {
  uint32_t slot = 0;

  __device__ uint32_t next() {
    const uint32_t own = slot;
    slot = own + 1 == C::kScaleSlots ? 0 : own + 1;
    return own;
  }
};

template <class C>
constexpr bool kHasFewThreads = C::kGroupTiles == 2 || C::kN >= GEMM_SM90_FP8_WIDE_ROWS;
template <class C>
constexpr bool kFitsLaunch =
    C::kThreads == (kHasFewThreads<C> ? GEMM_SM90_FEW_THREADS : GEMM_SM90_THREADS) && C::kStages >= 3 &&
    (!C::kScalesByProducer || C::kStages + 2 <= C::kScaleSlots) && sizeof(SharedStorage<C>) <= GEMM_SM90_SHARED_BYTES;

}  // namespace nvfp4
