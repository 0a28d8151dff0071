// SPDX-License-Identifier: Apache-2.0
// What a router's choices say: which local expert serves a slot, and which ids are none.
#pragma once
#include <cstdint>

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

__device__ void report_bad_ids(const RouteParams& p, uint32_t slot, bool bad) {
  const uint32_t lanes = __ballot_sync(~0u, bad);
  if (!bad || (lanes & ((1u << threadIdx.x % 32) - 1)) != 0) return;
  using ull = unsigned long long;
  atomicAdd(reinterpret_cast<ull*>(&p.status->out_of_range_ids), static_cast<ull>(__popc(lanes)));
  const ull calls = *reinterpret_cast<const volatile ull*>(&p.status->calls);
  atomicMin(reinterpret_cast<ull*>(&p.status->first_bad), calls << 32 | static_cast<ull>(slot / p.top_k));
}

__device__ void count_call(const RouteParams& p) {
  // Without a result, so that nothing waits for it.
  if (threadIdx.x == 0) atomicAdd(reinterpret_cast<unsigned long long*>(&p.status->calls), 1ull);
}

}  // namespace
}  // namespace nvfp4
