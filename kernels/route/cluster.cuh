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

// What a block keeps in dynamic shared memory: cluster_routing_words() has its size.
struct ClusterRouting {
  int2* slots;       // [W, segment_slots] local expert or negative; rank among its segment's
  int32_t* before;   // [W, stride] an expert's rows in a segment, then those before it in this block and its chunk
  int32_t* open;     // [L] an expert's rows in the chunk of this block's last segment
  int32_t* carried;  // [L] those in the chunk that this block begins in the middle of; then those of the blocks before
  int segment_slots;
  int stride;           // odd, so that lanes can take a segment each
  int warps, segments;  // W, and of these those that there are

  __device__ ClusterRouting(const RouteParams& p, int32_t* shared) {
    segment_slots = p.segment_tokens * p.top_k;
    stride = cluster_routing_stride(p);
    warps = blockDim.x / 32;
    segments = max(0, min(warps, p.num_segments - static_cast<int>(blockIdx.x) * warps));
    slots = reinterpret_cast<int2*>(shared);
    before = shared + 2 * warps * segment_slots;
    open = before + warps * stride;
    carried = open + p.num_local_experts;
  }

  __device__ int32_t* of_segment(int segment) const { return before + segment * stride; }
  __device__ bool is_last(const RouteParams& p) const {
    return segments > 0 && static_cast<int>(blockIdx.x) * warps + segments == p.num_segments;
  }

  // Turns `before` into rows before the segment within this block and its chunk, and sums the chunks that lie within
  // the block: a warp for each expert, a lane for each segment.
  __device__ void sum_block(const RouteParams& p, const ClusterSegments& at) const {
    const int lane = threadIdx.x % 32, last = max(segments - 1, 0);
    const bool valid = lane < segments;
    const bool begins = valid && at.chunk_of[lane] != (lane == 0 ? at.chunk_before[blockIdx.x] : at.chunk_of[lane - 1]);
    const uint32_t heads = __ballot_sync(~0u, begins), heads_here = heads & (~0u >> (31 - lane));
    const int head = 31 - __clz(heads_here | 1), first_end = heads ? __ffs(heads) - 2 : last;
    const bool ends = lane + 1 < segments && (heads >> 1 >> lane & 1) != 0;
    for (int e = threadIdx.x / 32; e < p.num_local_experts; e += warps) {
      const int32_t own = valid ? of_segment(lane)[e] : 0;
      const int32_t end = warp_inclusive_scan(own), begin = __shfl_sync(~0u, end - own, head);
      const int32_t rows = end - (heads_here ? begin : 0);  // of the chunk, up to this segment
      if (valid) of_segment(lane)[e] = rows - own;
      if (ends && heads_here) p.tables.row_counts[int64_t{at.chunk_of[lane]} * p.num_local_experts + e] = rows;
      const int32_t first = __shfl_sync(~0u, rows, max(first_end, 0)), all = __shfl_sync(~0u, rows, last);
      if (lane == 0) open[e] = all, carried[e] = first_end < 0 ? 0 : first;
    }
  }

  // Adds what the blocks before have of the chunk that this one begins in the middle of.
  __device__ void sum_blocks(const RouteParams& p, const ClusterSegments& at) const {
    const int32_t chunk = at.chunk_before[blockIdx.x];
    for (int e = threadIdx.x; e < p.num_local_experts && segments > 0; e += blockDim.x) {
      int32_t sum = 0;
      for (int block = blockIdx.x - 1; block >= 0; --block) {
        sum += read_of_block(open + e, block);
        if (at.chunk_before[block] != chunk) break;  // its rows began within the chunk
      }
      const int32_t last = at.chunk_of[segments - 1];
      int32_t* const counts = p.tables.row_counts + e;
      if (last != chunk || is_last(p)) counts[int64_t{chunk} * p.num_local_experts] = sum + carried[e];
      if (last != chunk && is_last(p)) counts[int64_t{last} * p.num_local_experts] = open[e];
      carried[e] = sum;
    }
  }

  // Turns `before` into the first row of a segment's experts. One warp.
  __device__ void add_offsets(const RouteParams& p, const ClusterSegments& at, int segment) const {
    const int32_t chunk = at.chunk_of[segment];
    const int32_t* const offsets = p.tables.row_offsets + int64_t{chunk} * (p.num_local_experts + 1);
    const bool carries = chunk == at.chunk_before[blockIdx.x];
    for (int e = threadIdx.x % 32; e < p.num_local_experts; e += 32) {
      of_segment(segment)[e] += offsets[e] + (carries ? carried[e] : 0);
    }
    __syncwarp();
  }
};
#endif

}  // namespace
}  // namespace nvfp4
