// SPDX-License-Identifier: Apache-2.0
// The tiles of a launch, in one order for every warp role: experts that have rows, then blocks of weight rows, then row
// tiles, so that CTAs that run together share weights through L2.
#pragma once
#include "../params.h"
#ifdef __CUDACC__
#include "warp.cuh"
#endif

namespace nvfp4 {

// Tiles that so many rows take.
__device__ inline int32_t row_tiles_of(int32_t rows, int32_t tile_rows) { return (rows + tile_rows - 1) / tile_rows; }

// Where `RouteParams::widest_first` orders experts: rows of a tile, and the steps by which widths are told apart.
constexpr int kWidestTile = 144, kWidthStep = 16;

struct Tile {
  int32_t expert;
  int32_t first_m_tile;  // the first of this CTA's weight tiles
  int32_t num_m_tiles;   // 1 or more
  int32_t first_row;     // in the chunk
  int32_t num_rows;      // 1 .. tile_rows
};

// Of the groups from `i` on, the first that begins beyond a tile or ends the list, or one on the way there: a lane of
// the warp looks at each. Many experts of few tiles then cost one wait for L2 a tile, not one each.
__device__ inline int32_t group_beyond(const TileList& p, int32_t i, int32_t tile, int32_t m_blocks) {
  const int32_t found = first_lane([&](int32_t lane) {
    const RowGroup own = p.groups[min(i + lane, p.last_group)];
    return own.expert < 0 || tile < own.first_tile * m_blocks;
  });
  return i + min(found, 31);
}

// A CTA's tile is kMTiles weight tiles of 64 rows by up to tile_rows rows. An expert's rows are spread evenly over as
// few tiles as hold them, in steps of kRowStep, a power of two that divides tile_rows: two tiles of 80 cost less than
// one of 144 and one of 16 where the kernel's work follows the rows, and no more elsewhere. The CTAs' last round, if
// that gives work to twice as many, is done in halves of a tile's weight tiles: half of a CTA's warpgroups are faster
// by themselves. kByWarps: whole warps call, all lanes at once.
template <int kMTiles, int kRowStep = 8, bool kByWarps = false, class Body>
__device__ void for_each_tile(const TileList& p, Body body) {
  const int32_t m_blocks = (p.m_tiles + kMTiles - 1) / kMTiles;
  RowGroup group = p.groups ? p.groups[0] : RowGroup{0, 0, p.num_rows, 0};
  RowGroup next = p.groups ? p.groups[1] : RowGroup{-1, 0, 0, row_tiles_of(p.num_rows, p.tile_rows)};
  int32_t whole = INT32_MAX;  // tiles that are not halved
  if constexpr (kMTiles > 1) {
    const int32_t tiles = (p.groups ? p.groups[p.last_group] : next).first_tile * m_blocks;
    const int32_t in_last_round = tiles % gridDim.x;
    if (2 * in_last_round <= gridDim.x) whole = tiles - in_last_round;
  }
  if (group.expert < 0) return;
  for (int32_t at = blockIdx.x, i = 2;; at += gridDim.x) {
    const bool halved = at >= whole;
    const int32_t tile = halved ? whole + (at - whole) / 2 : at;
    while (tile >= next.first_tile * m_blocks) {
      if (next.expert < 0) return;
      if constexpr (kByWarps) {
        i = group_beyond(p, i, tile, m_blocks);
        group = p.groups[i - 1];
      } else {
        group = next;
      }
      next = p.groups[i++];
    }
    const int32_t row_tiles = next.first_tile - group.first_tile, in_group = tile - group.first_tile * m_blocks;
    const int32_t rows_each = (group.num_rows + row_tiles - 1) / row_tiles + (kRowStep - 1) & ~(kRowStep - 1);
    const int32_t row = in_group % row_tiles * rows_each;
    const int32_t most = halved ? kMTiles / 2 : kMTiles;
    const int32_t first_m_tile = in_group / row_tiles * kMTiles + (halved && (at - whole) % 2 != 0 ? most : 0);
    const int32_t num_m_tiles = min(most, p.m_tiles - first_m_tile);
    if (num_m_tiles <= 0) continue;
    body(Tile{group.expert, first_m_tile, num_m_tiles, group.first_row + row, min(group.num_rows - row, rows_each)});
  }
}

}  // namespace nvfp4
