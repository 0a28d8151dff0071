// SPDX-License-Identifier: Apache-2.0
// Routing: which row serves each (token, k) slot. A stable counting sort by (chunk, local expert), on the device.
//
//   segment  a run of whole tokens, counted and ranked by one warp, in order
//   chunk    a run of whole segments whose routed slots fit the R rows of the workspace; no slot is ever dropped
//
//   route_count    segments count their slots by expert
//   route_scan     one block turns counts into chunks, row offsets, and the list of experts that have rows
//   route_scatter  segments rank their slots and write the maps
//   route_small    all three in one block, for few tokens of one chunk
//   route_cluster  all three in one cluster of blocks, where a GPU has such
#include "../common/overlap.cuh"
#include "cluster.cuh"
#include "ids.cuh"
#include "segments.cuh"
#include "tables.cuh"

namespace nvfp4 {
namespace {

// Hands each routed slot the next of its expert's `next`, in order, and calls visit(slot, expert, place) for all slots
// of a segment; those not routed have a negative expert. `next` is this warp's shared memory, L counters.
template <bool kReport, class Visit>
__device__ void for_each_slot(const RouteParams& p, int segment, int32_t* next, Visit visit) {
  constexpr int kBatch = 4;  // loads in flight
  const int lane = threadIdx.x % 32;
  const SlotRange slots(p, segment);
  for (uint32_t base = slots.first; base < slots.end; base += kBatch * 32) {
    int32_t expert[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (base + i * 32 >= slots.end) break;
      const uint32_t slot = base + i * 32 + lane;
      expert[i] = slot < slots.end ? global_expert(p, slot) : kNotRouted;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (base + i * 32 >= slots.end) break;
      expert[i] = local_expert(p, expert[i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (base + i * 32 >= slots.end) break;
      const uint32_t slot = base + i * 32 + lane;
      const uint32_t peers = __match_any_sync(~0u, expert[i]);  // lanes with the same expert
      const int rank = __popc(peers & ((1u << lane) - 1));
      const bool routed = expert[i] >= 0;
      const int32_t first = routed ? next[expert[i]] : 0;
      __syncwarp();
      if (routed && rank == 0) next[expert[i]] = first + __popc(peers);
      __syncwarp();
      if (kReport) report_bad_ids(p, slot, expert[i] == kBad);
      if (slot < slots.end) visit(slot, expert[i], first + rank);
    }
  }
}

__device__ void write_slot(const RouteParams& p, int64_t chunk, uint32_t slot, int32_t row) {
  if (row != kNotRouted) p.tables.row_to_slot[chunk * p.chunk_rows + row] = static_cast<int32_t>(slot);
  p.tables.slot_to_row[slot] = row;
}

// Calls body(segment, next) for this block's segments; `next` are counters of the warp, which start as initial(e).
template <class Initial, class Body>
__device__ void for_each_segment(const RouteParams& p, Initial initial, Body body) {
  extern __shared__ int32_t counters[];
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  int32_t* const next = counters + warp * p.num_local_experts;
  for (int s = blockIdx.x * warps + warp; s < p.num_segments; s += gridDim.x * warps) {
    for (int e = threadIdx.x % 32; e < p.num_local_experts; e += 32) next[e] = initial(s, e);
    __syncwarp();
    body(s, next);
    __syncwarp();
  }
}

struct Zero {
  __device__ int32_t operator()(int, int) const { return 0; }
};

// What route_small keeps in shared memory: see segments.cuh.
struct SmallRouting {
  int32_t* before;  // [S, L] an expert's rows in a segment, then those in the segments before it
  int32_t* rows;    // [L] an expert's rows, then the first of them
  int2* slots;      // [S, segment_slots] local expert or negative; rank among its segment's
  int segment_slots;

  __device__ explicit SmallRouting(const RouteParams& p) {
    extern __shared__ int32_t counters[];
    before = counters;
    rows = before + p.num_segments * p.num_local_experts;
    slots = reinterpret_cast<int2*>(rows + p.num_local_experts + small_routing_padding(p));
    segment_slots = p.segment_tokens * p.top_k;
  }

  __device__ void sum_segments(const RouteParams& p, int expert) const {
    constexpr int kBatch = 8;  // loads in flight
    int32_t sum = 0;
    for (int base = 0; base < p.num_segments; base += kBatch) {
      int32_t* const at = before + base * p.num_local_experts + expert;
      int32_t own[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) own[i] = base + i < p.num_segments ? at[i * p.num_local_experts] : 0;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (base + i < p.num_segments) at[i * p.num_local_experts] = sum;
        sum += own[i];
      }
    }
    rows[expert] = sum;
  }
};

}  // namespace
}  // namespace nvfp4

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) route_count(const __grid_constant__ RouteParams p) {
  using namespace nvfp4;
  let_next_start();
  for_each_segment(p, Zero{}, [&](int segment, int32_t* counts) {
    int32_t routed = 0;
    for_each_slot<true>(p, segment, counts, [&](uint32_t, int32_t expert, int32_t) { routed += expert >= 0; });
    routed = __reduce_add_sync(~0u, routed);
    int32_t* const out = p.segment_counts + int64_t{segment} * p.num_local_experts;
    for (int e = threadIdx.x % 32; e < p.num_local_experts; e += 32) out[e] = counts[e];
    if (threadIdx.x % 32 == 0) p.segment_totals[segment] = routed;
  });
}

