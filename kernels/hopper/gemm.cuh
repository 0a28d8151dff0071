// SPDX-License-Identifier: Apache-2.0
// The grouped GEMM of Hopper: out = rows x weights^T with 4-bit weights as the register operand of wgmma (swapAB), so
// that a few tokens fill the narrow side of the tensor core's tile and weights are read from HBM once.
//
//   kM x kK consumer warpgroups  multiply()  dequantise in registers, wgmma, sum along K, store()
//   1 producer warpgroup          load()      weight tiles by bulk copy, token rows by gather, kStages ahead
#pragma once
#include "../common/epilogue.cuh"
#include "mma.cuh"
#include "params.h"

namespace nvfp4 {

template <class C>
__device__ void init_barriers(SharedStorage<C>& shared) {
  for (int s = 0; s < C::kStages; ++s) {
    ptx::mbarrier_init(shared.full[s], C::kProducers);
    ptx::mbarrier_init(shared.empty[s], C::kConsumers / 32 * kReleasingLanes);
  }
  ptx::fence_mbarrier_init();
}

template <class C, Epilogue kEpilogue>
__device__ void gemm(const GemmParams& p) {
  static_assert(kFitsLaunch<C>, "every instance has the launch shape of params.h");
  extern __shared__ __align__(1024) uint8_t bytes[];
  auto& shared = *reinterpret_cast<SharedStorage<C>*>(bytes);
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();
  if (!p.tiles_known) follow_previous();
  if (threadIdx.x < C::kConsumers) {
    ptx::raise_registers<C::kConsumerRegisters>();
    multiply<C, Output<C, kEpilogue, SharedStorage<C>>>(p, shared);
  } else {
    ptx::lower_registers<C::kProducerRegisters>();
    load<C>(p, shared);
  }
}

}  // namespace nvfp4
