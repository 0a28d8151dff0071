// Routing: which row serves each (token, k) slot. A stable counting sort by (chunk, local expert), on the device.
//
//   segment  a run of whole tokens, counted and ranked by one warp, in order
//   chunk    a run of whole segments whose routed slots fit the R rows of the workspace; no slot is ever dropped
//
//   route_count    segments count their slots by expert
//   route_scan     one block turns counts into chunks, row offsets, and the list of experts that have rows
//   route_scatter  segments rank their slots and write the maps
//   route_small    all three in one block, for few tokens of one chunk
#include "../common/overlap.cuh"
#include "../common/scan.cuh"
#include "../common/tiles.cuh"
#include "../params.h"

namespace nvfp4 {
namespace {

constexpr int32_t kNotRouted = -1, kBad = -2;

// A slot's global expert: kNotRouted for padding, kBad where the id is out of range. Ids are data: padding tokens carry
// -1, and a buggy router may carry anything.
__device__ int32_t global_expert(const RouteParams& p, uint32_t slot) {
  int64_t at = slot;
  if (p.topk_ids_row_stride != p.top_k) at = slot / p.top_k * p.topk_ids_row_stride + slot % p.top_k;
  const int64_t id =
      p.topk_ids_are_i64 ? static_cast<const int64_t*>(p.topk_ids)[at] : static_cast<const int32_t*>(p.topk_ids)[at];
  return id < -1 || id >= p.num_experts ? kBad : static_cast<int32_t>(id);
}

// The local expert that serves a global one; kNotRouted where it is not here, kBad where expert_map is out of range.
__device__ int32_t local_expert(const RouteParams& p, int32_t expert) {
  if (expert < 0) return expert;
  const int32_t local = p.expert_map ? p.expert_map[expert] : expert - p.first_local_expert;
  if (local >= 0 && local < p.num_local_experts) return local;
  return p.expert_map && local != -1 ? kBad : kNotRouted;
}

// The slots of a segment.
struct SlotRange {
  // Slots number less than 2^31; unsigned, so that rounding up to a warp or a segment cannot overflow.
  uint32_t first, end;

  __device__ SlotRange(const RouteParams& p, int segment) {
    const uint32_t first_token = static_cast<uint32_t>(segment) * p.segment_tokens;
    first = first_token * p.top_k;
    end = min(first_token + p.segment_tokens, static_cast<uint32_t>(p.num_tokens)) * p.top_k;
  }
};

__device__ void report_bad_ids(const RouteParams& p, uint32_t slot, bool bad) {
  const uint32_t lanes = __ballot_sync(~0u, bad);
  if (!bad || (lanes & ((1u << threadIdx.x % 32) - 1)) != 0) return;
  using ull = unsigned long long;
  atomicAdd(reinterpret_cast<ull*>(&p.status->out_of_range_ids), static_cast<ull>(__popc(lanes)));
  const ull calls = *reinterpret_cast<const volatile ull*>(&p.status->calls);
  atomicMin(reinterpret_cast<ull*>(&p.status->first_bad), calls << 32 | static_cast<ull>(slot / p.top_k));
}

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

// Chunk of each segment, kept in `chunk_of`, and the first token of each chunk.
__device__ void place_segments(const RouteParams& p, int32_t* chunk_of) {
  __shared__ Counts<1> scratch[33];
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
      p.segment_totals[s] = chunk_of[s] = chunk;
      const int32_t next = s + 1 < p.num_segments ? (before + own) / p.chunk_slots : p.num_chunks;
      if (s == 0) t.chunk_first_token[0] = 0;
      for (int32_t c = chunk + 1; c <= next; ++c) {
        t.chunk_first_token[c] = min((s + 1) * p.segment_tokens, p.num_tokens);
      }
    }
    slots_before += all.v[0];
  }
}

// Calls visit(segment, count) for an expert's counts in a run of segments.
template <class Visit>
__device__ void for_each_count(const RouteParams& p, int expert, int first, int end, Visit visit) {
  constexpr int kBatch = 8;  // loads in flight
  const int32_t* const counts = p.segment_counts + expert;
  for (int base = first; base < end; base += kBatch) {
    int32_t own[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) own[i] = base + i < end ? counts[int64_t{base + i} * p.num_local_experts] : 0;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (base + i < end) visit(base + i, own[i]);
    }
  }
}

