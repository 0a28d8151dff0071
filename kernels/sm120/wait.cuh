// SPDX-License-Identifier: Apache-2.0
// A GEMM's waits: bounded, because nobody has seen these kernels on such a GPU yet.
#pragma once
#include "../common/wait.cuh"
#include "params.h"

namespace nvfp4::sm120 {

// What a record calls the barriers of a stage: full from 0 on, empty from here on.
constexpr uint32_t kEmptyBarriers = 256;

template <class Shared>
__device__ void wait_until_full(const GemmSm120Params& p, Shared& shared, uint32_t stage, uint32_t parity) {
  bounded_wait(shared.full[stage], parity, stage, p.wait);
}

template <class Shared>
__device__ void wait_until_empty(const GemmSm120Params& p, Shared& shared, uint32_t stage, uint32_t parity) {
  bounded_wait(shared.empty[stage], parity, kEmptyBarriers + stage, p.wait);
}

}  // namespace nvfp4::sm120
