// SPDX-License-Identifier: Apache-2.0
#include "instance.cuh"

using instance::Kernel;

extern "C" __global__ void __launch_bounds__(Kernel::MaxThreadsPerBlock, Kernel::MinBlocksPerMultiprocessor)
    cutlass_grouped(CUTLASS_GRID_CONSTANT typename Kernel::Params const params) {
  extern __shared__ char shared[];
  Kernel()(params, shared);
}