// Turns segment_counts into rows before the segment within its chunk, and sums each chunk: a thread for each expert and
// run of segments, which sums its run, then starts again from what runs before it hold of its first chunk.
__device__ void sum_experts(const RouteParams& p, const int32_t* chunk_of) {
  __shared__ int32_t sums[ROUTE_SCAN_THREADS];
  const int num_local = p.num_local_experts, width = min((num_local + 31) / 32 * 32, ROUTE_SCAN_THREADS);
  const int runs = ROUTE_SCAN_THREADS / width, run = threadIdx.x / width, in_run = threadIdx.x % width;
  const int segments = (p.num_segments + runs - 1) / runs;  // of a run
  const int first = run * segments, end = min(first + segments, p.num_segments);
  const auto chunk_before = [&](int segment) { return segment == 0 ? 0 : chunk_of[segment - 1]; };
  for (int expert = in_run; expert - in_run < num_local; expert += width) {
    const bool valid = expert < num_local && run < runs && first < end;
    int32_t sum = 0;
    if (valid) {
      if (run == 0) {
        for (int c = 0; c < p.num_chunks; ++c) p.tables.row_counts[int64_t{c} * num_local + expert] = 0;
      }
      int32_t chunk = chunk_before(first);
      for_each_count(p, expert, first, end, [&](int segment, int32_t count) {
        if (chunk_of[segment] != chunk) sum = 0;
        chunk = chunk_of[segment];
        sum += count;
      });
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (valid) {
      int32_t chunk = chunk_before(first);
      sum = 0;
      for (int before = run - 1; before >= 0; --before) {
        sum += sums[before * width + in_run];
        if (chunk_before(before * segments) != chunk) break;  // that run's sum begins within the chunk
      }
      for_each_count(p, expert, first, end, [&](int segment, int32_t count) {
        if (chunk_of[segment] != chunk) {
          p.tables.row_counts[int64_t{chunk} * num_local + expert] = sum;
          chunk = chunk_of[segment];
          sum = 0;
        }
        p.segment_counts[int64_t{segment} * num_local + expert] = sum;
        sum += count;
      });
      if (end == p.num_segments) p.tables.row_counts[int64_t{chunk} * num_local + expert] = sum;
    }
    __syncthreads();  // the sums have been read
  }
}

// Row offsets and groups of one chunk, by one warp. rows_of(e) gives an expert's rows; place(e, row) learns the first.
template <class RowsOf, class Place>
__device__ void lay_out_chunk(const RouteParams& p, int chunk, RowsOf rows_of, Place place) {
  const int lane = threadIdx.x % 32;
  const RoutingTables& t = p.tables;
  const int64_t num_local = p.num_local_experts;
  int32_t* const offsets = t.row_offsets + chunk * (num_local + 1);
  RowGroup* const groups = t.groups + chunk * (num_local + 2);
  Counts<3> before = {};
  for (int base = 0; base < num_local; base += 32) {
    const int e = base + lane;
    const int32_t rows = e < num_local ? rows_of(e) : 0;
    const int32_t aligned = (rows + p.row_alignment - 1) / p.row_alignment * p.row_alignment;
    Counts<3> at = {aligned, rows > 0, row_tiles_of(rows, p.tile_rows)};
    const Counts<3> all = warp_exclusive_scan(at);
    for (int i = 0; i < 3; ++i) at.v[i] += before.v[i];
    if (e < num_local) {
      offsets[e] = at.v[0];
      place(e, at.v[0]);
      if (rows > 0) groups[at.v[1]] = RowGroup{e, at.v[0], rows, at.v[2]};
      int32_t* const row_to_slot = t.row_to_slot + int64_t{chunk} * p.chunk_rows;
      for (int32_t r = at.v[0] + rows; r < at.v[0] + aligned; ++r) row_to_slot[r] = -1;
    }
    for (int i = 0; i < 3; ++i) before.v[i] += all.v[i];
  }
  if (lane == 0) {
    offsets[num_local] = before.v[0];
    groups[before.v[1]] = groups[before.v[1] + 1] = RowGroup{-1, before.v[0], 0, before.v[2]};
  }
}

// Columns of an expert's tiles, in steps; experts without rows have none.
__device__ int tile_steps(const RouteParams& p, int32_t rows) {
  const int32_t step = max(row_tiles_of(rows, p.tile_rows), 1) * GEMM_SM90_COLUMN_STEP;
  return (rows + step - 1) / step;
}

// Orders a chunk's groups by the width of their tiles, widest first, so that narrow ones even out the end. For the
// kernel whose work follows its rows. One warp; lay_out_chunk() came before.
template <class RowsOf>
__device__ void list_widest_first(const RouteParams& p, int chunk, RowsOf rows_of) {
  constexpr int kSteps = GEMM_SM90_WIDEST_ROWS / GEMM_SM90_COLUMN_STEP;
  const int lane = threadIdx.x % 32;
  const int64_t num_local = p.num_local_experts;
  const int32_t* const offsets = p.tables.row_offsets + chunk * (num_local + 1);
  RowGroup* const groups = p.tables.groups + chunk * (num_local + 2);
  int32_t first[kSteps] = {};  // [i]: place of the next expert of i + 1 steps
  for (int base = 0; base < num_local; base += 32) {
    const int steps = base + lane < num_local ? tile_steps(p, rows_of(base + lane)) : 0;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int here = __popc(__ballot_sync(~0u, steps == i + 1));
#pragma unroll
      for (int narrower = 0; narrower < i; ++narrower) first[narrower] += here;
    }
  }
  for (int base = 0; base < num_local; base += 32) {
    const int e = base + lane;
    const int32_t rows = e < num_local ? rows_of(e) : 0;
    const int steps = tile_steps(p, rows);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const uint32_t peers = __ballot_sync(~0u, steps == i + 1);
      if (steps == i + 1) groups[first[i] + __popc(peers & ((1u << lane) - 1))] = RowGroup{e, offsets[e], rows, 0};
      first[i] += __popc(peers);
    }
  }
  __syncwarp();
  const int num_groups = first[0];  // the narrowest come last
  int32_t before = 0;
  for (int base = 0; base < num_groups; base += 32) {
    const int i = base + lane;
    Counts<1> at = {i < num_groups ? row_tiles_of(groups[i].num_rows, p.tile_rows) : 0};
    const Counts<1> all = warp_exclusive_scan(at);
    if (i < num_groups) groups[i].first_tile = before + at.v[0];
    before += all.v[0];
  }
}

