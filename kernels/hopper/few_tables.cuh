// SPDX-License-Identifier: Apache-2.0
// Few tokens: routing tables that every CTA makes for itself, in shared memory. A warp sorts the slots by expert.
#pragma once
#include "../route/ids.cuh"
#include "params.h"

namespace nvfp4 {

struct FewTables {
  RowGroup groups[FEW_SLOTS + 2];        // by expert; then two end marks
  alignas(16) uint32_t keys[FEW_SLOTS];  // by which slots are sorted
  int32_t expert[FEW_SLOTS];             // of a row
  int32_t row_to_slot[FEW_SLOTS];
  int32_t slot_to_row[FEW_SLOTS];  // kNotRouted where the expert is not here
  float weight[FEW_SLOTS];         // of a slot
  int32_t num_groups;

  // By one warp. Reports bad ids and counts the call where `counts`.
  __device__ void fill(const RouteParams& p, bool counts);
  // By one warp: the weights of all slots.
  __device__ void fill_weights(const CombineParams& p, int num_tokens);
};

__device__ inline void FewTables::fill(const RouteParams& p, bool counts) {
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
  keys[lane] = key[0];
  keys[lane + 32] = key[1];
  __syncwarp();
  int32_t row[2] = {};
#pragma unroll 4
  for (int from = 0; from < slots; from += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(keys + from);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] += (four.x < key[i]) + (four.y < key[i]) + (four.z < key[i]) + (four.w < key[i]);
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
  const int all = __popcll(firsts);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int own = i * 32 + lane, group = __popcll(firsts & ((uint64_t{1} << own) - 1));
    if (!first[i]) continue;
    const uint64_t later = firsts >> own >> 1;
    const int end = later ? own + __ffsll(static_cast<long long>(later)) : rows;
    groups[group] = RowGroup{expert[own], own, end - own, group};
  }
  if (lane < 2) groups[all + lane] = RowGroup{-1, rows, 0, all};
  if (lane == 0) num_groups = all;
}

__device__ inline void FewTables::fill_weights(const CombineParams& p, int num_tokens) {
  for (int slot = threadIdx.x % 32; slot < num_tokens * p.top_k; slot += 32) {
    weight[slot] = p.topk_weights ? p.topk_weights[slot / p.top_k * p.topk_weights_row_stride + slot % p.top_k] : 1.0f;
  }
}

}  // namespace nvfp4
