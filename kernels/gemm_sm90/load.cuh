// The producer warpgroup: streams weight tiles through the copy engine and gathers token rows by index, several stages
// ahead of the tensor cores and across tile borders.
#pragma once
#include "../common/tiles.cuh"
#include "config.cuh"
#include "ptx.cuh"

namespace nvfp4 {

// Position in the ring of stages.
template <class C>
struct Ring {
  uint32_t stage = 0, parity = 0;

  __device__ void advance() {
    if (++stage == C::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The rows of a tile that one thread copies: 16 bytes of row first + 16 i in each slab it serves.
template <class C>
struct RowGather {
  static constexpr int kRows = C::kN >= 16 ? C::kN / 16 : 1;
  static constexpr int kSlabStep = C::kN >= 16 ? 1 : 2;  // 8 rows keep half the threads busy: the others take odd slabs
  const __nv_bfloat16* row[kRows];                       // NULL past the tile's rows

  __device__ static int first_row() { return threadIdx.x / 8 % C::kN; }
  __device__ static int first_slab() { return C::kN >= 16 ? 0 : threadIdx.x / 64; }
  __device__ static int chunk() { return threadIdx.x % 8; }

  __device__ RowGather(const GemmParams& p, const Tile& tile) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = first_row() + 16 * i;
      row[i] = nullptr;
      if (r >= tile.num_rows) continue;
      int64_t at = tile.first_row + r;
      if (p.row_to_slot) at = p.row_to_slot[at] / p.top_k;
      row[i] = static_cast<const __nv_bfloat16*>(p.x) + at * p.x_row_stride + chunk() * 8;
    }
  }

  // Columns 64 * slab .. of all rows into `dst`, zeros past the tile's rows and past k_valid.
  __device__ void copy(const GemmParams& p, uint8_t* dst, int slab, bool aligned) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = first_row() + 16 * i;
      const bool valid = row[i] != nullptr && slab * kSlabCols + chunk() * 8 < p.k_valid;
      uint8_t* const at = dst + r * 128 + (chunk() ^ r % 8) * 16;
      const __nv_bfloat16* const src = valid ? row[i] + slab * kSlabCols : static_cast<const __nv_bfloat16*>(p.x);
      if (aligned) {
        ptx::cp_async_16(ptx::shared_address(at), src, valid ? 16 : 0);
      } else {
        for (int j = 0; j < 8; ++j) {
          reinterpret_cast<uint16_t*>(at)[j] = valid ? reinterpret_cast<const uint16_t*>(src)[j] : 0;
        }
      }
    }
  }
};

// The weights of a tile.
struct WeightTiles {
  const uint8_t* tiles;
  int num_tiles;

  template <class C>
  __device__ static WeightTiles of(const GemmParams& p, const Tile& tile) {
    return {p.tiles + tile.expert * p.expert_stride + int64_t{tile.first_m_tile} * p.num_slabs * kTileBytes,
            min(C::kM, p.list.end_m_tile - tile.first_m_tile)};
  }

  // Waits for a free stage, and starts the copy of its slabs.
  template <class C>
  __device__ void load(const GemmParams& p, SharedStorage<C>& shared, const Ring<C>& ring, int slab, int num_slabs) const {
    ptx::mbarrier_wait(shared.empty[ring.stage], ring.parity ^ 1);
    if (threadIdx.x != 0) return;
    const uint32_t bytes = num_slabs * kTileBytes;
    ptx::mbarrier_expect_tx(shared.full[ring.stage], num_tiles * bytes);
    for (int m = 0; m < num_tiles; ++m) {
      ptx::bulk_copy(shared.tiles[ring.stage][m], tiles + (int64_t{m} * p.num_slabs + slab) * kTileBytes, bytes,
                     shared.full[ring.stage]);
    }
  }
};

template <class C>
__device__ void load(const GemmParams& p, SharedStorage<C>& shared) {
  // cp.async moves 16 aligned bytes; a view may start at any element.
  const bool aligned = (reinterpret_cast<uintptr_t>(p.x) | static_cast<uintptr_t>(p.x_row_stride * 2)) % 16 == 0;
  Ring<C> ring;
  for_each_tile<C::kM, C::kN>(p.list, [&](const Tile& tile) {
    const RowGather<C> rows(p, tile);
    const WeightTiles weights = WeightTiles::of<C>(p, tile);
    for (int slab = 0; slab < p.num_slabs; slab += C::kSlabs) {
      const int num_slabs = min(C::kSlabs, p.num_slabs - slab);
      weights.load(p, shared, ring, slab, num_slabs);
      for (int s = rows.first_slab(); s < num_slabs; s += rows.kSlabStep) {
        rows.copy(p, shared.rows[ring.stage][s], slab + s, aligned);
      }
      // cp.async needs no proxy fence before wgmma reads (CUTLASS's CpAsync mainloops have none): the barrier's phase
      // completes when the copies have landed. A fence here would wait for all copies in flight.
      if (aligned) {
        ptx::cp_async_arrive(shared.full[ring.stage]);
      } else {
        ptx::fence_proxy_async();
        ptx::mbarrier_arrive(shared.full[ring.stage]);
      }
      ring.advance();
    }
  });
  ptx::cp_async_wait_all();  // a thread must not end with copies in flight
}

}  // namespace nvfp4
