// SPDX-License-Identifier: Apache-2.0
// Few tokens: routing tables that every CTA makes for itself, in shared memory. A warp sorts the slots by expert.
#pragma once
#include "../route/ids.cuh"
#include "params.h"

namespace nvfp4 {

struct FewTables {
  RowGroup groups[FEW_SLOTS + 2];  // of this CTA's experts, by expert; then two end marks
  int32_t expert[FEW_SLOTS];       // of a row
  int32_t row_to_slot[FEW_SLOTS];
  int32_t slot_to_row[FEW_SLOTS];  // kNotRouted where the expert is not here
  float weight[FEW_SLOTS];         // of a slot
  int32_t num_here;                // experts of this CTA
  int32_t num_groups;              // of all ranks
  int32_t num_rows;
  // Mode fp8, of sources of rows, tokens or rows themselves: does this CTA read it; bits of its largest magnitude, once
  // found.
  int32_t num_sources;
  bool is_read[FEW_SLOTS];
  uint32_t amax[FEW_SLOTS];

  // By one warp. `rank` of `ranks` CTAs takes every ranks-th expert that has rows. Reports bad ids and counts the call
  // where `counts`.
  __device__ void fill(const RouteParams& p, int rank, int ranks, bool counts);
  // By the same warp: sources, none of which has been looked at.
  __device__ void fill_sources(const RouteParams& p, bool by_token);
  // By one warp: the weights of all slots.
  __device__ void fill_weights(const CombineParams& p, int num_tokens);
};

__device__ inline void FewTables::fill(const RouteParams& p, int rank, int ranks, bool counts) {
  static_assert(FEW_SLOTS == 64, "two slots a lane, and a bit of 64 for each row");
  constexpr uint32_t kLast = ~0u;
  const int lane = threadIdx.x % 32, slots = p.num_tokens * p.top_k;
  uint32_t key[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int slot = i * 32 + lane;
    const int32_t own = slot < slots ? local_expert(p, global_expert(p, slot)) : kNotRouted;
    if (counts && i * 32 < slots) report_bad_ids(p, slot, own == kBad);
    key[i] = own < 0 ? kLast : static_cast<uint32_t>(own) * FEW_SLOTS + slot;
  }
  if (counts) count_call(p);
  // A slot's row is how many come before it.
  int32_t row[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int end = min(slots - i * 32, 32);
    for (int from = 0; from < end; ++from) {
      const uint32_t other = __shfl_sync(~0u, key[i], from);
      row[0] += other < key[0];
      row[1] += other < key[1];
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int slot = i * 32 + lane;
    slot_to_row[slot] = key[i] == kLast ? kNotRouted : row[i];
    if (key[i] == kLast) continue;
    expert[row[i]] = static_cast<int32_t>(key[i] / FEW_SLOTS);
    row_to_slot[row[i]] = slot;
  }
  const int rows = __popc(__ballot_sync(~0u, key[0] != kLast)) + __popc(__ballot_sync(~0u, key[1] != kLast));
  __syncwarp();
  bool first[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int own = i * 32 + lane;
    first[i] = own < rows && (own == 0 || expert[own] != expert[own - 1]);
  }
  const uint64_t firsts = __ballot_sync(~0u, first[0]) | uint64_t{__ballot_sync(~0u, first[1])} << 32;
  const int all = __popcll(firsts), here = (all - rank + ranks - 1) / ranks;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int own = i * 32 + lane, group = __popcll(firsts & ((uint64_t{1} << own) - 1));
    if (!first[i] || group % ranks != rank) continue;
    const uint64_t later = firsts >> own >> 1;
    const int end = later ? own + __ffsll(static_cast<long long>(later)) : rows;
    groups[group / ranks] = RowGroup{expert[own], own, end - own, group / ranks};
  }
  if (lane < 2) groups[here + lane] = RowGroup{-1, rows, 0, here};
  if (lane == 0) {
    num_here = here;
    num_groups = all;
    num_rows = rows;
  }
  __syncwarp();
}

__device__ inline void FewTables::fill_sources(const RouteParams& p, bool by_token) {
  const int lane = threadIdx.x % 32;
  for (int i = lane; i < FEW_SLOTS; i += 32) {
    is_read[i] = false;
    amax[i] = 0;
  }
  __syncwarp();
  for (int i = lane; i < FEW_SLOTS; i += 32) {
    if (by_token && slot_to_row[i] >= 0) is_read[i / p.top_k] = true;
    if (by_token || i >= num_here) continue;
    for (int row = 0; row < groups[i].num_rows; ++row) is_read[groups[i].first_row + row] = true;
  }
  if (lane == 0) num_sources = by_token ? p.num_tokens : num_rows;
}

__device__ inline void FewTables::fill_weights(const CombineParams& p, int num_tokens) {
  for (int slot = threadIdx.x % 32; slot < num_tokens * p.top_k; slot += 32) {
    weight[slot] = p.topk_weights ? p.topk_weights[slot / p.top_k * p.topk_weights_row_stride + slot % p.top_k] : 1.0f;
  }
}

}  // namespace nvfp4
