// SPDX-License-Identifier: Apache-2.0
// The producer warps: stream weight tiles through the copy engine and gather token rows by index, several stages ahead
// of the tensor cores and across tile borders.
#pragma once
#include "../common/format.cuh"
#include "../common/overlap.cuh"
#include "../common/ring.cuh"
#include "../common/tiles.cuh"
#include "config.cuh"
#include "ptx.cuh"
#include "wait.cuh"

namespace nvfp4::sm120 {

constexpr int kProducerBarrier = 1, kConsumerBarrier = 2;  // 0 is __syncthreads'

// Producers come after the consumers.
template <class C>
__device__ int producer_thread() {
  return threadIdx.x - C::kConsumers;
}

// Copies of a tile's token rows. The loops are plain: what they cost is small beside what a stage's weights take from
// memory.
template <class C>
class RowGather {
 public:
  // Finds the rows of x that the tile reads.
  __device__ RowGather(const GemmSm120Params& p, const Tile& tile, SharedStorage<C>& shared)
      : p_(p), shared_(shared), num_rows_(tile.num_rows), row_bytes_(bytes_of(p.gemm.x_row_stride)) {
    is_aligned_ = (reinterpret_cast<uintptr_t>(p.gemm.x) | row_bytes_) % 16 == 0;
    ptx::named_barrier(kProducerBarrier, C::kProducers);  // the previous tile's have been read
    for (int r = producer_thread<C>(); r < num_rows_; r += C::kProducers) {
      const int32_t row = tile.first_row + r;
      shared.source[r] = p.gemm.row_to_slot ? p.gemm.row_to_slot[row] / p.gemm.top_k : row;
    }
    ptx::named_barrier(kProducerBarrier, C::kProducers);
  }

  // A stage, of slabs `slab` and on. Rows past the tile's keep what the stage held: their results are not stored.
  // Columns past k_valid become 0, which weights of 0 do not make up for where NaN lies there.
  __device__ void copy(uint32_t stage, int slab) const {
    const int slabs = min(C::kSlabs, p_.gemm.num_slabs - slab);
    copy_values(stage, slab, slabs);
    if constexpr (C::kIsNvfp4) copy_scales(stage, slab, slabs);
    if (C::kIsNvfp4 || is_aligned_) {
      ptx::cp_async_arrive(shared_.full[stage]);
    } else {
      ptx::mbarrier_arrive(shared_.full[stage]);
    }
  }

 private:
  // Of so many columns of a row.
  __device__ static int64_t bytes_of(int64_t columns) { return C::kIsNvfp4 ? columns / 2 : columns * 2; }

  __device__ void copy_values(uint32_t stage, int slab, int slabs) const {
    constexpr int kChunks = C::kLineBytes / 16, kStageChunks = C::kLines * kChunks;  // of a row
    const int valid_bytes = static_cast<int>(bytes_of(p_.gemm.k_valid - slab * kSlabCols));
    for (int i = producer_thread<C>(); i < num_rows_ * kStageChunks; i += C::kProducers) {
      const int row = i / kStageChunks, chunk = i % kStageChunks;
      if (chunk * 16 >= slabs * C::kRowBytes) continue;
      const auto* const first = static_cast<const uint8_t*>(p_.gemm.x) + shared_.source[row] * row_bytes_;
      const int valid = max(0, min(16, valid_bytes - chunk * 16));
      const uint8_t* const from = valid > 0 ? first + slab * C::kRowBytes + chunk * 16 : first;
      const uint32_t to = ptx::shared_address(shared_.rows[stage][chunk / kChunks]) +
                          chunk_offset<C::kIsNvfp4, C::kLineBytes>(row, chunk % kChunks);
      copy_chunk(to, from, valid);
    }
  }

