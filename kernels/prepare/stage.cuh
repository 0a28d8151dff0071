// SPDX-License-Identifier: Apache-2.0
// The first half of repacking a checkpoint's matrix into tiles of 64 x 64: blocks of 16 come to shared memory, in the
// order of the tiles' rows.
#pragma once
#include "../common/gemm.cuh"
#include "../tile_params.h"
#include "checkpoint.cuh"

namespace nvfp4 {

// A block of threads repacks kRun tiles of one run of columns, so that each row it reads is a whole line of memory.
constexpr int kRun = PREPARE_RUN_SLABS, kThreads = PREPARE_THREADS, kRunBlocks = kRun * kSlabSteps;

// Blocks of 16 of the tiles' rows, codes as the checkpoint has them, scales as tiles do; zeros in the padding.
struct Staged {
  uint2 codes[kTileRows][kRunBlocks + 2];  // two more: 8 rows lie in different banks
  uint8_t scales[kTileRows][kRunBlocks + 4];
};

// tile_scale(row, e4m3, codes) is what a tile holds of a block scale; it may change the block's codes. `row` is the
// checkpoint's. Codes whose scale is 0 become 0: a layout's scales need no 0 then.
template <class TileScale>
__device__ void stage(const PrepareParams& p, int expert, int m, int first_block, TileScale tile_scale,
                      Staged& staged) {
  constexpr int kEach = kTileRows * kRunBlocks / kThreads;  // loads in flight together cost one latency
  const int num_blocks = p.source.cols / 16;
  uint2 codes[kEach];
  uint32_t scales[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = i * kThreads + threadIdx.x, block = first_block + at % kRunBlocks;
    const int row = checkpoint_row(m, at / kRunBlocks, p.source.rows, p.row_order);
    const bool valid = row >= 0 && block < num_blocks;
    const int64_t from = (int64_t{expert} * p.source.rows + row) * num_blocks + block;
    codes[i] = valid ? load_8_bytes(p.source.codes + from * 8) : make_uint2(0, 0);
    scales[i] = valid ? p.source.block_scale[from] : 0;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = i * kThreads + threadIdx.x;
    const int row = checkpoint_row(m, at / kRunBlocks, p.source.rows, p.row_order);
    staged.scales[at / kRunBlocks][at % kRunBlocks] = tile_scale(row, scales[i], codes[i]);
    staged.codes[at / kRunBlocks][at % kRunBlocks] = scales[i] == 0 ? make_uint2(0, 0) : codes[i];
  }
}

}  // namespace nvfp4
