// SPDX-License-Identifier: Apache-2.0
// Few tokens in mode fp8: rows of bf16 become e4m3 on their way into the pipeline, so that no launch does it before.
// Consumers, who have nothing else to do yet, find each row's largest magnitude; producers convert. The law, and so the
// bits, are quantize_fp8.cu's.
#pragma once
#include "../quantize/quantize_row.cuh"
#include "e4m3.cuh"
#include "few_tables.cuh"
#include "load.cuh"

namespace nvfp4 {

// Rows of bf16 that a CTA multiplies: those of x by token, or those of h by row.
struct FewRows {
  const GemmParams& p;
  const FewTables& tables;
  bool by_token;

  __device__ int source(int row) const { return by_token ? tables.row_to_slot[row] / p.top_k : row; }
  __device__ const __nv_bfloat16* at(int source) const {
    return static_cast<const __nv_bfloat16*>(p.x) + source * p.x_row_stride;
  }
  __device__ float scale(int row) const { return fp8_row_scale(__uint_as_float(tables.amax[source(row)])); }
};

// 16 neighbours of a bf16 row, two a word.
struct FewBlock {
  uint32_t words[kBlockSize / 2];

  __device__ static FewBlock read(const __nv_bfloat16* at) {
    FewBlock block;
#pragma unroll
    for (int i = 0; i < kBlockSize / 2; ++i) block.words[i] = 0;
    if (reinterpret_cast<uintptr_t>(at) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) reinterpret_cast<uint4*>(block.words)[i] = reinterpret_cast<const uint4*>(at)[i];
    } else {
      for (int i = 0; i < kBlockSize; ++i) {
        block.words[i / 2] |= uint32_t{reinterpret_cast<const uint16_t*>(at)[i]} << i % 2 * 16;
      }
    }
    return block;
  }

  // bf16 bits of the largest finite magnitude, and how many values are not finite.
  __device__ uint32_t amax(int& nonfinite) const {
    constexpr uint32_t kInfinite = 0x7F80;
    uint32_t both = 0;
#pragma unroll
    for (int i = 0; i < kBlockSize / 2; ++i) both = __vmaxu2(both, words[i] & 0x7FFF7FFFu);
    uint32_t largest = max(both & 0xFFFF, both >> 16);
    if (largest < kInfinite) return largest;
    largest = 0;
    for (int i = 0; i < kBlockSize / 2; ++i) {
      for (int half = 0; half < 2; ++half) {
        const uint32_t magnitude = words[i] >> half * 16 & 0x7FFF;
        if (magnitude < kInfinite) largest = max(largest, magnitude);
        nonfinite += magnitude >= kInfinite;
      }
    }
    return largest;
  }
};

// Finds the largest finite magnitudes of the sources that this CTA reads. By so many warps; counts in `status`, unless it
// is NULL, what is not finite.
__device__ inline void find_amax(const FewRows& rows, FewTables& tables, int num_warps, DeviceStatus* status) {
  constexpr int kBatch = 4;  // loads in flight
  const int num_blocks = rows.p.k_valid / kBlockSize, units = (num_blocks + 31) / 32;  // of a source, a warp each
  const int all = tables.num_sources * units;
  for (int first = threadIdx.x / 32; first < all; first += kBatch * num_warps) {
    FewBlock blocks[kBatch] = {};
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int unit = first + i * num_warps, source = unit / units, block = unit % units * 32 + threadIdx.x % 32;
      if (unit < all && tables.is_read[source] && block < num_blocks) {
        blocks[i] = FewBlock::read(rows.at(source) + block * kBlockSize);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int unit = first + i * num_warps, source = unit / units;
      if (unit >= all) break;
      Block seen = {};
      const uint32_t amax = __reduce_max_sync(~0u, blocks[i].amax(seen.nonfinite));
      if (threadIdx.x % 32 == 0) atomicMax(&tables.amax[source], amax << 16);
      if (status) report(status, seen, rows.by_token ? source : tables.row_to_slot[source] / rows.p.top_k);
    }
  }
}

// What a thread converts of a stage: up to kEach pieces of 16 bytes of e4m3. A piece is four columns of each of four
// blocks (fp8_row_word), so that it is read as 4 x 8 bytes.
template <class C, int kEach>
struct FewPieces {
  static constexpr int kPerRow = C::kLines * 8;  // of a stage
  uint2 columns[kEach][4];

  __device__ static int piece(int i) { return i * C::kProducers + producer_thread<C>(); }

