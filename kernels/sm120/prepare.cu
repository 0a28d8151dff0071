// SPDX-License-Identifier: Apache-2.0
// Checkpoint weights into tiles of fragments (layout.cuh), once at load.
#include "../common/format.cuh"
#include "../prepare/stage.cuh"
#include "layout.cuh"
#include "params.h"

namespace nvfp4::sm120 {
namespace {

// One tile of those that are staged.
__device__ void store_tile(const Staged& staged, int slab, uint8_t* tile) {
  const int t = threadIdx.x, first_row = t / 32 * 16, first_block = slab * kSlabSteps;
  uint32_t words[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const Place at = place_of_a(t % 32, r, 0);
    const uint2 block = staged.codes[first_row + at.row][first_block + at.column / kBlockSize];
    words[r] = at.column % kBlockSize == 0 ? block.x : block.y;
  }
  *reinterpret_cast<uint4*>(tile + code_offset(t, 0)) = make_uint4(words[0], words[1], words[2], words[3]);
  if (t < kTileRows) {
    *reinterpret_cast<uint32_t*>(tile + scale_offset(t)) =
        *reinterpret_cast<const uint32_t*>(&staged.scales[t][first_block]);
  }
}

}  // namespace
}  // namespace nvfp4::sm120

// Grid (runs of slabs, num_m_tiles, L).
extern "C" __global__ void __launch_bounds__(PREPARE_THREADS)
    prepare_tiles_sm120(const __grid_constant__ PrepareParams p) {
  using namespace nvfp4;
  __shared__ __align__(16) Staged staged;
  const int first = blockIdx.x * kRun, m = blockIdx.y, expert = blockIdx.z;
  const auto scale = [](int, uint32_t e4m3, uint2&) { return static_cast<uint8_t>(e4m3); };
  stage(p, expert, m, first * kSlabSteps, scale, staged);
  __syncthreads();
  uint8_t* const tiles = p.tiles + expert * p.source.expert_stride + (int64_t{m} * p.num_slabs + first) * kTileBytes;
  for (int slab = 0; slab < min(kRun, p.num_slabs - first); ++slab) {
    sm120::store_tile(staged, slab, tiles + slab * kTileBytes);
  }
}
