// SPDX-License-Identifier: Apache-2.0
// From counts of slots to tables: the chunk of each segment, row offsets of experts, and the groups that GEMMs go by.
#pragma once
#include "../common/scan.cuh"
#include "../common/tiles.cuh"
#include "../params.h"
#include "segments.cuh"

namespace nvfp4 {
namespace {

// Chunk of each segment, kept in `chunk_of`, and the first token of each chunk: a thread for each segment.
__device__ void place_segments(const RouteParams& p, int32_t* chunk_of) {
  static_assert(ROUTE_MAX_SEGMENTS <= ROUTE_SCAN_THREADS);
  __shared__ Counts<1> scratch[33];
  const RoutingTables& t = p.tables;
  const int s = threadIdx.x;
  const int32_t own = s < p.num_segments ? p.segment_totals[s] : 0;
  Counts<1> before = {own};
  block_exclusive_scan(before, scratch);
  if (s >= p.num_segments) return;
  const int32_t chunk = chunk_of_segment(p, before.v[0]);
  const int32_t next = s + 1 < p.num_segments ? chunk_of_segment(p, before.v[0] + own) : p.num_chunks;
  p.segment_totals[s] = chunk_of[s] = chunk;
  if (s == 0) t.chunk_first_token[0] = 0;
  const int32_t end = static_cast<int32_t>(SlotRange(p, s).end / p.top_k);
  for (int32_t c = chunk + 1; c <= next; ++c) t.chunk_first_token[c] = end;
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
    groups[before.v[1]] = groups[before.v[1] + 1] = groups[num_local + 1] = {-1, before.v[0], 0, before.v[2]};
  }
}

// Rows of an expert's tiles, in steps; experts without rows have none.
__device__ int tile_steps(int32_t rows) {
  const int32_t step = max(row_tiles_of(rows, kWidestTile), 1) * kWidthStep;
  return (rows + step - 1) / step;
}

// Orders a chunk's groups by the width of their tiles, widest first, so that narrow ones even out the end. One warp;
// lay_out_chunk() came before.
template <class RowsOf>
__device__ void list_widest_first(const RouteParams& p, int chunk, RowsOf rows_of) {
  constexpr int kSteps = kWidestTile / kWidthStep;
  const int lane = threadIdx.x % 32;
  const int64_t num_local = p.num_local_experts;
  const int32_t* const offsets = p.tables.row_offsets + chunk * (num_local + 1);
  RowGroup* const groups = p.tables.groups + chunk * (num_local + 2);
  int32_t first[kSteps] = {};  // [i]: place of the next expert of i + 1 steps
  for (int base = 0; base < num_local; base += 32) {
    const int steps = base + lane < num_local ? tile_steps(rows_of(base + lane)) : 0;
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
    const int steps = tile_steps(rows);
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
    Counts<1> at = {i < num_groups ? row_tiles_of(groups[i].num_rows, kWidestTile) : 0};
    const Counts<1> all = warp_exclusive_scan(at);
    if (i < num_groups) groups[i].first_tile = before + at.v[0];
    before += all.v[0];
  }
}

}  // namespace
}  // namespace nvfp4
