// SPDX-License-Identifier: Apache-2.0
// A consumer warpgroup: dequantises 64 weight rows in registers and multiplies them with the token rows in shared
// memory.
#pragma once
#include "dequantize.cuh"
#include "load.cuh"
#include "wgmma.cuh"

namespace nvfp4 {

// What a thread reads of a slab of its weight tile, for rows of bf16 or of e4m3; these may have rounded weights.
template <int kColumnBytes, bool kRounded>
struct SlabWords;

template <>
struct SlabWords<2, false> {
  static constexpr int kScaleSlabs = 1;  // slabs that have the same scales
  uint4 codes;
  uint2 scales;

  // Of slab `slab` of a run of them.
  __device__ static SlabWords read(const uint8_t* run, int slab) {
    const int t = threadIdx.x % 128;
    const uint8_t* const tile = run + slab * kTileBytes;
    return {reinterpret_cast<const uint4*>(tile)[t], reinterpret_cast<const uint2*>(tile + kTileCodeBytes)[t / 4]};
  }

  // A fragments of all steps.
  __device__ void dequantize_all(uint32_t (*a)[4]) const {
    dequantize_two<0>(a[0], a[1]);
    dequantize_two<1>(a[2], a[3]);
  }

 private:
  // Of steps 2 i and 2 i + 1 of bf16.
  template <int i>
  __device__ void dequantize_two(uint32_t (&a)[4], uint32_t (&b)[4]) const {
    const ScalePairs pairs = ScalePairs::decode(i == 0 ? scales.x : scales.y);
    dequantize<0>(i == 0 ? codes.x : codes.z, pairs.even, pairs.odd, a);
    dequantize<1>(i == 0 ? codes.y : codes.w, pairs.even, pairs.odd, b);
  }
};

// A fragments of both steps of e4m3.
__device__ inline void dequantize_fp8_all(const uint4& codes, Fp8Table g, Fp8Table g8, uint32_t (*a)[4]) {
  dequantize_fp8(codes.x, g, g8, a[0][0], a[0][1]);
  dequantize_fp8(codes.y, g, g8, a[0][2], a[0][3]);
  dequantize_fp8(codes.z, g, g8, a[1][0], a[1][1]);
  dequantize_fp8(codes.w, g, g8, a[1][2], a[1][3]);
}

template <>
struct SlabWords<1, false> {
  static constexpr int kScaleSlabs = kPairSlabs;
  uint4 codes;
  uint2 scales;  // of rows g and g + 8

  __device__ static SlabWords read(const uint8_t* run, int slab) {
    const uint8_t* const own = run + slab / kPairSlabs * kPairBytes + kPairCodeBytes + threadIdx.x % 128;
    return SlabWords{{}, {own[0], own[128]}}.with_codes(run, slab);
  }
  // The same scales, with the codes of this slab.
  __device__ SlabWords with_codes(const uint8_t* run, int slab) const {
    const uint8_t* const pair = run + slab / kPairSlabs * kPairBytes;
    return {reinterpret_cast<const uint4*>(pair + slab % kPairSlabs * kTileCodeBytes)[threadIdx.x % 128], scales};
  }

  __device__ void dequantize_all(uint32_t (*a)[4]) const {
    dequantize_fp8_all(codes, Fp8Table(scales.x), Fp8Table(scales.y), a);
  }
};

template <>
struct SlabWords<1, true> {
  static constexpr int kScaleSlabs = 1;
  uint4 codes;
  uint32_t scales;

  __device__ static SlabWords read(const uint8_t* run, int slab) {
    const int t = threadIdx.x % 128;
    const uint8_t* const tile = run + slab * kTileBytes;
    return {reinterpret_cast<const uint4*>(tile)[t], reinterpret_cast<const uint16_t*>(tile + kTileCodeBytes)[t]};
  }

  __device__ void dequantize_all(uint32_t (*a)[4]) const {
    dequantize_fp8_all(codes, Fp8Table::rounded(scales & 0xFF), Fp8Table::rounded(scales >> 8), a);
  }
};

// Adds the sums of the warpgroups along K to those of the first, in order. True for the warpgroup that holds the
// result.
template <class C, int kValues>
__device__ bool reduce_along_k(SharedStorage<C>& shared, int m, int k, float (&acc)[kValues]) {
  if constexpr (C::kK == 1) return true;
  const int t = threadIdx.x % 128;
  ptx::named_barrier(1, C::kConsumers);  // the previous tile's sums have been read
  if (k > 0) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) shared.partial[k - 1][m][i][t] = acc[i];
  }
  ptx::named_barrier(1, C::kConsumers);
  if (k > 0) return false;
#pragma unroll
  for (int other = 0; other < C::kK - 1; ++other) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) acc[i] += shared.partial[other][m][i][t];
  }
  return true;
}

template <int kCount_>
struct Columns {
  static constexpr int kCount = kCount_;
};

