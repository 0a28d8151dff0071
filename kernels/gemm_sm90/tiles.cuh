// The tiles of a launch, in one order for every warp role: experts that have rows, then blocks of weight rows, then row
// tiles, so that CTAs that run together share weights through L2.
#pragma once
#include "../params.h"
#include "config.cuh"

namespace nvfp4 {

struct Tile {
  int32_t expert;
  int32_t first_m_tile;  // of this CTA's kM
  int32_t first_row;     // in the chunk
  int32_t num_rows;      // 1 .. kN
};

template <class C, class Body>
__device__ void for_each_tile(const GemmParams& p, Body body) {
  const int32_t m_blocks = (p.end_m_tile - p.first_m_tile + C::kM - 1) / C::kM;
  const bool grouped = p.row_offsets != nullptr;
  const int32_t num_active = grouped ? *p.num_active : 1;
  int32_t active = 0, start = 0, end = grouped ? (num_active > 0 ? p.tile_starts[1] : 0) : (p.num_rows + C::kN - 1) / C::kN;
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
    const int32_t row = in_expert % row_tiles * C::kN;
    body(Tile{expert, p.first_m_tile + in_expert / row_tiles * C::kM, (grouped ? p.row_offsets[expert] : 0) + row,
              min(rows - row, C::kN)});
  }
}

}  // namespace nvfp4
