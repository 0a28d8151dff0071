// SPDX-License-Identifier: Apache-2.0
// The producer warpgroup: streams weight tiles through the copy engine and gathers token rows by index, several stages
// ahead of the tensor cores and across tile borders.
#pragma once
#include "../common/overlap.cuh"
#include "../common/ring.cuh"
#include "../common/tiles.cuh"
#include "config.cuh"
#include "ptx.cuh"

namespace nvfp4 {

// Producers come after the consumers, whose warps wgmma groups by fours.
template <class C>
__device__ int producer_thread() {
  return threadIdx.x - C::kConsumers;
}

// What one thread copies of a tile's rows: 16 bytes, `chunk`, of rows first_row + kRowStep i, in every kLineStep-th
// line of 128 bytes. Loops unroll to copies with constant offsets: the producer must not need more time for a stage
// than tensor cores do.
template <class C>
struct RowGather {
  static constexpr int kAtOnce = C::kProducers / 8;  // rows that all threads copy a line of at once
  // Where there are fewer, the other threads take other lines.
  static constexpr int kLineStep = kAtOnce > C::kN ? kAtOnce / C::kN : 1;
  static constexpr int kRowStep = kAtOnce / kLineStep, kRows = (C::kN + kRowStep - 1) / kRowStep;
  static_assert(kRowStep % 8 == 0, "a thread's rows have one swizzle");
  const uint8_t* row[kRows];  // at first_line and chunk of the next stage; past the tile's rows, its last
  int num_rows;               // of this thread

  __device__ static int first_row() { return producer_thread<C>() / 8 % kRowStep; }
  __device__ static int first_line() { return producer_thread<C>() / 8 / kRowStep; }
  __device__ static int chunk() { return producer_thread<C>() % 8; }

  // Copies the scales of the tile's rows, too, where the producer does that.
  __device__ RowGather(const GemmParams& p, const Tile& tile, float* scales) {
    num_rows = (tile.num_rows - first_row() + kRowStep - 1) / kRowStep;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      int64_t at = tile.first_row + min(first_row() + kRowStep * i, tile.num_rows - 1);
      if (p.row_to_slot) at = p.row_to_slot[at] / p.top_k;
      if constexpr (C::kScalesByProducer) {
        const bool copies = first_line() == 0 && chunk() == 0 && i < num_rows;
        if (copies) ptx::cp_async_4(ptx::shared_address(scales + first_row() + kRowStep * i), p.row_scale + at);
      }
      row[i] =
          static_cast<const uint8_t*>(p.x) + at * p.x_row_stride * C::kColumnBytes + first_line() * 128 + chunk() * 16;
    }
  }

  // Where the thread writes its first row in a stage.
  __device__ static uint32_t target(const SharedStorage<C>& shared, uint32_t stage) {
    return ptx::shared_address(shared.rows[stage][first_line()]) + first_row() * 128 + (chunk() ^ first_row() % 8) * 16;
  }

  // A stage that is full of columns. Rows past the tile's keep what the stage held: their results are not stored.
  __device__ void copy(uint32_t target) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i >= num_rows) continue;
#pragma unroll
      for (int line = 0; line < C::kLines; line += kLineStep) {
        ptx::cp_async_16(target + line * C::kN * 128 + i * kRowStep * 128, row[i] + line * 128);
      }
    }
    advance();
  }

  // Any stage and any alignment: columns up to k_valid, and zeros to the end of the line, which weights of 0 do not
  // make up for where NaN lies there.
  __device__ void copy_checked(const GemmParams& p, uint32_t target, int first_slab, bool aligned) {
    const int lines = (p.num_slabs - first_slab + C::kLineSlabs - 1) / C::kLineSlabs;
    const int valid_bytes = (p.k_valid - first_slab * kSlabCols) * C::kColumnBytes;
    for (int line = first_line(); line < min(C::kLines, lines); line += kLineStep) {
      const bool valid = line * 128 + chunk() * 16 < valid_bytes;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (i >= num_rows) continue;
        const uint32_t at = target + (line - first_line()) * C::kN * 128 + i * kRowStep * 128;
        const uint8_t* const src = row[i] + (line - first_line()) * 128;
        if (aligned) {
          ptx::cp_async_16_or_zeros(at, valid ? src : row[i], valid);
        } else {
          for (int j = 0; j < 8; ++j)
            ptx::store_shared_u16(at + 2 * j, valid ? reinterpret_cast<const uint16_t*>(src)[j] : 0);
        }
      }
    }
    advance();
  }

 private:
  __device__ void advance() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) row[i] += C::kLines * 128;
  }
};

