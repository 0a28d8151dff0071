// SPDX-License-Identifier: Apache-2.0
// How routing cuts a call into segments and chunks, and what one block keeps of them: rust/cuda/plan.rs plans by it.
#pragma once
#include <cstdint>

#include "../params.h"

namespace nvfp4 {

// The slots of a segment.
struct SlotRange {
  // Slots number less than 2^31; unsigned, so that rounding up to a warp or a segment cannot overflow.
  uint32_t first, end;

  __host__ __device__ SlotRange(const RouteParams& p, int segment) {
    const uint32_t first_token = static_cast<uint32_t>(segment) * p.segment_tokens;
    first = first_token * p.top_k;
    end = min(first_token + p.segment_tokens, static_cast<uint32_t>(p.num_tokens)) * p.top_k;
  }
};

// The chunk of a segment, of whose slots so many before it are routed.
__host__ __device__ inline int32_t chunk_of_segment(const RouteParams& p, int32_t routed_before) {
  return routed_before / p.chunk_slots;
}

// What route_small keeps in shared memory, in words of four bytes: counters [S + 1, L], this padding to an even number
// of words, then two words for each slot.
__host__ __device__ inline int32_t small_routing_padding(const RouteParams& p) {
  return (p.num_segments + 1) * p.num_local_experts % 2;
}
__host__ __device__ inline int32_t small_routing_words(const RouteParams& p) {
  const int32_t counters = (p.num_segments + 1) * p.num_local_experts;
  return counters + small_routing_padding(p) + 2 * p.num_segments * p.segment_tokens * p.top_k;
}

// What a block of route_cluster keeps there, in words: two for each slot of its warps' segments, then counters of each
// segment, at an odd stride, and two more of each expert.
__host__ __device__ inline int32_t cluster_routing_stride(const RouteParams& p) { return p.num_local_experts | 1; }
__host__ __device__ inline int32_t cluster_routing_words(const RouteParams& p, int32_t warps) {
  return 2 * warps * p.segment_tokens * p.top_k + warps * cluster_routing_stride(p) + 2 * p.num_local_experts;
}

}  // namespace nvfp4