// Calls body(columns) once a tile, with a loop of its own for each number of columns that the tensor core multiplies.
// Two are what the registers of few rows allow.
template <class C, class Body>
__device__ void with_columns_of_tile(int num_rows, Body body) {
  if constexpr (C::kNarrow < C::kN) {
    if (num_rows <= C::kNarrow) return body(Columns<C::kNarrow>{});
  }
  body(Columns<C::kN>{});
}

// The sums of a warpgroup's weight tiles over its share of the slabs. A stage is done in turns, each of one tile, with
// two sets of fragments: one is dequantised while the tensor core reads the other. Warpgroups of two tiles are few, and
// have registers: they read the words of a turn one turn ahead.
template <class C, int kTileColumns>
class Accumulation {
 public:
  float acc[C::kGroupTiles][kTileColumns / 2];

  __device__ Accumulation(SharedStorage<C>& shared, Ring<C> ring, int m, int k)
      : shared_(shared), ring_(ring), m_(m), k_(k) {
#pragma unroll
    for (int i = 0; i < C::kGroupTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kTileColumns / 2; ++j) acc[i][j] = 0.0f;
    }
  }

  // Token rows past num_rows may be left out.
  __device__ void run(int num_slabs, int num_rows) {
    int left = num_slabs - k_ * C::kGroupSlabs;  // from this warpgroup's first one on
    if (kReadsAhead && left >= C::kGroupSlabs) begin_stage();
    for (; left >= C::kGroupSlabs; left -= C::kSlabs) stage(num_rows, left - C::kSlabs >= C::kGroupSlabs);
    if (left + k_ * C::kGroupSlabs > 0) last_stage(left);
    ptx::wgmma_wait<0>();
    release_previous();
  }

  __device__ Ring<C> ring() const { return ring_; }

  // Lets the stages of a tile pass, of which this warpgroup has no weights.
  __device__ void skip(int num_slabs) {
    for (int slab = 0; slab < num_slabs; slab += C::kSlabs) {
      ptx::mbarrier_wait(shared_.full[ring_.stage], ring_.parity);
      previous_ = ring_.stage;
      release_previous();
      ring_.advance();
    }
  }

 private:
  using Words = SlabWords<C::kColumnBytes, C::kRounded>;
  static constexpr bool kByTile = C::kGroupTiles == 2;  // else by columns
  static constexpr bool kReadsAhead = kByTile;
  static constexpr int kTurnSlabs = C::kK == 1 ? kSlabSteps / C::kSteps : C::kGroupSlabs / 2;
  static constexpr int kTurns = C::kGroupTiles * C::kGroupSlabs / kTurnSlabs;
  static constexpr int kTurnSteps = kTurnSlabs * C::kSteps;
  static constexpr int kTileStride = C::kSlabs * C::kTileBytes;
  static __device__ constexpr int tile_of(int turn) { return kByTile ? turn % 2 : 0; }
  static __device__ constexpr int slab_of(int turn) { return (kByTile ? turn / 2 : turn) * kTurnSlabs; }
  // Where a step reads token rows, in the descriptor's units of 16 bytes; a step is two of them.
  static __device__ constexpr int rows_of(int slab, int step) {
    return slab / C::kLineSlabs * C::kN * 8 + slab % C::kLineSlabs * 2 * C::kSteps + step * 2;
  }

  template <int kColumns>
  __device__ static void multiply_add(float (&d)[kTileColumns / 2], const uint32_t (&a)[4], uint64_t rows) {
    if constexpr (C::kColumnBytes == 2) {
      ptx::Wgmma<kColumns>::multiply_add_bf16(d, a, rows);
    } else {
      ptx::Wgmma<kColumns>::multiply_add_e4m3(d, a, rows);
    }
  }

  // The steps of a turn, as one group. In the widest kernel the tensor core's time is what is short, so that a tile
  // costs what its rows cost, in steps of 16.
  __device__ static void multiply_turn(float (&d)[kTileColumns / 2], const uint32_t (&a)[kTurnSteps][4],
                                       const ptx::RowsDescriptor& rows, int slab, int num_rows) {
    const auto at = [&](int i) { return rows.at(rows_of(slab + i / C::kSteps, i % C::kSteps)); };
    if constexpr (C::kN == GEMM_SM90_WIDEST_ROWS) {
      const ptx::WidestSteps steps(num_rows);
      const uint64_t b[4] = {at(0), at(1), at(2), at(3)};
      if constexpr (C::kColumnBytes == 2) {
        steps.multiply_add_bf16(d, a, b);
      } else {
        steps.multiply_add_e4m3(d, a, b);
      }
    } else {
      ptx::wgmma_fence();
#pragma unroll
      for (int i = 0; i < kTurnSteps; ++i) multiply_add<kTileColumns>(d, a[i], at(i));
      ptx::wgmma_commit();
    }
  }

  // The tensor core has read it.
  __device__ void release_previous() {
    if (previous_ < 0) return;
    __syncwarp();
    if (threadIdx.x % 32 < kReleasingLanes) ptx::mbarrier_arrive(shared_.empty[previous_]);
  }

  // The words of a turn. What has no scales of its own has those of the slab before, which may be of the last turn.
  __device__ void read(int turn) {
    const uint8_t* const run = tiles_ + tile_of(turn) * kTileStride;
#pragma unroll
    for (int i = 0; i < kTurnSlabs; ++i) {
      const int slab = slab_of(turn) + i;
      if (slab % Words::kScaleSlabs == 0) {
        words_[i] = Words::read(run, slab);
      } else if constexpr (Words::kScaleSlabs > 1) {
        words_[i] = words_[i > 0 ? i - 1 : 0].with_codes(run, slab);
      }
    }
  }

  __device__ void open_stage() {
    ptx::mbarrier_wait(shared_.full[ring_.stage], ring_.parity);
    tiles_ = shared_.tiles[ring_.stage][m_ * C::kGroupTiles] + k_ * C::kGroupSlabs * C::kTileBytes;
  }

  __device__ void begin_stage() {
    open_stage();
    read(0);
  }

  __device__ void stage(int num_rows, bool has_next) {
    if (!kReadsAhead) open_stage();
    const int own = ring_.stage;
    const ptx::RowsDescriptor rows(shared_.rows[own][k_ * C::kGroupSlabs / C::kLineSlabs]);
    ring_.advance();
    uint32_t a[2][kTurnSteps][4];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (!kReadsAhead) read(turn);
#pragma unroll
      for (int i = 0; i < kTurnSlabs; ++i) {
        words_[i].dequantize_all(&a[turn % 2][i * C::kSteps]);
      }
      if (kReadsAhead && turn + 1 < kTurns) read(turn + 1);
      multiply_turn(acc[tile_of(turn)], a[turn % 2], rows, slab_of(turn), num_rows);
      if (kReadsAhead && turn + 1 == kTurns && has_next) begin_stage();
      ptx::wgmma_wait<1>();
      if (turn == 0) release_previous();
    }
    previous_ = own;
  }

  // A last stage of fewer slabs than the warpgroup's share, or of none.
  __device__ void last_stage(int slabs) {
    open_stage();
    ptx::wgmma_wait<0>();
    release_previous();
    const ptx::RowsDescriptor rows(shared_.rows[ring_.stage][k_ * C::kGroupSlabs / C::kLineSlabs]);
#pragma unroll 1
    for (int slab = 0; slab < slabs; ++slab) {
#pragma unroll
      for (int tile = 0; tile < C::kGroupTiles; ++tile) {
        const Words words = Words::read(tiles_ + tile * kTileStride, slab);
        uint32_t a[C::kSteps][4];
        words.dequantize_all(a);
        ptx::wgmma_fence();
#pragma unroll
        for (int i = 0; i < C::kSteps; ++i) {
          multiply_add<kTileColumns>(acc[tile], a[i], rows.at(rows_of(slab, i)));
        }
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
      }
    }
    previous_ = ring_.stage;
    ring_.advance();
  }

  SharedStorage<C>& shared_;
  Ring<C> ring_;
  const int m_, k_;                 // of this warpgroup
  int previous_ = -1;               // stage
  const uint8_t* tiles_ = nullptr;  // this warpgroup's, of the stage that is being read
  Words words_[kTurnSlabs];         // of the next turn
};

