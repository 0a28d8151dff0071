// The tiles of a launch, in one order for every warp role: experts that have rows, then blocks of weight rows, then row
// tiles, so that CTAs that run together share weights through L2.
#pragma once
#include "../params.h"

namespace nvfp4 {

// Tiles that so many rows take.
__device__ inline int32_t row_tiles_of(int32_t rows, int32_t tile_rows) { return (rows + tile_rows - 1) / tile_rows; }

struct Tile {
  int32_t expert;
  int32_t first_m_tile;  // the first of this CTA's
  int32_t first_row;     // in the chunk
  int32_t num_rows;      // 1 .. tile_rows
};

// A CTA's tile is kMTiles weight tiles of 64 rows by up to tile_rows rows. An expert's rows are spread evenly over as
// few tiles as hold them, in eights: two tiles of 80 cost less than one of 144 and one of 16 where the kernel's work
// follows the rows, and no more elsewhere.
template <int kMTiles, class Body>
__device__ void for_each_tile(const TileList& p, Body body) {
  const int32_t m_blocks = (p.m_tiles + kMTiles - 1) / kMTiles;
  const bool grouped = p.row_offsets != nullptr;
  const int32_t num_active = grouped ? *p.num_active : 1;
  int32_t active = 0, start = 0,
          end = grouped ? (num_active > 0 ? p.tile_starts[1] : 0) : row_tiles_of(p.num_rows, p.tile_rows);
  for (int32_t tile = blockIdx.x;; tile += gridDim.x) {
    while (active < num_active && tile >= end * m_blocks) {
      if (++active == num_active) return;
      start = end;
      end = p.tile_starts[active + 1];
    }
    if (active >= num_active) return;
    const int32_t row_tiles = end - start, in_expert = tile - start * m_blocks;
    const int32_t expert = grouped ? p.active_experts[active] : 0;
    const int32_t rows = grouped ? p.row_counts[expert] : p.num_rows;
    const int32_t rows_each = (rows + row_tiles - 1) / row_tiles + 7 & ~7;
    const int32_t row = in_expert % row_tiles * rows_each;
    body(Tile{expert, in_expert / row_tiles * kMTiles, (grouped ? p.row_offsets[expert] : 0) + row,
              min(rows - row, rows_each)});
  }
}

}  // namespace nvfp4