extern "C" __global__ void __launch_bounds__(ROUTE_SCAN_THREADS, 1) route_scan(const __grid_constant__ RouteParams p) {
  using namespace nvfp4;
  __shared__ int32_t chunk_of[ROUTE_MAX_SEGMENTS];
  follow_previous();
  count_call(p);
  place_segments(p, chunk_of);
  __syncthreads();
  sum_experts(p, chunk_of);
  for (int c = threadIdx.x / 32; c < p.num_chunks; c += blockDim.x / 32) {
    const int32_t* const rows = p.tables.row_counts + int64_t{c} * p.num_local_experts;
    const auto rows_of = [&](int e) { return rows[e]; };
    lay_out_chunk(p, c, rows_of, [](int, int32_t) {});
    __syncwarp();
    if (p.widest_first) list_widest_first(p, c, rows_of);
  }
}

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) route_scatter(const __grid_constant__ RouteParams p) {
  using namespace nvfp4;
  follow_previous();
  const auto first_row = [&](int segment, int e) {
    const int64_t chunk = p.segment_totals[segment], num_local = p.num_local_experts;
    return p.tables.row_offsets[chunk * (num_local + 1) + e] + p.segment_counts[segment * num_local + e];
  };
  for_each_segment(p, first_row, [&](int segment, int32_t* rows) {
    const int64_t chunk = p.segment_totals[segment];
    for_each_slot<false>(p, segment, rows, [&](uint32_t slot, int32_t expert, int32_t row) {
      write_slot(p, chunk, slot, expert < 0 ? kNotRouted : row);
    });
  });
}

// One chunk, a warp for each segment. Its instructions come from L2 at every call and pass 32 warps: short code, no
// more warps than slots ask for, and one warp to lay out.
extern "C" __global__ void __launch_bounds__(ROUTE_SMALL_THREADS, 1)
    route_small(const __grid_constant__ RouteParams p) {
  using namespace nvfp4;
  let_next_start();
  const SmallRouting small(p);
  for_each_segment(p, Zero{}, [&](int segment, int32_t* counts) {
    int2* const kept = small.slots + segment * small.segment_slots;
    const uint32_t first = SlotRange(p, segment).first;
    for_each_slot<true>(p, segment, counts, [&](uint32_t slot, int32_t expert, int32_t rank) {
      kept[slot - first] = make_int2(expert, rank);
    });
  });
  __syncthreads();
  for (int e = threadIdx.x; e < p.num_local_experts; e += blockDim.x) small.sum_segments(p, e);
  __syncthreads();
  if (threadIdx.x < 32) {
    lay_out_chunk(p, 0, [&](int e) { return small.rows[e]; }, [&](int e, int32_t row) { small.rows[e] = row; });
    if (threadIdx.x < 2) p.tables.chunk_first_token[threadIdx.x] = threadIdx.x * p.num_tokens;
    count_call(p);
  }
  __syncthreads();
  const int segment = threadIdx.x / 32;  // whose slots this warp kept
  if (segment >= p.num_segments) return;
  const int32_t* const before = small.before + segment * p.num_local_experts;
  const SlotRange slots(p, segment);
  for (uint32_t slot = slots.first + threadIdx.x % 32; slot < slots.end; slot += 32) {
    const int2 kept = small.slots[slot];  // segments follow each other without a gap
    write_slot(p, 0, slot, kept.x < 0 ? kNotRouted : small.rows[kept.x] + before[kept.x] + kept.y);
  }
}

