// SPDX-License-Identifier: Apache-2.0
// A call of few tokens in two launches, where time is launches and latencies more than bytes.
//
//   gemm1_few  finds the routing, then is GEMM1
//   gemm2_few  finds it again, GEMM2, and combines: the CTAs of a weight tile have the rows of all experts
//
// Bits are those of the kernels that take four launches: the loops are theirs, and sums come in the same order.
#pragma once
#include "few_rows.cuh"
#include "gemm.cuh"

namespace nvfp4 {

using FewBf16 = Config<FEW_TOKENS, 1, 1, 4, 16, 2>;
// Producers that convert hold more: 512 * 88 + 128 * 128 = 640 * 96.
struct FewFp8 : Config<FEW_TOKENS, 1, 1, 4, 16, 1> {
  static constexpr int kConsumerRegisters = 88, kProducerRegisters = 128;
};
struct FewRounded : FewFp8 {
  static constexpr bool kRounded = true;
};

template <class C>
struct FewStorage {
  SharedStorage<C> gemm;
  FewTables tables;
  __nv_bfloat16 y[FEW_SLOTS][kTileRows];  // of this CTA's weight tile, in the first CTA of a cluster
  static_assert(sizeof(SharedStorage<C>) + sizeof(FewTables) + sizeof(y) <= GEMM_SM90_SHARED_BYTES, "of a CTA");
};

// Barriers and tables, for the whole CTA.
template <class C>
__device__ void begin_few(const FewParams& few, FewStorage<C>& shared, int rank, int ranks, bool is_gemm1) {
  const int warp = threadIdx.x / 32;
  if (warp == 0) {
    shared.tables.fill(few.route, rank, ranks, is_gemm1 && blockIdx.x == 0);
    if (C::kColumnBytes == 1) shared.tables.fill_sources(few.route, is_gemm1);
  } else if (warp == 1 && !is_gemm1) {
    shared.tables.fill_weights(few.combine, few.route.num_tokens);
  } else if (threadIdx.x == 64) {
    init_barriers(shared.gemm);
  }
  __syncthreads();
}

// The consumers' part, as multiply() but for rows that were scaled in this CTA.
template <class C, Epilogue kEpilogue>
__device__ void multiply_few(const FewRows& rows, SharedStorage<C>& shared) {
  const GemmParams& p = rows.p;
  const int k = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0);
  Ring<C> ring;
  for_each_tile<C::kTiles>(p.list, [&](const Tile& tile) {
    const Output<C, kEpilogue, SharedStorage<C>> output(p, tile, shared);
    Accumulation<C> sums(shared, ring, 0, k);
    sums.run(p.num_slabs, tile.num_rows);
    ring = sums.ring();
    auto& acc = sums.acc[0];
    if (!reduce_along_k<C>(shared, 0, k, acc)) return;
    if constexpr (C::kColumnBytes == 1) {
      const int row = threadIdx.x % 4 * 2, last = tile.num_rows - 1;
      const float even = rows.scale(tile.first_row + min(row, last)),
                  odd = rows.scale(tile.first_row + min(row + 1, last));
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[i] *= i % 2 == 0 ? even : odd;
    }
    output.store(tile.first_m_tile, 0, acc, shared);
  });
}

template <int kRegisters, bool kMore>
__device__ void take_registers() {
  if constexpr (kMore) {
    ptx::raise_registers<kRegisters>();
  } else {
    ptx::lower_registers<kRegisters>();
  }
}

