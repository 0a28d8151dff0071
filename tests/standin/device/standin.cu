// SPDX-License-Identifier: Apache-2.0
// Stand-ins, on Hopper, for the instructions that only Blackwell has: tcgen05.* (sm_100) and block-scaled mma.sync
// (sm_120). rewrite.py replaces each such instruction of a kernel's PTX by a call of one of these; every other
// instruction runs as it is.
//
// Tensor memory is an array in global memory, [slot][512 columns][128 lanes] of 32 bits. Descriptors are decoded from
// their bits, checked, and used for every address; nothing else tells where an operand lies.
#include "queue.cuh"

using namespace standin;

extern "C" {

// ---- a kernel's begin and end

__device__ __noinline__ uint32_t standin_enter(uint32_t kernel) { return enter(kernel); }
__device__ __noinline__ void standin_leave(uint32_t slot) { leave(slot); }

// ---- tcgen05.alloc, dealloc, relinquish_alloc_permit: by a whole warp

__device__ __noinline__ void standin_alloc(uint32_t slot, uint32_t destination, uint32_t columns, uint32_t line) {
  __syncwarp();
  const Running it(slot);
  const uint32_t lane = thread_index() % 32, slices = columns / 32;
  if (columns < 32 || columns > kNumColumns || (columns & (columns - 1))) fail(it, kAllocColumns, line, columns);
  if (it.cta.relinquished) fail(it, kAllocAfterRelinquish, line);
  if (lane == 0) {  // CTAs of a multiprocessor share its columns
    uint32_t& taken = standin_config.sm_columns[it.cta.sm];
    for (const uint64_t start = timer(); atomicAdd(&taken, columns) + columns > kNumColumns;) {
      atomicSub(&taken, columns);
      if (timer() - start > standin_config.timeout_ns) fail(it, kAllocNoRoom, line, columns);
      __nanosleep(1000);
    }
    count(kAllocs);
  }
  __syncwarp();
  uint32_t first = standin_config.alloc_shift;
  if (first + slices > kNumColumns / 32) first = 0;
  for (bool free = false; !free; first += !free) {
    if (first + slices > kNumColumns / 32) fail(it, kAllocNoRoom, line, columns);
    free = true;
    for (uint32_t s = first; s < first + slices; ++s) free = free && it.cta.owner[s] == 0;
  }
  __syncwarp();
  for (uint32_t column = first * 32; column < first * 32 + columns; ++column)
    for (uint32_t i = lane; i < kNumLanes; i += 32) it.cell(column, i) = kPoisonWord;
  if (lane < slices) it.cta.owner[first + lane] = 1 + first * 32, it.cta.written[first + lane] = 0;
  if (lane < slices)
    for (auto& quarter : it.cta.unread) quarter[first + lane] = 0;
  if (lane == 0) store_shared(destination, first * 32);
  __threadfence_block();
  __syncwarp();
}

__device__ __noinline__ void standin_dealloc(uint32_t slot, uint32_t address, uint32_t columns, uint32_t line) {
  __syncwarp();
  const Running it(slot);
  const uint32_t first = address / 32, slices = columns / 32;
  if (address % 32 || address + columns > kNumColumns || it.cta.owner[first] != 1 + address ||
      !allocated(it.cta, address, columns) ||
      (first + slices < kNumColumns / 32 && it.cta.owner[first + slices] == 1 + address))
    fail(it, kDeallocUnknown, line, address, columns);
  if (now(it.cta.queued)) fail(it, kInFlight, line, it.cta.ops[0].line);
  __syncwarp();
  if (thread_index() % 32 == 0) {
    for (uint32_t s = first; s < first + slices; ++s) it.cta.owner[s] = 0;
    atomicSub(&standin_config.sm_columns[it.cta.sm], columns);
  }
  __threadfence_block();
  __syncwarp();
}

__device__ __noinline__ void standin_relinquish(uint32_t slot) { standin_config.cta[slot].relinquished = 1; }

// ---- tcgen05.mma, cp, commit: by one thread

// `flags`: Op::flags; `a`: a descriptor, or with kAInTmem an address.
__device__ __noinline__ void standin_mma(uint32_t slot, uint32_t d, uint64_t a, uint64_t b, uint32_t idesc,
                                         uint32_t sfa, uint32_t sfb, uint32_t accumulate, uint32_t flags,
                                         uint32_t line) {
  const Running it(slot);
  one_thread(it, line);
  check_fence_after(it, line);
  const Op op{kMma, thread_index(), line, d, idesc, sfa, sfb, flags | (accumulate ? kAccumulate : 0), a, b};
  const Instruction in(kind_of(op), idesc);
  if (in.broken) fail(it, kInstruction, line, in.broken, idesc);
  check_operand(it, d, in.n, line);
  if (!accumulate) overwrite_sums(it, op);
  for (auto& quarter : it.cta.unread) set_bits(quarter, written_by(op));
  issue(it, op);
  count(kMmas);
}

// .32x128b.warpx4
__device__ __noinline__ void standin_copy(uint32_t slot, uint32_t d, uint64_t source, uint32_t line) {
  const Running it(slot);
  one_thread(it, line);
  check_fence_after(it, line);
  check_operand(it, d, 4, line);
  const Op op{kCopy, thread_index(), line, d, 0, 0, 0, 0, source, 0};
  const uint32_t reader = first_line(it.cta, [&](const Op& other) { return reads(other, written_by(op)); });
  if (strict() && reader) fail(it, kCopyOverScales, line, reader);
  issue(it, op);
  count(kCopies);
}

// .mbarrier::arrive::one: of this thread's operations only
__device__ __noinline__ void standin_commit(uint32_t slot, uint32_t barrier, uint32_t line) {
  const Running it(slot);
  one_thread(it, line);
  if (barrier % 8) fail(it, kBarrierAddress, line, barrier);
  for (uint32_t i = 0; i < it.cta.queued; ++i)
    if (it.cta.ops[i].thread != thread_index()) fail(it, kForeignCommit, line, thread_index(), it.cta.ops[i].thread);
  delay(line);
  execute(it, thread_index());
  retire(it);
  __threadfence_block();
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
  count(kCommits);
}

// ---- tcgen05.ld and .st, 32x32b, by a whole warp: where this lane's first column lies; the others follow 512 bytes
// apart

}  // extern "C"

