// SPDX-License-Identifier: Apache-2.0
// A GEMM's operands as rows of blocks of 16 values, each exact in bf16.
#pragma once
#include "../common/format.cuh"
#include "../common/rows.cuh"

namespace nvfp4 {

// What Blackwell's tensor cores read: codes row-major, block scales in tiles of 128 rows x 4.
struct Nvfp4Rows {
  const uint64_t* codes;  // 16 a word
  const uint8_t* block_scale;
  int num_blocks;  // of a row

  __device__ void load(int64_t row, int b, float (&x)[kBlockSize]) const {
    const uint64_t word = codes[row * num_blocks + b];
    const float scale = e4m3_decode(block_scale[sf_offset_128x4(row, b, num_blocks)]);
#pragma unroll
    for (int i = 0; i < kBlockSize; ++i) x[i] = e2m1_decode(static_cast<uint32_t>(word >> (4 * i))) * scale;
  }
};

// bf16 rows, gathered by index.
struct Bf16Rows {
  const __nv_bfloat16* x;
  int64_t row_stride;
  const int32_t* row_to_slot;  // NULL: row r is row r
  int top_k;

  __device__ void load(int64_t row, int b, float (&values)[kBlockSize]) const {
    const int64_t at = row_to_slot ? row_to_slot[row] / top_k : row;
    load_block(x + at * row_stride + b * kBlockSize, values);
  }
};

}  // namespace nvfp4
