// SPDX-License-Identifier: Apache-2.0
// Token rows in lines of 128 bytes, as the fifth-generation tensor core's shared memory has them: the first line of
// every row, then the second. So the rows of a GEMM's tile are one plain copy a line, whatever their number, if the
// first is a multiple of 8. Source of the swizzle: PTX ISA 9.0, 9.7.16.3 (128-byte swizzle, K-major).
//
//   line         256 columns of e2m1, or 64 of bf16
//   scales       of e2m1, for each step of 64 columns 16 bytes a row: its own four, those of the row 32 below it,
//   64, 96.
//                So 32 neighbours of 16 bytes, from any row on, are what the tensor core wants of 128 rows: row n in
//                lane n % 32, column n / 32
//
// `num_rows` is from one line to the next of the same row.
#pragma once
#include <cstdint>

#include "../params.h"

namespace nvfp4 {

constexpr int kLineBytes = LINE_BYTES, kCodeCols = LINE_CODE_COLS, kBf16Cols = LINE_BF16_COLS;
constexpr int kScaleStepCols = LINE_STEP_COLS, kScaleStepBytes = LINE_STEP_BYTES;

// Units of 16 bytes change places by the row. Of eight rows, which take 1024 bytes.
__host__ __device__ constexpr int swizzled(int row, int byte) {
  return row * kLineBytes + (byte / 16 ^ row % 8) * 16 + byte % 16;
}
static_assert(swizzled(0, 17) == 17 && swizzled(3, 0) == 3 * 128 + 48, "unit 0 of row 3 is the fourth");

// The byte with columns `col` and col + 1 of e2m1.
__host__ __device__ constexpr int64_t row_code(int64_t row, int col, int64_t num_rows) {
  const int64_t first = (col / kCodeCols * num_rows + row / 8 * 8) * kLineBytes;
  return first + swizzled(static_cast<int>(row % 8), col % kCodeCols / 2);
}

// The byte with the scale of a block of 16 columns, for tiles in which the row is one of 32 * quarter and on (modulo
// 128).
__host__ __device__ constexpr int64_t row_block_scale(int64_t row, int block, int quarter, int64_t num_rows) {
  return (block / 4 * num_rows + row - 32 * quarter) * kScaleStepBytes + quarter * 4 + block % 4;
}

// Eight columns of bf16 are a unit of 16 bytes, in the order 0 4 1 5 2 6 3 7: what dequantising weights makes of a word
// of codes with two shifts for each two of them. The order of a sum's terms does not matter if both sides have it.
__host__ __device__ constexpr int place_in_unit(int col) { return col % 4 * 2 + col / 4; }
static_assert(place_in_unit(4) == 1 && place_in_unit(1) == 2 && place_in_unit(7) == 7, "");

// The first byte of a column of bf16.
__host__ __device__ constexpr int64_t row_bf16(int64_t row, int col, int64_t num_rows) {
  const int64_t first = (col / kBf16Cols * num_rows + row / 8 * 8) * kLineBytes;
  return first + swizzled(static_cast<int>(row % 8), col % kBf16Cols / 8 * 16) + 2 * place_in_unit(col % 8);
}

}  // namespace nvfp4
