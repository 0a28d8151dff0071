// SPDX-License-Identifier: Apache-2.0
// Checkpoint weights into the layout of Blackwell, once at load.
#include "../common/format.cuh"
#include "../prepare/checkpoint.cuh"
#include "params.h"

namespace nvfp4 {
namespace {

__device__ void copy_codes(uint8_t* to, const uint8_t* from) {
  if (reinterpret_cast<uintptr_t>(from) % 8 == 0) {
    *reinterpret_cast<uint64_t*>(to) = *reinterpret_cast<const uint64_t*>(from);
  } else {
    for (int i = 0; i < 8; ++i) to[i] = from[i];
  }
}

}  // namespace
}  // namespace nvfp4

// One thread a block of 16, padding included; grid (blocks of threads, L).
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS)
    prepare_swizzled(const __grid_constant__ PrepareSwizzledParams p) {
  using namespace nvfp4;
  const int64_t num_blocks = p.source.cols / kBlockSize, padded_blocks = (num_blocks + 3) / 4 * 4;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, expert = blockIdx.y;
  const int64_t row = i / padded_blocks, b = i % padded_blocks;
  if (row >= (p.source.rows + 127) / 128 * 128) return;
  uint32_t scale = 0;
  if (row < p.source.rows && b < num_blocks) {
    const int64_t from = (expert * p.source.rows + (row + p.first_row) % p.source.rows) * num_blocks + b;
    copy_codes(p.out_codes + expert * p.source.expert_stride + (row * num_blocks + b) * 8, p.source.codes + from * 8);
    scale = p.source.block_scale[from];
  }
  p.out_block_scale[expert * p.source.expert_stride + sf_offset_128x4(row, b, num_blocks)] =
      static_cast<uint8_t>(scale);
}