template <class C, Epilogue kEpilogue>
__device__ void gemm_few(const GemmParams& p, FewStorage<C>& shared, DeviceStatus* status) {
  static_assert(C::kN == FEW_TOKENS && C::kTiles == 1 && C::kM == 1, "a tile has all rows of an expert");
  const FewRows rows = {p, shared.tables, is_gemm1(kEpilogue)};
  if (threadIdx.x < C::kConsumers) {
    take_registers<C::kConsumerRegisters, (C::kConsumerRegisters > C::kProducerRegisters)>();
    if (C::kColumnBytes == 1 && blockIdx.x < shared.tables.num_here * p.list.m_tiles) {
      wait_for_previous();
      find_amax(rows, shared.tables, C::kConsumers / 32, blockIdx.x == 0 ? status : nullptr);
      ptx::named_barrier(2, C::kThreads);
    }
    multiply_few<C, kEpilogue>(rows, shared.gemm);
  } else {
    take_registers<C::kProducerRegisters, (C::kProducerRegisters > C::kConsumerRegisters)>();
    if constexpr (C::kColumnBytes == 1) {
      load_few<C>(rows, shared.gemm);
    } else {
      load<C>(p, shared.gemm);
    }
  }
}

template <class C>
__device__ void gemm1_few(const FewParams& few) {
  extern __shared__ __align__(1024) uint8_t bytes[];
  auto& shared = *reinterpret_cast<FewStorage<C>*>(bytes);
  follow_previous();
  begin_few(few, shared, 0, 1, true);
  GemmParams p = few.gemm;
  p.list.groups = shared.tables.groups;
  p.row_to_slot = shared.tables.row_to_slot;
  gemm_few<C, Epilogue::kGemm1>(p, shared, few.route.status);
}

// The weighted sums of this CTA's 64 columns, a warp for each token, as combine() has them.
template <class C>
__device__ void combine_few(const FewParams& few, const FewStorage<C>& shared) {
  const CombineParams& p = few.combine;
  const int token = threadIdx.x / 32, own = threadIdx.x % 32 * 2, col = blockIdx.x * kTileRows + own;
  if (token >= few.route.num_tokens || col >= p.hidden) return;
  float2 sum = {};
  for (int slot = token * p.top_k; slot < (token + 1) * p.top_k; ++slot) {
    const int32_t row = shared.tables.slot_to_row[slot];
    if (row < 0) continue;
    const auto two = *reinterpret_cast<const __nv_bfloat162*>(&shared.y[row][own]);
    sum.x = fmaf(shared.tables.weight[slot], __low2float(two), sum.x);
    sum.y = fmaf(shared.tables.weight[slot], __high2float(two), sum.y);
  }
  auto* const out = static_cast<__nv_bfloat16*>(p.out) + token * p.out_row_stride + col;
  const __nv_bfloat162 two = __floats2bfloat162_rn(sum.x, sum.y);
  if (reinterpret_cast<uintptr_t>(out) % sizeof two == 0) {
    *reinterpret_cast<__nv_bfloat162*>(out) = two;
  } else {
    out[0] = two.x;
    out[1] = two.y;
  }
}

template <class C>
__device__ void gemm2_few(const FewParams& few) {
  static_assert(FEW_TOKENS * 32 <= C::kConsumers, "a warp for each token");
  extern __shared__ __align__(1024) uint8_t bytes[];
  auto& shared = *reinterpret_cast<FewStorage<C>*>(bytes);
  const int rank = blockIdx.y, ranks = gridDim.y;
  if (ranks > 1) ptx::cluster_arrive();
  begin_few(few, shared, rank, ranks, false);
  if (ranks > 1) ptx::cluster_wait();  // the first CTA runs, so that its shared memory may be written
  GemmParams p = few.gemm;
  p.list.groups = shared.tables.groups;
  p.out = static_cast<__nv_bfloat16*>(ptx::in_first_of_cluster(shared.y)) - blockIdx.x * kTileRows;
  p.out_row_stride = kTileRows;
  gemm_few<C, Epilogue::kGemm2>(p, shared, few.route.status);
  if (threadIdx.x >= C::kConsumers) return;
  wait_for_previous();  // where this CTA has no rows
  if (shared.tables.num_groups > 1 && ranks > 1) {
    ptx::cluster_arrive();
    if (rank > 0) return;
    ptx::cluster_wait();
  } else {
    ptx::named_barrier(1, C::kConsumers);
  }
  if (rank == 0) combine_few(few, shared);
}

}  // namespace nvfp4
