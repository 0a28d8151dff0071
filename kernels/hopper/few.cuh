// SPDX-License-Identifier: Apache-2.0
// A call of few tokens in one launch, where time is launches and latencies more than bytes. All CTAs run at once, one a
// multiprocessor, and each of them:
//
//   finds the routing                           consumers              producers
//   takes its share of GEMM1's tiles            multiply, store h      load
//   arrives, for others that need its h         arrive
//   has one of GEMM2's weight tiles             .                      load weights; wait until all have arrived; load
//   h of all experts, or shares it with another   multiply, keep y       load combines its 64 columns combine
//
// Bits are those of the kernels that take four launches: the loops are theirs, and sums come in the same order.
#pragma once
#include "../common/wait.cuh"
#include "few_tables.cuh"
#include "gemm.cuh"

namespace nvfp4 {

template <class C>
struct FewStorage {
  SharedStorage<C> gemm;
  FewTables tables;
  __nv_bfloat16 y[FEW_SLOTS][kTileRows];  // of this CTA's weight tile, in the first CTA of a cluster
  static_assert(sizeof(SharedStorage<C>) + sizeof(FewTables) + sizeof(y) <= GEMM_SM90_SHARED_BYTES, "of a CTA");
};

// Where all CTAs have to come before any may read what others wrote. All of them run, or none would end.
struct FewBarrier {
  static constexpr uint32_t kAll = 1u << 31;

  // What arrivals are. Before its CTA arrives, a thread that will wait asks.
  __device__ static uint32_t look(const FewParams& p) {
    uint32_t now;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                 : "=r"(now)
                 : "l"(__cvta_generic_to_global(p.arrivals))
                 : "memory");
    return now;
  }

  // By one thread of every CTA: what others of the CTA wrote before a barrier with it is seen by all.
  __device__ static void arrive(const FewParams& p) {
    const uint32_t add = blockIdx.x == 0 ? kAll - (gridDim.x - 1) : 1;
    asm volatile(
        "fence.acq_rel.gpu;\n"
        "red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p.arrivals)),
        "r"(add)
        : "memory");
  }

  __device__ static void wait(const FewParams& p, uint32_t before) {
    const uint64_t start = global_nanoseconds();
    while (((look(p) ^ before) & kAll) == 0) {
      const uint64_t waited = global_nanoseconds() - start;
      if (waited > p.wait.nanoseconds) give_up(p.wait, 1, before >> 31, waited);
    }
  }
};

// One CTA's part in a call, for consumers and producers.
template <class C>
struct Few {
  static_assert(C::kTiles == 1 && C::kM == 1 && FEW_TOKENS <= C::kN, "a tile has all rows of an expert");
  static_assert(FEW_TOKENS * 32 <= C::kConsumers, "a warp for each token");
  const FewParams& p;
  FewStorage<C>& shared;
  int rank, ranks;  // in the cluster, whose CTAs share a weight tile of GEMM2
  GemmParams gemm1, gemm2;

  __device__ Few(const FewParams& p, FewStorage<C>& shared)
      : p(p),
        shared(shared),
        rank(ptx::rank_in_cluster()),
        ranks(ptx::ctas_of_cluster()),
        gemm1(p.gemm1),
        gemm2(p.gemm2) {
    gemm1.row_scale = gemm2.row_scale = nullptr;  // rows are bf16
    gemm1.list.groups = shared.tables.groups;
    gemm1.row_to_slot = shared.tables.row_to_slot;
    gemm2.out = static_cast<__nv_bfloat16*>(ptx::in_first_of_cluster(shared.y)) - own_m_tile() * kTileRows;
    gemm2.out_row_stride = kTileRows;
  }

  __device__ int own_m_tile() const { return blockIdx.x / ranks; }
  __device__ bool has_m_tile() const { return own_m_tile() < gemm2.list.m_tiles; }

  // Calls body(tile) for this CTA's tiles of GEMM2.
  template <class Body>
  __device__ void for_each_of_gemm2(Body body) const {
    for (int i = rank; has_m_tile() && i < shared.tables.num_groups; i += ranks) {
      const RowGroup& group = shared.tables.groups[i];
      body(Tile{group.expert, own_m_tile(), 1, group.first_row, group.num_rows});
    }
  }

  // Barriers and tables; the whole CTA.
  __device__ void begin() const {
    if (ranks > 1) ptx::cluster_arrive();
    const int warp = threadIdx.x / 32;
    if (warp == 0) {
      shared.tables.fill(p.route, blockIdx.x == 0);
    } else if (warp == 1) {
      shared.tables.fill_weights(p.combine, p.route.num_tokens);
    } else if (threadIdx.x == 64) {
      init_barriers(shared.gemm);
    }
    __syncthreads();
    if (ranks > 1) ptx::cluster_wait();  // the first CTA runs, so that its shared memory may be written
  }

  // ---- Producers

