// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "params.h"
#include "ptx.cuh"

namespace nvfp4::sm120 {

// What a record of a wait calls a stage's barriers.
constexpr uint32_t kFullBarrier = 0, kEmptyBarrier = 256;

__device__ inline void wait(const GemmSm120Params&, uint64_t& bar, uint32_t parity, uint32_t) {
  uint32_t done;
  do {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}\n"
        : "=r"(done)
        : "r"(ptx::shared_address(&bar)), "r"(parity)
        : "memory");
  } while (!done);
}

}  // namespace nvfp4::sm120