  // Of a stage that begins with `first_slab`.
  __device__ void read(const FewRows& rows, const Tile& tile, int first_slab, bool aligned) {
    const int num_blocks = rows.p.k_valid / kBlockSize;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int row = piece(i) / kPerRow, in_row = piece(i) % kPerRow;
      if (row >= tile.num_rows) break;
      const int slab = first_slab + in_row / 4, word = in_row % 4;
      const __nv_bfloat16* const at = rows.at(rows.source(tile.first_row + row)) + slab * kSlabCols + word * 4;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        columns[i][b] = {};
        if (slab * kSlabSteps + b >= num_blocks) continue;
        if (aligned) {
          columns[i][b] = *reinterpret_cast<const uint2*>(at + b * kBlockSize);
        } else {
          const auto* const one = reinterpret_cast<const uint16_t*>(at + b * kBlockSize);
          columns[i][b] = make_uint2(one[0] | uint32_t{one[1]} << 16, one[2] | uint32_t{one[3]} << 16);
        }
      }
    }
  }

  __device__ void write(const FewRows& rows, const Tile& tile, SharedStorage<C>& shared, uint32_t stage) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int row = piece(i) / kPerRow, in_row = piece(i) % kPerRow;
      if (row >= tile.num_rows) break;
      const float encode = __fdiv_rn(1.0f, rows.scale(tile.first_row + row));
      uint32_t words[4];
#pragma unroll
      for (int b = 0; b < 4; ++b) words[b] = four(columns[i][b], encode);
      auto* const line = shared.rows[stage][in_row / 8] + row * 128;
      reinterpret_cast<uint4*>(line)[in_row % 8 ^ row % 8] = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }

 private:
  __device__ static uint32_t four(uint2 x, float encode) {
    const auto low = [](uint32_t word) { return __uint_as_float(word << 16); };
    const auto high = [](uint32_t word) { return __uint_as_float(word & 0xFFFF0000u); };
    return e4m3_pair(low(x.x) * encode, high(x.x) * encode) | e4m3_pair(low(x.y) * encode, high(x.y) * encode) << 16;
  }
};

// The stages of a tile, whose rows are read kDepth stages ahead. The first `started` slabs' weights are on their way.
template <class C, int kEach, int kDepth>
__device__ void load_few_tile(const FewRows& rows, const Tile& tile, const WeightTiles& weights, int started,
                              SharedStorage<C>& shared, Ring<C>& ring, bool aligned) {
  FewPieces<C, kEach> pieces[kDepth];
  const int num_slabs = rows.p.num_slabs;
#pragma unroll
  for (int i = 0; i < kDepth; ++i) {
    if (i * C::kSlabs < num_slabs) pieces[i].read(rows, tile, i * C::kSlabs, aligned);
  }
  for (int first = 0; first < num_slabs; first += kDepth * C::kSlabs) {
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      const int slab = first + i * C::kSlabs, ahead = slab + kDepth * C::kSlabs;
      if (slab >= num_slabs) break;
      if (slab >= started) weights.load(rows.p, shared, ring, slab);
      pieces[i].write(rows, tile, shared, ring.stage);
      ptx::fence_proxy_async();
      ptx::mbarrier_arrive(shared.full[ring.stage]);
      ring.advance();
      if (ahead < num_slabs) pieces[i].read(rows, tile, ahead, aligned);
    }
  }
}

// The producers' part, beside load().
template <class C>
__device__ void load_few(const FewRows& rows, SharedStorage<C>& shared) {
  constexpr int kPieces = C::kLines * 8 * C::kN / C::kProducers;  // a thread's, of a stage with all rows
  const GemmParams& p = rows.p;
  const bool aligned = (reinterpret_cast<uintptr_t>(p.x) | p.x_row_stride * 2) % 8 == 0;
  const uint64_t policy = ptx::read_policy(true);
  Ring<C> ring;
  bool is_first = true;
  for_each_tile<C::kTiles>(p.list, [&](const Tile& tile) {
    const WeightTiles weights = WeightTiles::of<C>(p, tile, policy);
    int started = 0;
    if (is_first) {
      started = weights.load_ahead(p, shared);
      ptx::named_barrier(2, C::kThreads);  // amax is known
    }
    is_first = false;
    if (tile.num_rows * FewPieces<C, 1>::kPerRow <= C::kProducers) {
      load_few_tile<C, 1, 4>(rows, tile, weights, started, shared, ring, aligned);
    } else {
      load_few_tile<C, kPieces, 1>(rows, tile, weights, started, shared, ring, aligned);
    }
  });
  if (is_first) pass_by();
}

}  // namespace nvfp4