// The weights of a tile.
struct WeightTiles {
  const uint8_t* tiles;
  int num_tiles;
  uint64_t policy;

  template <class C>
  __device__ static WeightTiles of(const GemmParams& p, const Tile& tile, uint64_t policy) {
    return {p.tiles + tile.expert * p.expert_stride + int64_t{tile.first_m_tile} * p.num_slabs * C::kTileBytes,
            tile.num_m_tiles, policy};
  }

  // Starts the copies of a stage, of slabs `slab` and on. Of four tiles each by a thread of its own: one for all of
  // them holds up its warp's copies of rows so long that producers fall behind (by 5 to 12 % of a GEMM). Of one or two
  // by one thread: two threads for two tiles cost more than they save.
  template <class C>
  __device__ void start(const GemmParams& p, SharedStorage<C>& shared, uint32_t stage, int slab) const {
    constexpr int kStarters = C::kTiles == 4 ? 4 : 1;
    if (producer_thread<C>() >= kStarters) return;
    const uint32_t bytes = min(C::kSlabs, p.num_slabs - slab) * C::kTileBytes;
    for (int m = kStarters == 1 ? 0 : producer_thread<C>(); m < num_tiles; m += kStarters) {
      ptx::mbarrier_expect_tx(shared.full[stage], bytes);
      ptx::bulk_copy(shared.tiles[stage][m], tiles + (int64_t{m} * p.num_slabs + slab) * C::kTileBytes, bytes,
                     shared.full[stage], policy);
    }
  }

  // Waits until the stage is free, and starts its copies.
  template <class C>
  __device__ void load(const GemmParams& p, SharedStorage<C>& shared, const Ring<C>& ring, int slab) const {
    ptx::mbarrier_wait(shared.empty[ring.stage], ring.parity ^ 1);
    start<C>(p, shared, ring.stage, slab);
  }

  // Of a CTA's first tile: starts copies before anything is known of rows, which the kernel before this one may still
  // find or compute, then waits for that kernel. Returns the slabs that were started: of the whole ring, or of one
  // stage where that kernel has ended, because more would come before the first stage's rows.
  template <class C>
  __device__ int load_ahead(const GemmParams& p, SharedStorage<C>& shared) const {
    const int slabs = min((p.tiles_known ? C::kStages : 1) * C::kSlabs, p.num_slabs);
    for (int stage = 0; stage * C::kSlabs < slabs; ++stage) start<C>(p, shared, stage, stage * C::kSlabs);
    follow_previous();
    return slabs;
  }
};

template <class C>
__device__ void load(const GemmParams& p, SharedStorage<C>& shared) {
  // cp.async moves 16 aligned bytes; a view may start at any element.
  const uintptr_t row_bytes = p.x_row_stride * C::kColumnBytes;
  const bool aligned = (reinterpret_cast<uintptr_t>(p.x) | row_bytes) % 16 == 0;
  const int full_slabs = aligned ? p.k_valid * C::kColumnBytes / 128 * C::kLineSlabs : 0;
  // An expert's row tiles are done together; those of a linear may be many rounds apart.
  const uint64_t policy = ptx::read_policy(p.list.groups != nullptr);
  Ring<C> ring;
  ScaleSlot<C> scales;
  bool is_first = true;
  for_each_tile<C::kTiles, 8, C::kByWarps>(p.list, [&](const Tile& tile) {
    const WeightTiles weights = WeightTiles::of<C>(p, tile, policy);
    const int started = is_first ? weights.load_ahead(p, shared) : 0;
    is_first = false;
    RowGather<C> rows(p, tile, shared.row_scale[scales.next()]);
    for (int slab = 0; slab < p.num_slabs; slab += C::kSlabs) {
      if (slab >= started) weights.load(p, shared, ring, slab);
      const uint32_t target = rows.target(shared, ring.stage);
      if (slab + C::kSlabs <= full_slabs) {
        rows.copy(target);
      } else {
        rows.copy_checked(p, target, slab, aligned);
      }
      // cp.async needs no proxy fence before wgmma reads (CUTLASS's CpAsync mainloops have none): the barrier's phase
      // completes when the copies have landed. A fence here would wait for all copies in flight.
      if (aligned) {
        ptx::cp_async_arrive(shared.full[ring.stage]);
      } else {
        if (C::kScalesByProducer) ptx::cp_async_wait_all();
        ptx::fence_proxy_async();
        ptx::mbarrier_arrive(shared.full[ring.stage]);
      }
      ring.advance();
    }
  });
  if (is_first) return pass_by();
  ptx::cp_async_wait_all();  // a thread must not end with copies in flight
}

}  // namespace nvfp4
