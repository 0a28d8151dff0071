// SPDX-License-Identifier: Apache-2.0
// nvfp4_moe_sf_offset and _size against CuTe's own scale layouts (Sm1xxBlockScaledConfig<16>, as Blackwell's CUTLASS
// kernels use them), at every coordinate of many shapes, padding included. On the host, with a plain C++ compiler.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "cute/tensor.hpp"
#include "cutlass/detail/sm100_blockscaled_layout.hpp"
#include "nvfp4_moe.h"

using cute::make_shape;
using Config = cutlass::detail::Sm1xxBlockScaledConfig<16>;
constexpr int kBlockSize = 16;

struct Tally {
  int64_t coordinates = 0, mismatches = 0;
  void expect(int64_t cute, uint64_t ours, const char* what, int rows, int cols) {
    ++coordinates;
    if (cute == static_cast<int64_t>(ours)) return;
    if (++mismatches <= 10)
      printf("%s of %d x %d: CuTe says %lld, we say %llu\n", what, rows, cols, (long long)cute,
             (unsigned long long)ours);
  }
};

// Rows are tokens for SFA and output features for SFB; both layouts must be ours. Every element of a block of 16 has
// the block's one scale; first, last and one between stand for all.
static void check_matrix(int rows, int cols, Tally& tally) {
  const auto sfa = Config::tile_atom_to_shape_SFA(make_shape(rows, 77, cols, 1));
  const auto sfb = Config::tile_atom_to_shape_SFB(make_shape(77, rows, cols, 1));
  const uint64_t sf_cols = (cols + kBlockSize - 1) / kBlockSize, size = nvfp4_moe_sf_size(rows, sf_cols);
  tally.expect(cute::cosize(sfa), size, "cosize of SFA", rows, cols);
  tally.expect(cute::cosize(sfb), size, "cosize of SFB", rows, cols);
  tally.expect(cute::size(cute::filter_zeros(sfa)), size, "number of scales", rows, cols);

  const int padded_rows = (rows + 127) / 128 * 128, padded_sf_cols = static_cast<int>((sf_cols + 3) / 4 * 4);
  std::vector<bool> seen(size);
  for (int row = 0; row < padded_rows; ++row)
    for (int sf_col = 0; sf_col < padded_sf_cols; ++sf_col) {
      const uint64_t ours = nvfp4_moe_sf_offset(row, sf_col, sf_cols);
      for (int element : {0, 7, 15}) {
        const int col = sf_col * kBlockSize + element;
        tally.expect(sfa(row, col, 0), ours, "SFA", rows, cols);
        tally.expect(sfb(row, col, 0), ours, "SFB", rows, cols);
      }
      if (ours >= size || seen[ours]) {
        tally.mismatches++;
        printf("%d x %d: byte %llu is not in the buffer, or taken twice\n", rows, cols, (unsigned long long)ours);
      } else {
        seen[ours] = true;
      }
    }
}

// Matrices of a batch (experts) follow one another, each padded.
static void check_batch(int rows, int cols, int batch, Tally& tally) {
  const auto sfa = Config::tile_atom_to_shape_SFA(make_shape(rows, 1, cols, batch));
  const auto sfb = Config::tile_atom_to_shape_SFB(make_shape(1, rows, cols, batch));
  const uint64_t sf_cols = (cols + kBlockSize - 1) / kBlockSize, size = nvfp4_moe_sf_size(rows, sf_cols);
  for (int matrix = 0; matrix < batch; ++matrix)
    for (int row = 0; row < rows; ++row)
      for (uint64_t sf_col = 0; sf_col < sf_cols; ++sf_col) {
        const uint64_t ours = matrix * size + nvfp4_moe_sf_offset(row, sf_col, sf_cols);
        const int col = static_cast<int>(sf_col) * kBlockSize;
        tally.expect(sfa(row, col, matrix), ours, "batched SFA", rows, cols);
        tally.expect(sfb(row, col, matrix), ours, "batched SFB", rows, cols);
      }
}

int main() {
  Tally tally;
  int shapes = 0;
  for (int rows : {1, 2, 31, 32, 33, 63, 64, 127, 128, 129, 200, 255, 256, 257, 384, 513, 1000, 2048, 2049})
    for (int cols : {16, 32, 48, 64, 80, 96, 128, 144, 192, 256, 272, 512, 720, 1536, 2048, 2880, 4096, 7168}) {
      check_matrix(rows, cols, tally);
      ++shapes;
    }
  for (int rows : {1, 128, 200, 300})
    for (int cols : {64, 80, 448}) {
      check_batch(rows, cols, 5, tally);
      ++shapes;
    }
  printf("cute_oracle: %d shapes, %lld coordinates, %lld mismatches\n", shapes, (long long)tally.coordinates,
         (long long)tally.mismatches);
  return tally.mismatches != 0;
}
