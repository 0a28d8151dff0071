// SPDX-License-Identifier: Apache-2.0
// How weights and token rows lie for the fifth-generation tensor core, and what tells it so. No PTX: tests on a host
// read this too, and hold the descriptors against CuTe's. Source: PTX ISA 9.0, 9.7.16.
//
//   weights      tiles of 128 rows x 256 columns: codes as shared memory has them, then their block scales, so that one
//                plain copy brings a tile. With a gate tiles of gate and of up take turns: both of a feature become
//                sums of one lane of tensor memory.
//   token rows   common/lines.cuh.
#pragma once
#include "../common/format.cuh"
#include "../common/lines.cuh"
#include "params.h"

namespace nvfp4::sm100 {

constexpr int kTileRows = SM100_TILE_ROWS, kTileCols = SM100_TILE_COLS, kTileBytes = SM100_TILE_BYTES;
constexpr int kStepCols = kScaleStepCols;               // of the tensor core with e2m1
constexpr int kTileSteps = kTileCols / kStepCols;       // in a tile
constexpr int kTileCodeBytes = kTileRows * kLineBytes;  // scales follow
constexpr int kStepScaleBytes = 512;                    // of 128 rows
static_assert(kTileBytes == kTileCodeBytes + kTileSteps * kStepScaleBytes && kTileBytes % 1024 == 0, "");

__host__ __device__ constexpr int steps_of(int cols) { return (cols + kStepCols - 1) / kStepCols; }
__host__ __device__ constexpr int slabs_of(int cols) { return (cols + kTileCols - 1) / kTileCols; }

// ---- weights

// The byte with columns `col` and col + 1 of a tile's row, and the byte with the scale of a block of 16 columns.
__host__ __device__ constexpr int tile_code(int row, int col) { return swizzled(row, col / 2); }
__host__ __device__ constexpr int tile_scale(int row, int block) {
  return kTileCodeBytes + static_cast<int>(sf_offset_128x4(row, block, kTileCols / kBlockSize));
}
static_assert(tile_scale(33, 5) == 16384 + 512 + 16 + 4 + 1, "");

// Where a tile begins in an expert's matrix. With a gate `m` counts features by 128, and `half` is 1 for up.
__host__ __device__ constexpr int64_t tile_offset(int m, int slab, int num_slabs, int halves, int half) {
  return ((int64_t{m} * num_slabs + slab) * halves + half) * kTileBytes;
}

// ---- weights as bf16 (mode bf16)

// e2m1 in the fields of bf16 is 2^-126 of its value; a block scale as f32 bits shifted is 2^-120 of its own. Both
// factors together pass bf16's range, so that weights keep 2^-8 of them, which the sums get back.
constexpr float kCodeFactor = 0x1p118f, kMissingFactor = 256.0f;

// Codes i and i + 4 of a word of eight, the first in the lowest nibble, as bf16: place_in_unit() has them together.
__host__ __device__ constexpr uint32_t spread_codes(uint32_t codes, int i) {
  const int magnitude = 6 - 4 * i, sign = 12 - 4 * i;  // by how much nibble i moves up
  const uint32_t moved = magnitude >= 0 ? codes << (magnitude & 31) : codes >> (-magnitude & 31);
  return (codes << sign & 0x80008000u) | (moved & 0x01C001C0u);
}

// A block scale twice, times what codes as bf16 lack but for kMissingFactor. Exact: its low half is 0.
__device__ inline uint32_t spread_scale(uint32_t e4m3) {
  const uint32_t bits = __float_as_uint(__uint_as_float(e4m3 << 20) * 0x1p120f * kCodeFactor);  // e4m3_decode()'s way
  return bits | bits >> 16;
}

// ---- descriptors (9.7.16.4)

constexpr uint64_t kDescriptorVersion = uint64_t{1} << 46;

// Rows of 128 bytes, swizzled, eight of which take 1024. `address` of the first is a multiple of 1024, plus 32 bytes
// for each step of the tensor core, of 64 columns of e2m1 or 16 of bf16.
__host__ __device__ constexpr uint64_t operand_descriptor(uint32_t address) {
  return (address >> 4 & 0x3FFF) | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | kDescriptorVersion |
         uint64_t{2} << 61;
}

// 512 bytes of scales of 128 rows: 32 rows of 16 bytes, no swizzle.
__host__ __device__ constexpr uint64_t scale_descriptor(uint32_t address) {
  return (address >> 4 & 0x3FFF) | uint64_t{1} << 16 | uint64_t{128 >> 4} << 32 | kDescriptorVersion;
}

// 128 weight rows by n token rows, sums in f32. e2m1 with a scale in e4m3 for each 16 columns (table 44).
__host__ __device__ constexpr uint32_t nvfp4_instruction(int n) {
  return 1u << 7 | 1u << 10 | static_cast<uint32_t>(n >> 3) << 17 | 1u << 27;
}

// The same of bf16 (table 42).
__host__ __device__ constexpr uint32_t bf16_instruction(int n) {
  return 1u << 4 | 1u << 7 | 1u << 10 | static_cast<uint32_t>(n >> 3) << 17 | 8u << 24;
}

}  // namespace nvfp4::sm100