template <class C, class Output>
__device__ void multiply(const GemmParams& p, SharedStorage<C>& shared) {
  // The shuffle tells the compiler that a warp agrees on it.
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0);
  const int m = warpgroup % C::kM, k = warpgroup / C::kM;
  Ring<C> ring;
  ScaleSlot<C> scales;
  for_each_tile<C::kTiles, 8, C::kByWarps>(p.list, [&](const Tile& tile) {
    // The others add to the sums of these, or have no weight tile.
    const bool stores = k == 0 && m * C::kGroupTiles < tile.num_m_tiles;
    const Output output(p, tile, shared, scales.next(), stores);
    with_columns_of_tile<C>(tile.num_rows, [&](auto columns) {
      Accumulation<C, decltype(columns)::kCount> sums(shared, ring, m, k);
      // A second weight tile that there is not is multiplied as the stage held it before, and not stored.
      if (C::kM == 1 || m * C::kGroupTiles < tile.num_m_tiles) {
        sums.run(p.num_slabs, tile.num_rows);
      } else {
        sums.skip(p.num_slabs);
      }
      // Where the ring stands now. `sums` knows, and asking it costs least; but what two branches leave there the
      // compiler does not know to be the same in a whole warp, so that after them it is computed.
      if constexpr (C::kM == 1) {
        ring = sums.ring();
      } else {
        ring.advance((p.num_slabs + C::kSlabs - 1) / C::kSlabs);
      }
      if (!reduce_along_k<C>(shared, m, k, sums.acc[0])) return;
#pragma unroll
      for (int i = 0; i < C::kGroupTiles; ++i) {
        const int own = m * C::kGroupTiles + i;
        if (own < tile.num_m_tiles) output.store(tile.first_m_tile + own, i, sums.acc[i], shared);
      }
    });
  });
}

}  // namespace nvfp4
