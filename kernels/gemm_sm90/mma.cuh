// A consumer warpgroup: dequantises 64 weight rows in registers and multiplies them with the token rows in shared memory.
#pragma once
#include "load_packed.cuh"
#include "wgmma.cuh"

namespace nvfp4 {

// A fragments of some slabs of a weight tile.
template <int kSlabs>
using Fragments = uint32_t[kSlabs * kSlabSteps][4];

__device__ inline void dequantize_slab(const uint8_t* tile, uint32_t (*a)[4]) {
  const int t = threadIdx.x % 128;
  const uint4 codes = reinterpret_cast<const uint4*>(tile)[t];
  const uint2 scales = reinterpret_cast<const uint2*>(tile + kTileCodeBytes)[t / 4];
  dequantize(codes.x, decode_scale<0>(scales.x), decode_scale<1>(scales.x), a[0]);
  dequantize(codes.y, decode_scale<2>(scales.x), decode_scale<3>(scales.x), a[1]);
  dequantize(codes.z, decode_scale<0>(scales.y), decode_scale<1>(scales.y), a[2]);
  dequantize(codes.w, decode_scale<2>(scales.y), decode_scale<3>(scales.y), a[3]);
}

// Starts acc += tile x rows^T over some slabs. `a` and `acc` are the tensor core's until a wait.
template <int kN, int kSlabs>
__device__ void start(const uint8_t* tile, uint32_t rows, Fragments<kSlabs>& a, float (&acc)[kN / 2]) {
#pragma unroll
  for (int s = 0; s < kSlabs; ++s) dequantize_slab(tile + s * kTileBytes, a + s * kSlabSteps);
  const uint64_t descriptor = ptx::rows_descriptor(rows);
  ptx::wgmma_fence();
#pragma unroll
  for (int i = 0; i < kSlabs * kSlabSteps; ++i) {  // 16 bf16 are 2 units of 16 bytes
    const int offset = i / kSlabSteps * (kN * 128 / 16) + i % kSlabSteps * 2;
    ptx::Wgmma<kN>::multiply_add(acc, a[i], descriptor + offset);
  }
  ptx::wgmma_commit();
}

// Adds the sums of the warpgroups along K to those of the first, in order. True for the warpgroup that holds the result.
template <class C>
__device__ bool reduce_along_k(SharedStorage<C>& shared, int m, int k, float (&acc)[C::kN / 2]) {
  if constexpr (C::kK == 1) return true;
  const int t = threadIdx.x % 128;
  ptx::named_barrier(1, C::kConsumers);  // the previous tile's sums have been read
  if (k > 0) {
#pragma unroll
    for (int i = 0; i < C::kN / 2; ++i) shared.partial[k - 1][m][i][t] = acc[i];
  }
  ptx::named_barrier(1, C::kConsumers);
  if (k > 0) return false;
#pragma unroll
  for (int other = 0; other < C::kK - 1; ++other) {
#pragma unroll
    for (int i = 0; i < C::kN / 2; ++i) acc[i] += shared.partial[other][m][i][t];
  }
  return true;
}

// The sums of a warpgroup's weight tiles over its share of the slabs. Two sets of fragments, so that one is
// dequantised while the tensor core reads the other: otherwise all warps dequantise at the same time, and then all wait.
template <class C>
__device__ void accumulate(int num_slabs, SharedStorage<C>& shared, Ring<C>& ring, int m, int k,
                           float (&acc)[C::kGroupTiles][C::kN / 2]) {
  constexpr int kUnitSlabs = C::kGroupTiles > 1 ? C::kGroupSlabs : C::kGroupSlabs / 2;
  static_assert(C::kGroupSlabs / kUnitSlabs * C::kGroupTiles == 2, "a stage is two units of work, one for each set");
  Fragments<kUnitSlabs> a[2];
  const auto release = [&](uint32_t stage) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(shared.empty[stage]);
  };
  uint32_t previous = 0;
  for (int first = 0; first < num_slabs; first += C::kSlabs) {
    const int own = num_slabs - first - k * C::kGroupSlabs;  // slabs left for this warpgroup
    const uint8_t* const tiles = shared.tiles[ring.stage][m * C::kGroupTiles] + k * C::kGroupSlabs * kTileBytes;
    const uint32_t rows = ptx::shared_address(shared.rows[ring.stage][k * C::kGroupSlabs]);
    constexpr int kRowBytes = C::kN * 128;
    ptx::mbarrier_wait(shared.full[ring.stage], ring.parity);
    if (own >= C::kGroupSlabs) {
#pragma unroll
      for (int unit = 0; unit < 2; ++unit) {
        const int slab = C::kGroupTiles > 1 ? 0 : unit * kUnitSlabs, tile = C::kGroupTiles > 1 ? unit : 0;
        start<C::kN, kUnitSlabs>(tiles + (tile * C::kSlabs + slab) * kTileBytes, rows + slab * kRowBytes, a[unit],
                                         acc[tile]);
        ptx::wgmma_wait<1>();
        if (unit == 0 && first > 0) release(previous);
      }
    } else {
      ptx::wgmma_wait<0>();
      if (first > 0) release(previous);
#pragma unroll 1
      for (int slab = 0; slab < own; ++slab) {
#pragma unroll
        for (int tile = 0; tile < C::kGroupTiles; ++tile) {
          Fragments<1> part;
          start<C::kN, 1>(tiles + (tile * C::kSlabs + slab) * kTileBytes, rows + slab * kRowBytes, part, acc[tile]);
          ptx::wgmma_wait<0>();
        }
      }
    }
    previous = ring.stage;
    ring.advance();
  }
  ptx::wgmma_wait<0>();
  release(previous);
}

template <class C, class Store>
__device__ void multiply(const GemmParams& p, SharedStorage<C>& shared, Store store) {
  // The shuffle tells the compiler that a warp agrees on it.
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0) - 1;
  const int m = warpgroup % C::kM, k = warpgroup / C::kM;
  Ring<C> ring;
  for_each_tile<C::kTiles, C::kN>(p.list, [&](const Tile& tile) {
    float acc[C::kGroupTiles][C::kN / 2];
#pragma unroll
    for (int i = 0; i < C::kGroupTiles; ++i) {
#pragma unroll
      for (int j = 0; j < C::kN / 2; ++j) acc[i][j] = 0.0f;
    }
    // Past the last weight tile this multiplies what the stage held before, and stores nothing.
    accumulate<C>(p.num_slabs, shared, ring, m, k, acc);
    if (!reduce_along_k<C>(shared, m, k, acc[0])) return;
#pragma unroll
    for (int i = 0; i < C::kGroupTiles; ++i) {
      const int m_tile = tile.first_m_tile + m * C::kGroupTiles + i;
      if (m_tile < p.list.end_m_tile) store(tile, m_tile, acc[i]);
    }
  });
}

}  // namespace nvfp4