namespace standin {
__device__ uint64_t access(const Running& it, uint32_t address, uint32_t columns, Columns (&pending)[kWarps],
                           bool store, uint32_t line) {
  __syncwarp();
  check_fence_after(it, line);
  const uint32_t warp = thread_index() / 32, lane = address >> 16;
  const Columns own{address & 0xFFFF, (address & 0xFFFF) + columns};
  if (__shfl_sync(~0u, address, 0) != address) fail(it, kNotUniform, line);
  if (lane != warp % 4 * 32) fail(it, kLanes, line, address, warp);
  check_columns(it, address, columns, line);
  const uint32_t other =
      first_line(it.cta, [&](const Op& op) { return overlap(own, written_by(op)) || (store && reads(op, own)); });
  if (other != 0) fail(it, kInFlight, line, other);
  if (thread_index() % 32 == 0) {
    add(pending[warp], own);
    atomicOr(store ? &it.cta.storing_warps : &it.cta.loading_warps, 1u << warp);
    if (store)
      set_bits(it.cta.written, own);
    else
      clear_bits(it.cta.unread[warp % 4], own);
    count(store ? kStores : kLoads);
  }
  it.cta.dirty_line[thread_index()] = line;
  __threadfence_block();
  delay(line);
  __syncwarp();
  return reinterpret_cast<uint64_t>(&it.cell(own.first, lane + thread_index() % 32));
}

__device__ inline void waited(uint32_t& warps, Columns (&pending)[kWarps]) {
  __syncwarp();
  __threadfence_block();
  if (thread_index() % 32 == 0) {
    set(pending[thread_index() / 32], {0, 0});
    atomicAnd(&warps, ~(1u << thread_index() / 32));
  }
  __threadfence_block();
  __syncwarp();
}
}  // namespace standin