#if __CUDA_ARCH__ >= 900
#define NVFP4_CLUSTER __cluster_dims__(ROUTE_CLUSTER_BLOCKS, 1, 1)
#else
#define NVFP4_CLUSTER  // there are none: nobody launches it
#endif

// A warp for each segment, ROUTE_CLUSTER_BLOCKS * blockDim.x / 32 in all.
extern "C" __global__ void NVFP4_CLUSTER __launch_bounds__(ROUTE_SMALL_THREADS, 1)
    route_cluster(const __grid_constant__ RouteParams p) {
#if __CUDA_ARCH__ >= 900
  using namespace nvfp4;
  extern __shared__ __align__(8) int32_t shared[];
  __shared__ ClusterSegments at;
  let_next_start();
  const ClusterRouting own(p, shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, segment = blockIdx.x * own.warps + warp;
  int2* const kept = own.slots + warp * own.segment_slots;
  int32_t* const counts = own.of_segment(warp);
  int32_t routed = 0;
  if (warp < own.segments) {
    for (int e = lane; e < p.num_local_experts; e += 32) counts[e] = 0;
    __syncwarp();
    const uint32_t first = SlotRange(p, segment).first;
    for_each_slot<true>(p, segment, counts, [&](uint32_t slot, int32_t expert, int32_t rank) {
      kept[slot - first] = make_int2(expert, rank);
      routed += expert >= 0;
    });
    routed = __reduce_add_sync(~0u, routed);
  }
  if (lane == 0) at.slots[warp] = routed;
  if (p.num_chunks > 1) {
    if (blockIdx.x == 0) {
      const int64_t counters = int64_t{p.num_chunks} * p.num_local_experts;
      for (int64_t i = threadIdx.x; i < counters; i += blockDim.x) p.tables.row_counts[i] = 0;
    }
    __syncthreads();
    if (warp == 0) {
      const int32_t all = __reduce_add_sync(~0u, lane < own.warps ? at.slots[lane] : 0);
      if (lane == 0) at.all_slots = all, at.last_slots = at.slots[own.warps - 1];
    }
    cluster_barrier();
  } else {
    __syncthreads();
  }
  if (warp == 0) at.place(p, own.warps);
  __syncthreads();
  own.sum_block(p, at);
  cluster_barrier();
  own.sum_blocks(p, at);
  cluster_barrier();
  for (int c = warp * ROUTE_CLUSTER_BLOCKS + blockIdx.x; c < p.num_chunks; c += own.warps * ROUTE_CLUSTER_BLOCKS) {
    const int32_t* const rows = p.tables.row_counts + int64_t{c} * p.num_local_experts;
    const auto rows_of = [&](int e) { return rows[e]; };
    lay_out_chunk(p, c, rows_of, [](int, int32_t) {});
    __syncwarp();
    if (p.widest_first) list_widest_first(p, c, rows_of);
  }
  if (blockIdx.x == 0) count_call(p);
  cluster_barrier();
  if (warp >= own.segments) return;
  own.add_offsets(p, at, warp);
  const SlotRange slots(p, segment);
  const int64_t chunk = at.chunk_of[warp];
  for (uint32_t slot = slots.first + lane; slot < slots.end; slot += 32) {
    const int2 kept_slot = kept[slot - slots.first];
    write_slot(p, chunk, slot, kept_slot.x < 0 ? kNotRouted : counts[kept_slot.x] + kept_slot.y);
  }
#endif
}
