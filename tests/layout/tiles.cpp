// kernels/common/tiles.cuh, compiled for the host: over many lists of groups and grids, the CTAs together multiply every
// row of every expert with every weight tile exactly once, and none has more rounds than its share. Prints how many
// launches were checked, and in how many of them tiles were halved.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#define __device__
static struct {
  int x;
} blockIdx, gridDim;
using std::min;

#include "common/tiles.cuh"

static int checked, halved_launches;

static void fail(const TileList& list, int ctas, const char* what, int got, int wanted) {
  printf("%s: %d, not %d (m_tiles %d, tile_rows %d, %d CTAs)\n", what, got, wanted, list.m_tiles, list.tile_rows, ctas);
  exit(1);
}

template <int kMTiles>
static void check(const TileList& list, int num_rows, int ctas) {
  gridDim.x = ctas;
  std::vector<int> seen(size_t(num_rows) * list.m_tiles);
  int tiles = 0, halves = 0;
  std::vector<int> half_rounds(ctas);
  for (blockIdx.x = 0; blockIdx.x < ctas; ++blockIdx.x) {
    int tiles_before = tiles;
    nvfp4::for_each_tile<kMTiles>(list, [&](const nvfp4::Tile& tile) {
      if (tile.num_rows < 1 || tile.num_rows > list.tile_rows) fail(list, ctas, "rows", tile.num_rows, list.tile_rows);
      if (tile.num_m_tiles < 1 || tile.num_m_tiles > kMTiles)
        fail(list, ctas, "weight tiles", tile.num_m_tiles, kMTiles);
      for (int m = tile.first_m_tile; m < tile.first_m_tile + tile.num_m_tiles; ++m)
        for (int row = tile.first_row; row < tile.first_row + tile.num_rows; ++row) ++seen[size_t(m) * num_rows + row];
      // Whole but for the last ones of a matrix, which may have fewer weight tiles.
      const bool half = kMTiles > 1 && tile.num_m_tiles <= kMTiles / 2 &&
                        tile.first_m_tile + tile.num_m_tiles < list.m_tiles;
      halves += half;
      half_rounds[blockIdx.x] += half ? 1 : 2;
      ++tiles;
    });
    if (tiles == tiles_before && blockIdx.x == 0) fail(list, ctas, "tiles of the first CTA", 0, 1);
  }
  for (const int times : seen)
    if (times != 1) fail(list, ctas, "times that a row and a weight tile meet", times, 1);
  const int row_tiles =
      list.groups ? list.groups[list.last_group].first_tile : nvfp4::row_tiles_of(num_rows, list.tile_rows);
  const int whole = row_tiles * ((list.m_tiles + kMTiles - 1) / kMTiles), rounds = (whole + ctas - 1) / ctas;
  for (const int each : half_rounds)
    if (each > 2 * rounds) fail(list, ctas, "half rounds", each, 2 * rounds);
  ++checked;
  halved_launches += halves > 0;
}

static void check_all(TileList list, int num_rows) {
  for (const int ctas : {1, 2, 7, 66, 131, 132, 148}) {
    check<1>(list, num_rows, ctas);
    check<2>(list, num_rows, ctas);
    check<4>(list, num_rows, ctas);
  }
}

int main() {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    TileList list = {};
    list.tile_rows = 8 * (1 + random() % 18);
    list.m_tiles = 1 + random() % 70;
    const int local = 1 + random() % 40;
    list.last_group = local + 1;
    std::vector<RowGroup> groups(local + 2, RowGroup{7, 7, 7, 7});
    int rows = 0, row_tiles = 0, count = 0;
    for (int e = 0; e < local; ++e) {
      const int own = random() % 3 ? random() % (2 * list.tile_rows + 1) : 0;
      if (own == 0) continue;
      groups[count++] = {e, rows, own, row_tiles};
      rows += own;
      row_tiles += nvfp4::row_tiles_of(own, list.tile_rows);
    }
    if (count == 0) continue;
    groups[count] = groups[count + 1] = groups[local + 1] = {-1, rows, 0, row_tiles};  // as routing writes it
    list.groups = groups.data();
    check_all(list, rows);
    list.groups = nullptr;  // a linear
    list.num_rows = rows;
    check_all(list, rows);
  }
  printf("%d launches, %d with halves\n", checked, halved_launches);
}
