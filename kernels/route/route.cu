// Routing: which row serves each (token, k) slot. A stable counting sort by (chunk, local expert), on the device.
//
//   segment  a run of whole tokens, counted and ranked by one warp, in order
//   chunk    a run of whole segments whose routed slots fit the R rows of the workspace; no slot is ever dropped
//
//   route_count    segments count their slots by expert
//   route_scan     one block turns counts into chunks, row offsets, and the list of experts that have rows
//   route_scatter  segments rank their slots and write the maps
//   route_small    all three in one block, for few tokens
#include "../common/overlap.cuh"
#include "../common/scan.cuh"
#include "../params.h"

namespace nvfp4 {
namespace {

constexpr int32_t kNotRouted = -1;

__device__ int64_t topk_id(const RouteParams& p, uint32_t slot) {
  const int64_t at = slot / p.top_k * p.topk_ids_row_stride + slot % p.top_k;
  return p.topk_ids_are_i64 ? static_cast<const int64_t*>(p.topk_ids)[at] : static_cast<const int32_t*>(p.topk_ids)[at];
}

// The local expert that serves an id, or kNotRouted. Ids are data: padding tokens carry -1, and a buggy router may
// carry anything, so both ends are bounded before expert_map is read. `bad` is set where id or map entry is out of
// range.
__device__ int32_t local_expert(const RouteParams& p, int64_t id, bool& bad) {
  bad = id < -1 || id >= p.num_experts;
  if (bad || id == -1) return kNotRouted;
  const int32_t local = p.expert_map ? p.expert_map[id] : static_cast<int32_t>(id) - p.first_local_expert;
  if (local >= 0 && local < p.num_local_experts) return local;
  bad = p.expert_map && local != -1;
  return kNotRouted;
}

// Calls visit(slot, expert, rank, peers) for each slot of a segment, 32 in step: `peers` are the lanes with the same
// expert, `rank` the number of them below this lane. Lanes without a routed slot have expert kNotRouted.
template <class Visit>
__device__ void for_each_slot(const RouteParams& p, int segment, Visit visit) {
  const int lane = threadIdx.x % 32;
  // Slots number less than 2^31; unsigned, so that rounding up to a warp or a segment cannot overflow.
  const uint32_t first_token = static_cast<uint32_t>(segment) * p.segment_tokens;
  const uint32_t end_token = min(first_token + p.segment_tokens, static_cast<uint32_t>(p.num_tokens));
  const uint32_t end = end_token * p.top_k;
  for (uint32_t base = first_token * p.top_k; base < end; base += 32) {
    const uint32_t slot = base + lane;
    bool bad = false;
    const int32_t expert = slot < end ? local_expert(p, topk_id(p, slot), bad) : kNotRouted;
    const uint32_t peers = __match_any_sync(~0u, expert);
    visit(slot, slot < end, expert, __popc(peers & ((1u << lane) - 1)), peers, bad);
  }
}

// `counts` is this warp's shared memory, L counters.
__device__ void count_segment(const RouteParams& p, int segment, int32_t* counts) {
  const int lane = threadIdx.x % 32;
  for (int e = lane; e < p.num_local_experts; e += 32) counts[e] = 0;
  __syncwarp();
  int32_t routed = 0;
  for_each_slot(p, segment, [&](uint32_t slot, bool valid, int32_t expert, int rank, uint32_t peers, bool bad) {
    if (expert != kNotRouted && rank == 0) counts[expert] += __popc(peers);
    routed += __popc(__ballot_sync(~0u, expert != kNotRouted));
    const uint32_t bad_lanes = __ballot_sync(~0u, bad);
    if (bad && (bad_lanes & ((1u << lane) - 1)) == 0) {
      using ull = unsigned long long;
      atomicAdd(reinterpret_cast<ull*>(&p.status->out_of_range_ids), static_cast<ull>(__popc(bad_lanes)));
      const ull calls = *reinterpret_cast<const volatile ull*>(&p.status->calls);
      atomicMin(reinterpret_cast<ull*>(&p.status->first_bad), calls << 32 | static_cast<ull>(slot / p.top_k));
    }
    __syncwarp();
  });
  int32_t* out = p.segment_counts + int64_t{segment} * p.num_local_experts;
  for (int e = lane; e < p.num_local_experts; e += 32) out[e] = counts[e];
  if (lane == 0) p.segment_totals[segment] = routed;
}

// Chunk of each segment, and the first token of each chunk.
__device__ void place_segments(const RouteParams& p, Counts<1> (&scratch)[33]) {
  const RoutingTables& t = p.tables;
  int32_t slots_before = 0;
  for (int base = 0; base < p.num_segments; base += blockDim.x) {
    const int s = base + threadIdx.x;
    Counts<1> count = {s < p.num_segments ? p.segment_totals[s] : 0};
    const int32_t own = count.v[0];
    const Counts<1> all = block_exclusive_scan(count, scratch);
    const int32_t before = slots_before + count.v[0];
    const int32_t chunk = before / p.chunk_slots;
    if (s < p.num_segments) {
      p.segment_totals[s] = chunk;
      const int32_t next = s + 1 < p.num_segments ? (before + own) / p.chunk_slots : p.num_chunks;
      if (s == 0) t.chunk_first_token[0] = 0;
      for (int32_t c = chunk + 1; c <= next; ++c) {
        t.chunk_first_token[c] = min((s + 1) * p.segment_tokens, p.num_tokens);
      }
    }
    slots_before += all.v[0];
  }
}

// Turns segment_counts of one expert into rows before the segment within its chunk, and sums each chunk.
__device__ void sum_expert(const RouteParams& p, int expert) {
  constexpr int kBatch = 16;  // loads in flight
  const int64_t num_local = p.num_local_experts;
  for (int c = 0; c < p.num_chunks; ++c) p.tables.row_counts[c * num_local + expert] = 0;
  int32_t sum = 0, chunk = 0;
  for (int base = 0; base < p.num_segments; base += kBatch) {
    int32_t own[kBatch], chunks[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const bool valid = base + i < p.num_segments;
      own[i] = valid ? p.segment_counts[(base + i) * num_local + expert] : 0;
      chunks[i] = valid ? p.segment_totals[base + i] : chunk;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (base + i >= p.num_segments) break;
      if (chunks[i] != chunk) {
        p.tables.row_counts[chunk * num_local + expert] = sum;
        chunk = chunks[i];
        sum = 0;
      }
      p.segment_counts[(base + i) * num_local + expert] = sum;
      sum += own[i];
    }
  }
  p.tables.row_counts[chunk * num_local + expert] = sum;
}

// Row offsets, active experts and row tiles of one chunk.
__device__ void lay_out_chunk(const RouteParams& p, int chunk, Counts<3> (&scratch)[33]) {
  const RoutingTables& t = p.tables;
  const int64_t num_local = p.num_local_experts;
  int32_t* const offsets = t.row_offsets + chunk * (num_local + 1);
  int32_t* const starts = t.tile_starts + chunk * (num_local + 1);
  Counts<3> before = {};
  for (int base = 0; base < p.num_local_experts; base += blockDim.x) {
    const int e = base + threadIdx.x;
    const int32_t rows = e < p.num_local_experts ? t.row_counts[chunk * num_local + e] : 0;
    const int32_t aligned = (rows + p.row_alignment - 1) / p.row_alignment * p.row_alignment;
    Counts<3> at = {aligned, rows > 0, (rows + p.tile_rows - 1) / p.tile_rows};
    const Counts<3> all = block_exclusive_scan(at, scratch);
    if (e < p.num_local_experts) {
      const int32_t first = before.v[0] + at.v[0];
      offsets[e] = first;
      if (rows > 0) {
        t.active_experts[chunk * num_local + before.v[1] + at.v[1]] = e;
        starts[before.v[1] + at.v[1]] = before.v[2] + at.v[2];
      }
      int32_t* const row_to_slot = t.row_to_slot + int64_t{chunk} * p.chunk_rows;
      for (int32_t r = first + rows; r < first + aligned; ++r) row_to_slot[r] = -1;
    }
    for (int i = 0; i < 3; ++i) before.v[i] += all.v[i];
  }
  if (threadIdx.x == 0) {
    offsets[num_local] = before.v[0];
    t.num_active[chunk] = before.v[1];
    starts[before.v[1]] = before.v[2];
  }
}

__device__ void scan(const RouteParams& p) {
  __shared__ Counts<1> one[33];
  __shared__ Counts<3> three[33];
  if (threadIdx.x == 0) p.status->calls += 1;
  place_segments(p, one);
  __syncthreads();
  for (int e = threadIdx.x; e < p.num_local_experts; e += blockDim.x) sum_expert(p, e);
  __syncthreads();
  for (int c = 0; c < p.num_chunks; ++c) lay_out_chunk(p, c, three);
}

// `ranks` is this warp's shared memory, L counters.
__device__ void scatter_segment(const RouteParams& p, int segment, int32_t* ranks) {
  const int lane = threadIdx.x % 32;
  const RoutingTables& t = p.tables;
  const int64_t chunk = p.segment_totals[segment], num_local = p.num_local_experts;
  for (int e = lane; e < num_local; e += 32) {
    ranks[e] = t.row_offsets[chunk * (num_local + 1) + e] + p.segment_counts[segment * num_local + e];
  }
  __syncwarp();
  for_each_slot(p, segment, [&](uint32_t slot, bool valid, int32_t expert, int rank, uint32_t peers, bool) {
    int32_t row = kNotRouted;
    if (expert != kNotRouted) {
      row = ranks[expert] + rank;
      t.row_to_slot[chunk * p.chunk_rows + row] = static_cast<int32_t>(slot);
    }
    __syncwarp();
    if (expert != kNotRouted && rank == 0) ranks[expert] += __popc(peers);
    if (valid) t.slot_to_row[slot] = row;
    __syncwarp();
  });
}

// This warp's counters.
__device__ int32_t* warp_counters(const RouteParams& p) {
  extern __shared__ int32_t counters[];
  return counters + threadIdx.x / 32 * p.num_local_experts;
}

template <class Body>
__device__ void for_each_segment(const RouteParams& p, Body body) {
  const int warps = blockDim.x / 32;
  for (int s = blockIdx.x * warps + threadIdx.x / 32; s < p.num_segments; s += gridDim.x * warps) {
    body(s);
    __syncwarp();
  }
}

}  // namespace
}  // namespace nvfp4