  // The first `started` slabs' weights are on their way.
  __device__ void load_tile(const GemmParams& gemm, const Tile& tile, Ring<C>& ring, int started) const {
    const bool aligned =
        (reinterpret_cast<uintptr_t>(gemm.x) | gemm.x_row_stride * C::kColumnBytes) % 16 == 0;  // as load() has it
    const int full_slabs = aligned ? gemm.k_valid * C::kColumnBytes / 128 * C::kLineSlabs : 0;
    const WeightTiles weights = WeightTiles::of<C>(gemm, tile, ptx::read_policy(true));
    RowGather<C> rows(gemm, tile, nullptr);  // no scales: rows are bf16
    for (int slab = 0; slab < gemm.num_slabs; slab += C::kSlabs) {
      if (slab >= started) weights.load(gemm, shared.gemm, ring, slab);
      const uint32_t target = rows.target(shared.gemm, ring.stage);
      if (slab + C::kSlabs <= full_slabs) {
        rows.copy(target);
      } else {
        rows.copy_checked(gemm, target, slab, aligned);
      }
      if (aligned) {
        ptx::cp_async_arrive(shared.gemm.full[ring.stage]);
      } else {
        ptx::fence_proxy_async();
        ptx::mbarrier_arrive(shared.gemm.full[ring.stage]);
      }
      ring.advance();
    }
  }

  // Weights of as many stages as there are, as consumers leave them. Returns their slabs.
  __device__ int load_ahead(const Tile& tile, Ring<C> ring) const {
    const WeightTiles weights = WeightTiles::of<C>(gemm2, tile, ptx::read_policy(true));
    const int slabs = min(C::kStages * C::kSlabs, gemm2.num_slabs);
    for (int slab = 0; slab < slabs; slab += C::kSlabs, ring.advance()) weights.load(gemm2, shared.gemm, ring, slab);
    return slabs;
  }

  // `before` is what the first of them saw of arrivals.
  __device__ void produce(uint32_t before) const {
    Ring<C> ring;
    for_each_tile<1>(gemm1.list, [&](const Tile& tile) { load_tile(gemm1, tile, ring, 0); });
    bool is_first = true;
    for_each_of_gemm2([&](const Tile& tile) {
      int started = 0;
      if (is_first) {
        started = load_ahead(tile, ring);
        if (producer_thread<C>() == 0) FewBarrier::wait(p, before);
        ptx::named_barrier(2, C::kProducers);
      }
      is_first = false;
      load_tile(gemm2, tile, ring, started);
    });
    ptx::cp_async_wait_all();  // a thread must not end with copies in flight
  }

  // ---- Consumers

  template <Epilogue kEpilogue>
  __device__ void multiply_tile(const GemmParams& gemm, const Tile& tile, Ring<C>& ring, int k) const {
    const Output<C, kEpilogue, SharedStorage<C>> output(gemm, tile, shared.gemm);
    Accumulation<C, C::kN> sums(shared.gemm, ring, 0, k);
    sums.run(gemm.num_slabs, tile.num_rows);
    ring = sums.ring();
    if (reduce_along_k<C>(shared.gemm, 0, k, sums.acc[0])) {
      output.store(tile.first_m_tile, 0, sums.acc[0], shared.gemm);
    }
  }

  __device__ void consume() const {
    const int k = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0);
    Ring<C> ring;
    for_each_tile<1>(gemm1.list, [&](const Tile& tile) { multiply_tile<Epilogue::kGemm1>(gemm1, tile, ring, k); });
    ptx::named_barrier(1, C::kConsumers);  // h is stored
    if (threadIdx.x == 0) FewBarrier::arrive(p);
    for_each_of_gemm2([&](const Tile& tile) { multiply_tile<Epilogue::kGemm2>(gemm2, tile, ring, k); });
    if (!has_m_tile()) return;
    if (ranks > 1 && shared.tables.num_groups > 1) {
      ptx::cluster_arrive();
      if (rank == 0) ptx::cluster_wait();
    } else {
      ptx::named_barrier(1, C::kConsumers);
    }
    if (rank == 0) combine();
  }

  // The weighted sums of this CTA's 64 columns, a warp for each token, as the kernel combine has them.
  __device__ void combine() const {
    const CombineParams& c = p.combine;
    const int token = threadIdx.x / 32, own = threadIdx.x % 32 * 2, col = own_m_tile() * kTileRows + own;
    if (token >= p.route.num_tokens || col >= c.hidden) return;
    float2 sum = {};
    for (int slot = token * c.top_k; slot < (token + 1) * c.top_k; ++slot) {
      const int32_t row = shared.tables.slot_to_row[slot];
      if (row < 0) continue;
      const auto two = *reinterpret_cast<const __nv_bfloat162*>(&shared.y[row][own]);
      sum.x = fmaf(shared.tables.weight[slot], __low2float(two), sum.x);
      sum.y = fmaf(shared.tables.weight[slot], __high2float(two), sum.y);
    }
    auto* const out = static_cast<__nv_bfloat16*>(c.out) + token * c.out_row_stride + col;
    const __nv_bfloat162 two = __floats2bfloat162_rn(sum.x, sum.y);
    if (reinterpret_cast<uintptr_t>(out) % sizeof two == 0) {
      *reinterpret_cast<__nv_bfloat162*>(out) = two;
    } else {
      out[0] = two.x;
      out[1] = two.y;
    }
  }
};

template <class C>
__device__ void few(const FewParams& p) {
  extern __shared__ __align__(1024) uint8_t bytes[];
  const Few<C> call(p, *reinterpret_cast<FewStorage<C>*>(bytes));
  follow_previous();
  const uint32_t before = threadIdx.x == C::kConsumers ? FewBarrier::look(p) : 0;
  call.begin();
  if (threadIdx.x < C::kConsumers) {
    ptx::raise_registers<C::kConsumerRegisters>();
    call.consume();
  } else {
    ptx::lower_registers<C::kProducerRegisters>();
    call.produce(before);
  }
}

}  // namespace nvfp4