extern "C" {

__device__ __noinline__ uint64_t standin_load(uint32_t slot, uint32_t address, uint32_t columns, uint32_t line) {
  const Running it(slot);
  return access(it, address, columns, it.cta.loading, false, line);
}
__device__ __noinline__ uint64_t standin_store(uint32_t slot, uint32_t address, uint32_t columns, uint32_t line) {
  const Running it(slot);
  return access(it, address, columns, it.cta.storing, true, line);
}
__device__ __noinline__ void standin_wait_load(uint32_t slot) {
  Cta& cta = standin_config.cta[slot];
  waited(cta.loading_warps, cta.loading);
}
__device__ __noinline__ void standin_wait_store(uint32_t slot) {
  Cta& cta = standin_config.cta[slot];
  waited(cta.storing_warps, cta.storing);
}

// ---- fences and barriers

__device__ __noinline__ void standin_fence_after(uint32_t slot) {
  standin_config.cta[slot].wait_line[thread_index()] = 0;
}
__device__ __noinline__ void standin_fence_before(uint32_t slot) {
  standin_config.cta[slot].dirty_line[thread_index()] = 0;
  __threadfence_block();
}
// Before an mbarrier.arrive.
__device__ __noinline__ void standin_arrive(uint32_t slot, uint32_t line) {
  const uint32_t dirty = standin_config.cta[slot].dirty_line[thread_index()];
  if (strict() && dirty != 0) fail(Running(slot), kMissingFenceBefore, line, dirty);
}

// After an mbarrier.try_wait or test_wait: limits how long a thread may go without success.
__device__ __noinline__ void standin_waited(uint32_t slot, uint32_t barrier, uint32_t parity, uint32_t done,
                                            uint32_t line) {
  const Running it(slot);
  uint64_t& start = it.cta.spin_start[thread_index()];
  if (done) {
    start = 0;
    it.cta.wait_line[thread_index()] = line;
    delay(line);
  } else if (start == 0) {
    start = timer();
  } else if (timer() - start > standin_config.timeout_ns) {
    fail(it, kHang, line, barrier, parity);
  }
}

// Before a copy to shared memory is started: `bytes` are known of those without a tensor map, else 0.
__device__ __noinline__ void standin_bulk(uint32_t slot, uint32_t destination, uint32_t bytes, uint32_t line) {
  const Running it(slot);
  check_stage(it, destination, line);
  if (poisons() && destination + bytes <= it.cta.shared_limit) {
    for (uint32_t at = 0; at < bytes; at += 16) poison16(destination + at);
    fence_poison();
  }
  delay(line);
}

// ---- mma.sync.m16n8k64 of NVFP4 with block scales, by a whole warp; `selectors`: thread-id-a + 2 * thread-id-b

__device__ __noinline__ float4 standin_mma_sync(uint32_t slot, float4 d, uint4 a, uint2 b, uint32_t sfa, uint32_t sfb,
                                                uint32_t selectors, uint32_t line) {
  const int lane = thread_index() % 32, id_a = selectors & 1, id_b = selectors >> 1;
  const uint32_t a_words[4] = {a.x, a.y, a.z, a.w}, b_words[2] = {b.x, b.y};
  float sums[4] = {d.x, d.y, d.z, d.w};
  if (poisons()) {
    // What no copy ever wrote may be multiplied, where nobody stores the result.
    const bool poisoned = a.x == kPoisonWord && a.y == kPoisonWord && a.z == kPoisonWord && a.w == kPoisonWord;
    if (__all_sync(~0u, poisoned)) fail(Running(slot), kPoisoned, line, 4);
    if (__all_sync(~0u, lane % 4 / 2 != id_a || sfa == kPoisonWord)) fail(Running(slot), kPoisoned, line, 2);
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
    const uint32_t scales_a = __shfl_sync(~0u, sfa, 4 * (row % 8) + 2 * id_a + row / 8);
    const uint32_t scales_b = __shfl_sync(~0u, sfb, 4 * column + id_b);
    int block[4] = {0, 0, 0, 0};
#pragma unroll
    for (int c = 0; c < 4; ++c)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 wa = decode8(__shfl_sync(~0u, a_words[2 * half + r / 2], 4 * (row % 8) + c));
        const uint2 wb = decode8(__shfl_sync(~0u, b_words[half], 4 * column + c));
        block[2 * half + c / 2] =
            __dp4a(static_cast<int>(wa.x), static_cast<int>(wb.x),
                   __dp4a(static_cast<int>(wa.y), static_cast<int>(wb.y), block[2 * half + c / 2]));
      }
#pragma unroll
    for (int j = 0; j < 4; ++j)
      sums[r] += static_cast<float>(block[j]) * 0.25f * (ue4m3(scales_a >> (8 * j)) * ue4m3(scales_b >> (8 * j)));
  }
  if (lane == 0) count(kMmaSyncs);
  return {sums[0], sums[1], sums[2], sums[3]};
}

}  // extern "C"

extern "C" __device__ standin::Config standin_config{};
extern "C" __device__ uint32_t standin_cta_bytes = sizeof(standin::Cta);  // that both sides are of one make
