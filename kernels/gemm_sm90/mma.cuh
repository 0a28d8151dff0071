// A consumer warpgroup: dequantises 64 weight rows in registers and multiplies them with the token rows in shared memory.
#pragma once
#include "load_packed.cuh"
#include "wgmma.cuh"

namespace nvfp4 {

// acc += tile x rows^T over one slab.
template <class C>
__device__ void multiply_slab(const uint8_t* tile, uint32_t rows, float (&acc)[C::kN / 2]) {
  const int t = threadIdx.x % 128;
  const uint4 codes = reinterpret_cast<const uint4*>(tile)[t];
  const uint2 scales = reinterpret_cast<const uint2*>(tile + kTileCodeBytes)[t / 4];
  const uint32_t words[kSlabSteps] = {codes.x, codes.y, codes.z, codes.w};
  const uint64_t descriptor = ptx::rows_descriptor(rows);
#pragma unroll
  for (int first = 0; first < kSlabSteps; first += C::kStepsAtOnce) {
    uint32_t a[C::kStepsAtOnce][4];
#pragma unroll
    for (int i = 0; i < C::kStepsAtOnce; i += 2) {
      const uint32_t pair = first + i < 2 ? scales.x : scales.y;
      dequantize(words[first + i], decode_scale<0>(pair), decode_scale<1>(pair), a[i]);
      dequantize(words[first + i + 1], decode_scale<2>(pair), decode_scale<3>(pair), a[i + 1]);
    }
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < C::kStepsAtOnce; ++i) {
      ptx::Wgmma<C::kN>::multiply_add(acc, a[i], descriptor + (first + i) * 2);  // 16 bf16 = 2 units of 16 bytes
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
  }
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

template <class C, class Store>
__device__ void multiply(const GemmParams& p, SharedStorage<C>& shared, Store store) {
  // The shuffle tells the compiler that a warp agrees on it.
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0) - 1;
  const int m = warpgroup % C::kM, k = warpgroup / C::kM;
  Ring<C> ring;
  for_each_tile<C::kM, C::kN>(p.list, [&](const Tile& tile) {
    const int m_tile = tile.first_m_tile + m;
    const bool has_tile = m_tile < p.list.end_m_tile;
    float acc[C::kN / 2];
#pragma unroll
    for (int i = 0; i < C::kN / 2; ++i) acc[i] = 0.0f;
    for (int first = 0; first < p.num_slabs; first += C::kSlabs) {
      const int own = has_tile ? p.num_slabs - first - k * C::kGroupSlabs : 0;  // slabs left for this warpgroup
      const uint8_t* const tiles = shared.tiles[ring.stage][m] + k * C::kGroupSlabs * kTileBytes;
      const uint32_t rows = ptx::shared_address(shared.rows[ring.stage][k * C::kGroupSlabs]);
      ptx::mbarrier_wait(shared.full[ring.stage], ring.parity);
      if (own >= C::kGroupSlabs) {
#pragma unroll
        for (int s = 0; s < C::kGroupSlabs; ++s) multiply_slab<C>(tiles + s * kTileBytes, rows + s * C::kN * 128, acc);
      } else {
#pragma unroll 1
        for (int s = 0; s < own; ++s) multiply_slab<C>(tiles + s * kTileBytes, rows + s * C::kN * 128, acc);
      }
      __syncwarp();
      if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(shared.empty[ring.stage]);
      ring.advance();
    }
    if (reduce_along_k<C>(shared, m, k, acc) && has_tile) store(tile, m_tile, acc);
  });
}

}  // namespace nvfp4