extern "C" __global__ void __launch_bounds__(256) route_count(const __grid_constant__ RouteParams p) {
  nvfp4::let_next_start();
  nvfp4::for_each_segment(p, [&](int s) { nvfp4::count_segment(p, s, nvfp4::warp_counters(p)); });
}

extern "C" __global__ void __launch_bounds__(512, 1) route_scan(const __grid_constant__ RouteParams p) {
  nvfp4::follow_previous();
  nvfp4::scan(p);
}

extern "C" __global__ void __launch_bounds__(256) route_scatter(const __grid_constant__ RouteParams p) {
  nvfp4::follow_previous();
  nvfp4::for_each_segment(p, [&](int s) { nvfp4::scatter_segment(p, s, nvfp4::warp_counters(p)); });
}

extern "C" __global__ void __launch_bounds__(1024, 1) route_small(const __grid_constant__ RouteParams p) {
  nvfp4::let_next_start();
  nvfp4::for_each_segment(p, [&](int s) { nvfp4::count_segment(p, s, nvfp4::warp_counters(p)); });
  __syncthreads();
  nvfp4::scan(p);
  __syncthreads();
  nvfp4::for_each_segment(p, [&](int s) { nvfp4::scatter_segment(p, s, nvfp4::warp_counters(p)); });
}
