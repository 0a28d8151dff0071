// The producer warpgroup where rows are NVFP4: it streams weights as load() does, and decodes rows on their way to
// shared memory. A thread serves one row of one slab of each stage, and holds what it reads of several stages in
// registers, so that their latencies pass together.
#pragma once
#include "dequantize.cuh"
#include "load.cuh"

namespace nvfp4 {

// 64 columns of a row.
struct PackedSlab {
  uint4 codes[2];
  uint32_t scales;

  __device__ static PackedSlab read(const GemmParams& p, int64_t row, int slab) {
    const int64_t at = row * p.num_slabs + slab;
    const uint4* const codes = static_cast<const uint4*>(p.x) + 2 * at;
    return {{codes[0], codes[1]}, p.x_block_scale[at]};
  }

  template <int kHalf>
  __device__ static void decode_block(uint8_t* row, int r, int block, uint32_t low, uint32_t high, uint32_t scales) {
    uint32_t a[2][4];
    dequantize<kHalf>(low, scales, scales, a[0]);
    dequantize<kHalf>(high, scales, scales, a[1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      reinterpret_cast<uint4*>(row)[(2 * block + i) ^ r % 8] = make_uint4(a[i][0], a[i][1], a[i][2], a[i][3]);
    }
  }

  // Into row r of a slab (RowsDescriptor's layout).
  __device__ void decode(uint8_t* slab, int r) const {
    uint8_t* const row = slab + r * 128;
    const ScalePairs pairs = ScalePairs::decode(scales);
    decode_block<0>(row, r, 0, codes[0].x, codes[0].y, pairs.even);
    decode_block<0>(row, r, 1, codes[0].z, codes[0].w, pairs.odd);
    decode_block<1>(row, r, 2, codes[1].x, codes[1].y, pairs.even);
    decode_block<1>(row, r, 3, codes[1].z, codes[1].w, pairs.odd);
  }
};

template <class C>
__device__ void load_packed(const GemmParams& p, SharedStorage<C>& shared) {
  // A thread serves kEach of the rows of the slabs of a stage, and reads kAhead stages of them at once.
  constexpr int kRows = C::kN * C::kSlabs, kEach = (kRows + C::kProducers - 1) / C::kProducers, kAhead = 3 / kEach;
  Ring<C> ring;
  for_each_tile_to_load(p, shared, [&](const Tile& tile, const WeightTiles& weights, int started) {
    int64_t row[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int at = producer_thread<C>() + j * C::kProducers, r = at % C::kN;
      row[j] = at < kRows && r < tile.num_rows ? p.row_to_slot[tile.first_row + r] / p.top_k : -1;
    }
    for (int first = 0; first < p.num_slabs; first += kAhead * C::kSlabs) {
      PackedSlab ahead[kAhead][kEach];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          const int slab = first + i * C::kSlabs + (producer_thread<C>() + j * C::kProducers) / C::kN;
          ahead[i][j] = row[j] >= 0 && slab < p.num_slabs ? PackedSlab::read(p, row[j], slab) : PackedSlab{};
        }
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int slab = first + i * C::kSlabs;
        if (slab >= p.num_slabs) break;
        if (slab >= started) weights.load(p, shared, ring, slab);
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          const int at = producer_thread<C>() + j * C::kProducers;
          if (row[j] >= 0) ahead[i][j].decode(shared.rows[ring.stage][at / C::kN], at % C::kN);
        }
        ptx::fence_proxy_async();
        ptx::mbarrier_arrive(shared.full[ring.stage]);
        ring.advance();
      }
    }
  });
}

}  // namespace nvfp4
