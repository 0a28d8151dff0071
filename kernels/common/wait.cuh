// SPDX-License-Identifier: Apache-2.0
// Waiting for an mbarrier, but not forever. A barrier that nobody completes is a mistake of ours, or of the chip. A
// kernel that hangs on it takes the process, and often the machine, with it. This one says where it stood, and traps.
//
// What comes in time pays a jump over the rest, 15 cycles where nothing else runs (H200, 2026-11-30): the first
// try_wait suspends the thread by itself, and the clock is looked at only after a try that failed.
#pragma once
#include <cstdint>

#include "../params.h"

namespace nvfp4 {

// Has the phase of this parity completed? Suspends the thread for a while, up to a limit of the chip's, if not.
// Source: PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier.try_wait". From sm_90 on.
__device__ inline bool try_wait(uint64_t& bar, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(&bar))), "r"(parity)
      : "memory");
  return done != 0;
}

// Nanoseconds of one clock for the whole GPU, which goes on while a thread is suspended. It steps by up to 1 us.
__device__ inline uint64_t global_nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// Leaves the record, and ends the kernel; every later call of the driver fails.
__device__ inline void give_up(const WaitBound& bound, uint32_t barrier, uint32_t parity, uint64_t waited) {
  asm volatile(
      "st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};\n"
      "fence.acq_rel.sys;\n"
      "trap;\n" ::"l"(__cvta_generic_to_global(bound.record)),
      "r"(bound.kernel), "r"(blockIdx.x), "r"(barrier | parity << 16), "r"(static_cast<uint32_t>(waited / 1000000))
      : "memory");
  __builtin_unreachable();
}
static_assert(sizeof(HangRecord) == 16, "one store");

// `barrier` is what the record calls it: a number of the kernel's own choice, below 65536.
__device__ inline void bounded_wait(uint64_t& bar, uint32_t parity, uint32_t barrier, const WaitBound& bound) {
  if (try_wait(bar, parity)) return;
  const uint64_t start = global_nanoseconds();
  while (!try_wait(bar, parity)) {
    const uint64_t waited = global_nanoseconds() - start;
    if (waited > bound.nanoseconds) give_up(bound, barrier, parity, waited);
  }
}

}  // namespace nvfp4
