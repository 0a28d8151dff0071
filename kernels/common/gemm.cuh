// SPDX-License-Identifier: Apache-2.0
// What the families share whose weights are tiles of 64 weight rows x 64 columns (one slab), 2304 contiguous bytes:
// codes in the order of their tensor core's fragments, then 64 x 4 block scales. Where there is a gate, its rows and
// up's are interleaved by 8: rows 16w .. 16w+7 of tile m are gate of features 32m + 8w .., the next 8 are up of the
// same features. So the thread that accumulates a gate value accumulates its up value too.
#pragma once
#include <cstdint>

#include "row_order.cuh"

namespace nvfp4 {

constexpr int kTileRows = 64;
constexpr int kSlabCols = 64;
constexpr int kTileCodeBytes = kTileRows * kSlabCols / 2;
constexpr int kTileBytes = kTileCodeBytes + kTileRows * kSlabCols / 16;
constexpr int kSlabSteps = kSlabCols / 16;
static_assert(kTileBytes == 2304 && kTileBytes % 16 == 0, "bulk copies move multiples of 16 bytes");

// Checkpoint row of tile row `r` (0 to 63) of tile `m`, or -1 for padding. `rows` counts gate and up.
__host__ __device__ constexpr int checkpoint_row(int m, int r, int rows, int order) {
  if (order == ROWS_PLAIN) return m * kTileRows + r < rows ? m * kTileRows + r : -1;
  const int feature = m * (kTileRows / 2) + r / 16 * 8 + r % 8, half = rows / 2;
  return feature < half ? projection_row(order, r % 16 >= 8, feature, half) : -1;
}
static_assert(checkpoint_row(0, 8, 128, ROWS_GATE_FIRST) == 64, "the row after 8 gates is the first up");
static_assert(checkpoint_row(1, 17, 128, ROWS_UP_FIRST) == 64 + 41, "up first: gates are the second half");
static_assert(checkpoint_row(0, 9, 128, ROWS_INTERLEAVED) == 3, "the second up");

// GEMM1 ends in SwiGLU alone, or in any activation with a gate; GEMM2 in nothing, or in biases and, of experts without
// a gate, GEMM1's activation. So much code beside a loop changes how ptxas compiles the loop, and the common kernels
// became slower by the instructions they had (shifts where multiplications were, on the busier pipe).
enum class Epilogue { kGemm1, kGemm1Any, kGemm2, kGemm2Any, kLinear };

__host__ __device__ constexpr bool is_gemm1(Epilogue epilogue) {
  return epilogue == Epilogue::kGemm1 || epilogue == Epilogue::kGemm1Any;
}

}  // namespace nvfp4
