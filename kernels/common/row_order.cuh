// SPDX-License-Identifier: Apache-2.0
// Where gate and up lie in a checkpoint's matrix, by its ROWS_* (params.h).
#pragma once
#include "../params.h"

namespace nvfp4 {

// Row of `feature` of gate or of up, of `features` each.
__host__ __device__ constexpr int projection_row(int order, bool is_up, int feature, int features) {
  if (order == ROWS_INTERLEAVED) return 2 * feature + (is_up ? 1 : 0);
  return feature + ((order == ROWS_UP_FIRST) != is_up ? features : 0);
}
static_assert(projection_row(ROWS_GATE_FIRST, true, 3, 8) == 11 && projection_row(ROWS_UP_FIRST, true, 3, 8) == 3, "");
static_assert(projection_row(ROWS_INTERLEAVED, true, 3, 8) == 7, "");

// The checkpoint's row that is row `row` of `rows` where gate comes first.
__host__ __device__ constexpr int checkpoint_row_of(int order, int row, int rows) {
  if (order == ROWS_PLAIN) return row;
  return projection_row(order, row >= rows / 2, row % (rows / 2), rows / 2);
}

// Place of the projection that a checkpoint's row belongs to, among those that have scales of their own.
__host__ __device__ constexpr int projection_of_row(int order, int row, int rows) {
  if (order == ROWS_PLAIN) return 0;
  return order == ROWS_INTERLEAVED ? row % 2 : row >= rows / 2;
}

}  // namespace nvfp4