  // cp.async moves 16 aligned bytes; codes of a row begin at a multiple of 8 bytes, a view of bf16 at any element.
  __device__ void copy_chunk(uint32_t to, const uint8_t* from, int valid) const {
    if (is_aligned_) {
      ptx::cp_async_16_of(to, from, valid);
    } else if constexpr (C::kIsNvfp4) {
      ptx::cp_async_8_of(to, from, min(valid, 8));
      ptx::cp_async_8_of(to + 8, valid > 8 ? from + 8 : from, max(valid - 8, 0));
    } else {
      for (int j = 0; j < 8; ++j)
        ptx::store_shared_u16(to + 2 * j, 2 * j < valid ? reinterpret_cast<const uint16_t*>(from)[j] : 0);
    }
  }

  // Four of a row in each slab; those past the last block become 0.
  __device__ void copy_scales(uint32_t stage, int slab, int slabs) const {
    const int num_blocks = p_.gemm.k_valid / kBlockSize;
    for (int i = producer_thread<C>(); i < slabs * C::kN; i += C::kProducers) {
      const int row = i % C::kN, own = slab + i / C::kN, block = own * kSlabSteps;
      if (row >= num_rows_) continue;
      const uint8_t* const from = p_.x_block_scale + sf_offset_128x4(shared_.source[row], block, num_blocks);
      ptx::cp_async_4_of(ptx::shared_address(&shared_.scales[stage][i / C::kN][row]), from,
                         min(kSlabSteps, num_blocks - block));
    }
  }

  const GemmSm120Params& p_;
  SharedStorage<C>& shared_;
  const int num_rows_;
  const int64_t row_bytes_;
  bool is_aligned_;
};

// The weights of a tile.
template <class C>
struct WeightTiles {
  const uint8_t* tiles;
  int num_tiles;
  uint64_t policy;

  __device__ WeightTiles(const GemmParams& p, const Tile& tile, uint64_t policy)
      : tiles(p.tiles + tile.expert * p.expert_stride + int64_t{tile.first_m_tile} * p.num_slabs * kTileBytes),
        num_tiles(tile.num_m_tiles),
        policy(policy) {}

  // Starts the copies of a stage, of slabs `slab` and on.
  __device__ void start(const GemmParams& p, SharedStorage<C>& shared, uint32_t stage, int slab) const {
    if (producer_thread<C>() != 0) return;
    const uint32_t bytes = min(C::kSlabs, p.num_slabs - slab) * kTileBytes;
    for (int m = 0; m < num_tiles; ++m) {
      ptx::mbarrier_expect_tx(shared.full[stage], bytes);
      ptx::bulk_copy(shared.tiles[stage][m], tiles + (int64_t{m} * p.num_slabs + slab) * kTileBytes, bytes,
                     shared.full[stage], policy);
    }
  }

  // Of a CTA's first tile: starts copies before anything is known of rows, which the kernel before this one may still
  // find or compute, then waits for that kernel. Returns the slabs that were started.
  __device__ int start_ahead(const GemmParams& p, SharedStorage<C>& shared) const {
    const int slabs = min(C::kStages * C::kSlabs, p.num_slabs);
    for (int stage = 0; stage * C::kSlabs < slabs; ++stage) start(p, shared, stage, stage * C::kSlabs);
    follow_previous();
    return slabs;
  }
};

template <class C>
__device__ void load(const GemmSm120Params& p, SharedStorage<C>& shared) {
  // An expert's row tiles are done together; those of a linear may be many rounds apart.
  const uint64_t policy = ptx::read_policy(p.gemm.list.groups != nullptr);
  Ring<C> ring;
  bool is_first = true;
  for_each_tile<C::kTiles>(p.gemm.list, [&](const Tile& tile) {
    const WeightTiles<C> weights(p.gemm, tile, policy);
    const int started = is_first ? weights.start_ahead(p.gemm, shared) : 0;
    is_first = false;
    const RowGather<C> rows(p, tile, shared);
    for (int slab = 0; slab < p.gemm.num_slabs; slab += C::kSlabs) {
      if (slab >= started) {
        wait_until_empty(p, shared, ring.stage, ring.parity ^ 1);
        weights.start(p.gemm, shared, ring.stage, slab);
      }
      rows.copy(ring.stage, slab);
      ring.advance();
    }
  });
  if (is_first) return pass_by();
  ptx::cp_async_wait_all();  // a thread must not end with copies in flight
}

}  // namespace nvfp4::sm120
