// A consumer warpgroup: dequantises 64 weight rows in registers and multiplies them with the token rows in shared
// memory.
#pragma once
#include "load_packed.cuh"
#include "wgmma.cuh"

namespace nvfp4 {

// What a thread reads of a slab of its weight tile.
struct SlabWords {
  uint4 codes;
  uint2 scales;

  __device__ static SlabWords read(const uint8_t* tile) {
    const int t = threadIdx.x % 128;
    return {reinterpret_cast<const uint4*>(tile)[t], reinterpret_cast<const uint2*>(tile + kTileCodeBytes)[t / 4]};
  }

  // A fragments of steps 2 i and 2 i + 1.
  template <int i>
  __device__ void dequantize_two(uint32_t (&a)[4], uint32_t (&b)[4]) const {
    const ScalePairs pairs = ScalePairs::decode(i == 0 ? scales.x : scales.y);
    dequantize<0>(i == 0 ? codes.x : codes.z, pairs.even, pairs.odd, a);
    dequantize<1>(i == 0 ? codes.y : codes.w, pairs.even, pairs.odd, b);
  }
};

// Adds the sums of the warpgroups along K to those of the first, in order. True for the warpgroup that holds the
// result.
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

// The sums of a warpgroup's weight tiles over its share of the slabs. A stage is done in two halves, of columns or of
// tiles, with a set of fragments each, so that one set is dequantised while the tensor core reads the other: otherwise
// all warps dequantise at the same time, and then all wait.
template <class C>
__device__ void accumulate(int num_slabs, SharedStorage<C>& shared, Ring<C>& ring, int m, int k,
                           float (&acc)[C::kGroupTiles][C::kN / 2]) {
  constexpr int kSteps = C::kGroupSlabs * kSlabSteps * C::kGroupTiles / 2;  // of half a stage
  constexpr int kRowBytes = C::kN * 128;                                    // of a slab
  constexpr int kTileStride = C::kSlabs * kTileBytes;
  uint32_t a[2][kSteps][4];
  const auto release = [&](uint32_t stage) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(shared.empty[stage]);
  };
  uint32_t previous = 0;
  for (int first = 0; first < num_slabs; first += C::kSlabs) {
    const int own = num_slabs - first - k * C::kGroupSlabs;  // slabs left for this warpgroup
    const uint8_t* const tiles = shared.tiles[ring.stage][m * C::kGroupTiles] + k * C::kGroupSlabs * kTileBytes;
    const uint64_t rows = ptx::rows_descriptor(ptx::shared_address(shared.rows[ring.stage][k * C::kGroupSlabs]));
    ptx::mbarrier_wait(shared.full[ring.stage], ring.parity);
    if (own >= C::kGroupSlabs) {
      SlabWords words;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        constexpr bool kByTile = C::kGroupTiles == 2;
        const int tile = kByTile ? half : 0, first_step = kByTile ? 0 : half * kSteps;
#pragma unroll
        for (int i = 0; i < kSteps; i += 2) {
          const int step = first_step + i;
          if (step % kSlabSteps == 0) {
            words = SlabWords::read(tiles + tile * kTileStride + step / kSlabSteps * kTileBytes);
            words.dequantize_two<0>(a[half][i], a[half][i + 1]);
          } else {
            words.dequantize_two<1>(a[half][i], a[half][i + 1]);
          }
        }
        ptx::wgmma_fence();
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {  // 16 bf16 are 2 units of 16 bytes
          const int step = first_step + i;
          const int offset = step / kSlabSteps * (kRowBytes / 16) + step % kSlabSteps * 2;
          ptx::Wgmma<C::kN>::multiply_add(acc[tile], a[half][i], rows + offset);
        }
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();
        if (half == 0 && first > 0) release(previous);
      }
    } else {
      ptx::wgmma_wait<0>();
      if (first > 0) release(previous);
#pragma unroll 1
      for (int slab = 0; slab < own; ++slab) {
#pragma unroll
        for (int tile = 0; tile < C::kGroupTiles; ++tile) {
          const SlabWords words = SlabWords::read(tiles + tile * kTileStride + slab * kTileBytes);
          uint32_t part[kSlabSteps][4];
          words.dequantize_two<0>(part[0], part[1]);
          words.dequantize_two<1>(part[2], part[3]);
          ptx::wgmma_fence();
#pragma unroll
          for (int i = 0; i < kSlabSteps; ++i) {
            ptx::Wgmma<C::kN>::multiply_add(acc[tile], part[i], rows + slab * (kRowBytes / 16) + i * 2);
          }
          ptx::wgmma_commit();
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

template <class C, class Output>
__device__ void multiply(const GemmParams& p, SharedStorage<C>& shared) {
  // The shuffle tells the compiler that a warp agrees on it.
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0);
  const int m = warpgroup % C::kM, k = warpgroup / C::kM;
  Ring<C> ring;
  for_each_tile<C::kTiles, C::kN>(p.list, [&](const Tile& tile) {
    const Output output(p, tile, shared);
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
      if (m_tile < p.list.end_m_tile) output.store(m_tile, acc[i], shared);
    }
  });
}

}  // namespace nvfp4
