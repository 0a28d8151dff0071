// SPDX-License-Identifier: Apache-2.0
// The state of the CTA that runs: its slot, its tensor memory, errors, delays. CTAs of several kernels may run at once
// (programmatic dependent launch), so a CTA claims a slot when it begins and leaves it as it was when it ends.
#pragma once
#include "standin.h"

extern "C" __device__ standin::Config standin_config;

namespace standin {

__device__ inline uint32_t cta_index() { return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z); }
__device__ inline uint32_t thread_index() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
__device__ inline uint32_t num_threads() { return blockDim.x * blockDim.y * blockDim.z; }

// What a call works on.
struct Running {
  Cta& cta;
  volatile uint32_t* tmem;

  __device__ explicit Running(uint32_t slot)
      : cta(standin_config.cta[slot]),
        tmem(standin_config.tmem + static_cast<uint64_t>(slot) * kNumColumns * kNumLanes) {}
  __device__ volatile uint32_t& cell(uint32_t column, uint32_t lane) const { return tmem[column * kNumLanes + lane]; }
  // For the thread that executes operations, which has synchronised with all who write.
  __device__ uint32_t& word(uint32_t column, uint32_t lane) const {
    return const_cast<uint32_t*>(tmem)[column * kNumLanes + lane];
  }
};

__device__ inline uint64_t timer() {
  uint64_t t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}

// Records the first error where the host can read it even after the trap.
__device__ __noinline__ void fail_in(uint32_t kernel, uint32_t error, uint64_t a, uint64_t b, uint64_t c) {
  Status* s = standin_config.status;
  if (atomicCAS_system(&s->error, 0u, error) == 0) {
    s->kernel = kernel, s->cta = cta_index(), s->thread = thread_index(), s->a = a, s->b = b, s->c = c;
    __threadfence_system();
  }
  const uint64_t start = timer();  // lets the store arrive
  while (timer() - start < 2000000) {
  }
  __trap();
}
__device__ inline void fail(const Running& it, uint32_t error, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0) {
  fail_in(it.cta.kernel, error, a, b, c);
}

__device__ inline void count(Counter counter) { atomicAdd(&standin_config.counters[counter], 1ull); }
__device__ inline bool strict() { return standin_config.flags & kStrict; }
__device__ inline bool poisons() { return standin_config.flags & kPoison; }

__device__ inline uint32_t hash(uint32_t line) {
  uint32_t h = standin_config.seed * 747796405u ^ line * 2654435761u ^ cta_index() * 40503u ^
               thread_index() / 32 * 977u ^ static_cast<uint32_t>(timer() >> 10);
  h ^= h >> 15, h *= 2246822519u, h ^= h >> 13, h *= 3266489917u;
  return h ^ h >> 16;
}
// Now and then a random delay, so that roles meet in other orders than their speeds here would have it.
__device__ inline void delay(uint32_t line) {
  const uint32_t largest = standin_config.delay_us;
  if (largest == 0) return;
  const uint32_t h = hash(line);
  const bool slow = thread_index() / 32 + 1 == standin_config.slow_warp;
  if (!slow && h & 3) return;
  const uint64_t until = timer() + static_cast<uint64_t>(slow ? largest : (h >> 2) % largest) * 1000;
  while (timer() < until) __nanosleep(1000);
}

// ---- shared memory

__device__ inline uint32_t load_shared(uint32_t address) {
  uint32_t v;
  asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}
__device__ inline void store_shared(uint32_t address, uint32_t value) {
  asm volatile("st.volatile.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ inline void poison16(uint32_t address) {
  for (int word = 0; word < 4; ++word) store_shared(address + 4 * word, kPoisonWord);
}
__device__ inline void fence_poison() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- a CTA begins and ends

// By all threads, before anything else of the kernel; the slot. Shared memory, which holds nothing yet, tells it to
// all.
__device__ __noinline__ uint32_t enter(uint32_t kernel) {
  constexpr uint32_t begin = 1024;  // on Hopper; what lies before is the system's
  uint32_t bytes;
  asm volatile("mov.u32 %0, %total_smem_size;" : "=r"(bytes));
  if (thread_index() == 0) {
    uint32_t sm, slot;
    asm volatile("mov.u32 %0, %smid;" : "=r"(sm));
    const uint64_t start = timer();
    for (slot = sm * 2 % standin_config.num_slots; atomicCAS(&standin_config.cta[slot].claimed, 0u, 1u) != 0;) {
      slot = (slot + 1) % standin_config.num_slots;
      if (timer() - start > standin_config.timeout_ns) fail_in(kernel, kNoSlot, standin_config.num_slots, 0, 0);
    }
    __threadfence();
    Cta& cta = standin_config.cta[slot];
    cta.kernel = kernel, cta.sm = sm, cta.shared_limit = begin + bytes;
    store_shared(begin, slot);
    count(kCtas);
  }
  __syncthreads();
  const uint32_t slot = load_shared(begin);
  __syncthreads();
  if (poisons()) {
    for (uint32_t at = 4 * thread_index(); at + 4 <= bytes; at += 4 * num_threads())
      store_shared(begin + at, kStartPoison);
    fence_poison();
    __syncthreads();
  }
  return slot;
}

// By every thread, after all else. The last one looks whether anything was left open.
__device__ __noinline__ void leave(uint32_t slot) {
  const Running it(slot);
  Cta& cta = it.cta;
  const uint32_t thread = thread_index();
  cta.wait_line[thread] = cta.dirty_line[thread] = 0, cta.spin_start[thread] = 0;
  __threadfence();
  if (atomicAdd(&cta.left, 1u) + 1 != num_threads()) return;
  __threadfence();
  for (uint32_t s = 0; s < kNumColumns / 32; ++s)
    if (reinterpret_cast<volatile uint32_t*>(cta.owner)[s] != 0) fail(it, kNotFreed, s * 32);
  if (*reinterpret_cast<volatile uint32_t*>(&cta.queued) != 0) fail(it, kNotCommitted, cta.ops[0].line);
  cta.left = cta.relinquished = cta.loading_warps = cta.storing_warps = 0;
  for (int i = 0; i < kNumColumns / 32; ++i) cta.written[i] = 0;
  for (auto& quarter : cta.unread)
    for (uint32_t& columns : quarter) columns = 0;
  for (int w = 0; w < kWarps; ++w) cta.loading[w] = cta.storing[w] = {0, 0};
  __threadfence();
  atomicExch(&cta.claimed, 0u);
}

}  // namespace standin
