// SPDX-License-Identifier: Apache-2.0
// Routing of many tokens by one cluster of blocks: a warp for each segment, whose slots it keeps in shared memory.
// Blocks read each other's sums there. What it writes is what route_count, route_scan and route_scatter write.
#pragma once
#include "tables.cuh"

namespace nvfp4 {
namespace {

constexpr int kClusterBlocks = ROUTE_CLUSTER_BLOCKS;

#if __CUDA_ARCH__ >= 900
// Every thread of the cluster has come here, and what they wrote before is visible. Source: PTX ISA, "barrier.cluster".
__device__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// What lies in another block's shared memory where `own` lies in this one's. That block has begun, and does not end
// before the next barrier.
__device__ int32_t read_of_block(const int32_t* own, int block) {
  int32_t value;
  asm volatile(
      "{\n.reg .u32 at;\n"
      "mapa.shared::cluster.u32 at, %1, %2;\n"
      "ld.shared::cluster.s32 %0, [at];\n}\n"
      : "=r"(value)
      : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(own))), "r"(block)
      : "memory");
  return value;
}

// Where each block of a cluster stands among the segments.
struct ClusterSegments {
  int32_t slots[32];                     // routed ones of the segments of this block
  int32_t all_slots, last_slots;         // of this block; of its last segment
  int32_t chunk_of[32];                  // of this block's segments
  int32_t chunk_before[kClusterBlocks];  // of the segment before each block's first; 0 for the first block

  // Knows `slots`. Warp 0; the blocks are one chunk, or all have come to a barrier since all_slots and last_slots are
  // known.
  __device__ void place(const RouteParams& p, int warps) {
    const int lane = threadIdx.x % 32, block = blockIdx.x;
    const int32_t own = lane < warps ? slots[lane] : 0;
    int32_t before = warp_inclusive_scan(own) - own;
    if (p.num_chunks > 1) {
      const bool other = lane < kClusterBlocks;
      const int32_t theirs = other ? read_of_block(&all_slots, lane) : 0,
                    last = other ? read_of_block(&last_slots, lane) : 0;
      const int32_t before_block = warp_inclusive_scan(theirs) - theirs;
      const int32_t last_before = __shfl_up_sync(~0u, last, 1);
      if (other) chunk_before[lane] = lane == 0 ? 0 : chunk_of_segment(p, before_block - last_before);
      before += __shfl_sync(~0u, before_block, block);
    } else if (lane < kClusterBlocks) {
      chunk_before[lane] = 0;
    }
    const int segment = block * warps + lane;
    if (lane >= warps || segment >= p.num_segments) return;
    const int32_t chunk = chunk_of_segment(p, before);
    const int32_t next = segment + 1 < p.num_segments ? chunk_of_segment(p, before + own) : p.num_chunks;
    chunk_of[lane] = chunk;
    if (segment == 0) p.tables.chunk_first_token[0] = 0;
    const int32_t end = static_cast<int32_t>(SlotRange(p, segment).end / p.top_k);
    for (int32_t c = chunk + 1; c <= next; ++c) p.tables.chunk_first_token[c] = end;
  }
};

// What a block keeps in dynamic shared memory: rust/cuda/plan.rs has its size.
struct ClusterRouting {
  int2* slots;      // [W, segment_slots] local expert or negative; rank among its segment's
  int32_t* before;  // [W, L] an expert's rows in a segment, then those before it in its chunk, then the first row
  int32_t* open;    // [L] an expert's rows in the chunk of this block's last segment
  int segment_slots;
  int warps, segments;  // W, and of these those that there are

  __device__ ClusterRouting(const RouteParams& p, int32_t* shared) {
    segment_slots = p.segment_tokens * p.top_k;
    warps = blockDim.x / 32;
    segments = max(0, min(warps, p.num_segments - static_cast<int>(blockIdx.x) * warps));
    slots = reinterpret_cast<int2*>(shared);
    before = shared + 2 * warps * segment_slots;
    open = before + warps * p.num_local_experts;
  }

  __device__ int32_t* of_segment(const RouteParams& p, int segment) const {
    return before + segment * p.num_local_experts;
  }

  // Of the segments of this block: an expert's rows since the chunk changed last.
  __device__ void sum_open(const RouteParams& p, const ClusterSegments& at) const {
    for (int e = threadIdx.x; e < p.num_local_experts; e += blockDim.x) {
      int32_t sum = 0, chunk = at.chunk_before[blockIdx.x];
      for (int s = 0; s < segments; ++s) {
        if (at.chunk_of[s] != chunk) sum = 0;
        chunk = at.chunk_of[s];
        sum += of_segment(p, s)[e];
      }
      open[e] = sum;
    }
  }

  // Turns `before` into rows before the segment within its chunk, and sums each chunk.
  __device__ void sum_chunks(const RouteParams& p, const ClusterSegments& at) const {
    const int64_t num_local = p.num_local_experts;
    for (int e = threadIdx.x; e < num_local && segments > 0; e += blockDim.x) {
      int32_t chunk = at.chunk_before[blockIdx.x], sum = 0;
      for (int block = blockIdx.x - 1; block >= 0; --block) {
        sum += read_of_block(open + e, block);
        if (at.chunk_before[block] != chunk) break;  // its rows began within the chunk
      }
      for (int s = 0; s < segments; ++s) {
        int32_t* const own = of_segment(p, s) + e;
        if (at.chunk_of[s] != chunk) {
          p.tables.row_counts[chunk * num_local + e] = sum;
          chunk = at.chunk_of[s];
          sum = 0;
        }
        const int32_t count = *own;
        *own = sum;
        sum += count;
      }
      if (static_cast<int>(blockIdx.x) * warps + segments == p.num_segments) {
        p.tables.row_counts[chunk * num_local + e] = sum;
      }
    }
  }

  // Turns `before` into the first row of each segment and expert.
  __device__ void add_offsets(const RouteParams& p, const ClusterSegments& at) const {
    const int64_t num_local = p.num_local_experts;
    for (int e = threadIdx.x; e < num_local; e += blockDim.x) {
      int32_t chunk = -1, offset = 0;
      for (int s = 0; s < segments; ++s) {
        if (at.chunk_of[s] != chunk) offset = p.tables.row_offsets[at.chunk_of[s] * (num_local + 1) + e];
        chunk = at.chunk_of[s];
        of_segment(p, s)[e] += offset;
      }
    }
  }
};
#endif

}  // namespace
}  // namespace nvfp4