__device__ void count_call(const RouteParams& p) {
  // Without a result, so that nothing waits for it.
  if (threadIdx.x == 0) atomicAdd(reinterpret_cast<unsigned long long*>(&p.status->calls), 1ull);
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

// What route_small keeps in shared memory; `LayerPlan::one_block_routing` counts it.
struct SmallRouting {
  int32_t* before;  // [S, L] an expert's rows in a segment, then those in the segments before it
  int32_t* rows;    // [L] an expert's rows, then the first of them
  int2* slots;      // [S, segment_slots] local expert or negative; rank among its segment's
  int segment_slots;

  __device__ explicit SmallRouting(const RouteParams& p) {
    extern __shared__ int32_t counters[];
    before = counters;
    rows = before + p.num_segments * p.num_local_experts;
    const int odd = (p.num_segments + 1) * p.num_local_experts % 2;
    slots = reinterpret_cast<int2*>(rows + p.num_local_experts + odd);
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

extern "C" __global__ void __launch_bounds__(256) route_count(const __grid_constant__ RouteParams p) {
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
    if (p.tile_rows == GEMM_SM90_WIDEST_ROWS) list_widest_first(p, c, rows_of);
  }
}

extern "C" __global__ void __launch_bounds__(256) route_scatter(const __grid_constant__ RouteParams p) {
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
extern "C" __global__ void __launch_bounds__(1024, 1) route_small(const __grid_constant__ RouteParams p) {
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
  const int num_slots = p.num_tokens * p.top_k;
  for (int slot = threadIdx.x; slot < num_slots; slot += blockDim.x) {
    const int2 kept = small.slots[slot];  // segments follow each other without a gap
    const int segment = slot / small.segment_slots;
    const int32_t row =
        kept.x < 0 ? kNotRouted : small.rows[kept.x] + small.before[segment * p.num_local_experts + kept.x] + kept.y;
    write_slot(p, 0, slot, row);
  }
}
