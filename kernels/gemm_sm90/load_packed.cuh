// The producer warpgroup where rows are NVFP4: it streams weights as load() does, and decodes rows on their way to shared
// memory. A thread serves one row of one slab of each stage, and holds what it reads of several stages in registers, so
// that their latencies pass together.
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

  template <int kBlock>
  __device__ void decode_block(uint8_t* row, int r, uint32_t low, uint32_t high) const {
    const uint32_t scale = decode_scale<kBlock>(scales);
    uint32_t a[2][4];
    dequantize(low, scale, scale, a[0]);
    dequantize(high, scale, scale, a[1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      reinterpret_cast<uint4*>(row)[(2 * kBlock + i) ^ r % 8] = make_uint4(a[i][0], a[i][1], a[i][2], a[i][3]);
    }
  }

  // Into row r of a slab (rows_descriptor's layout).
  __device__ void decode(uint8_t* slab, int r) const {
    uint8_t* const row = slab + r * 128;
    decode_block<0>(row, r, codes[0].x, codes[0].y);
    decode_block<1>(row, r, codes[0].z, codes[0].w);
    decode_block<2>(row, r, codes[1].x, codes[1].y);
    decode_block<3>(row, r, codes[1].z, codes[1].w);
  }
};

template <class C>
__device__ void load_packed(const GemmParams& p, SharedStorage<C>& shared) {
  static_assert(C::kN * C::kSlabs <= C::kProducers, "a thread for each row of each slab");
  constexpr int kAhead = C::kN >= 128 ? 3 : 4;  // stages whose rows are read at once
  const int r = threadIdx.x % C::kN, s = threadIdx.x / C::kN;
  Ring<C> ring;
  for_each_tile<C::kM, C::kN>(p.list, [&](const Tile& tile) {
    const WeightTiles weights = WeightTiles::of<C>(p, tile);
    const bool has_row = s < C::kSlabs && r < tile.num_rows;
    const int64_t row = has_row ? p.row_to_slot[tile.first_row + r] / p.top_k : 0;
    for (int first = 0; first < p.num_slabs; first += kAhead * C::kSlabs) {
      PackedSlab ahead[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int slab = first + i * C::kSlabs + s;
        ahead[i] = has_row && slab < p.num_slabs ? PackedSlab::read(p, row, slab) : PackedSlab{};
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int slab = first + i * C::kSlabs;
        if (slab >= p.num_slabs) break;
        weights.load(p, shared, ring, slab, min(C::kSlabs, p.num_slabs - slab));
        if (has_row) ahead[i].decode(shared.rows[ring.stage][s], r);
        ptx::fence_proxy_async();
        ptx::mbarrier_arrive(shared.full[ring.stage]);
        ring.advance();
      }
    }
  });
}

}  // namespace nvfp4
