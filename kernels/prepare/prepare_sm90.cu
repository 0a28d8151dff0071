// Checkpoint weights into the register-dequant layout, once at load. The checkpoint's block scales are checked on the
// way.
#include "../gemm_sm90/layout.cuh"
#include "checks.cuh"

namespace nvfp4 {
namespace {

// The checkpoint's scale of (row, block of 16), 0 in the padding.
__device__ uint32_t block_scale(const PrepareParams& p, const uint8_t* scales, int row, int block) {
  return row >= 0 && block < p.cols / 16 ? scales[int64_t{row} * (p.cols / 16) + block] : 0;
}

// The word of step j: see layout.cuh. Blocks of scale 0 and padding become 0.
__device__ uint32_t fragment(const PrepareParams& p, const uint8_t* codes, const uint8_t* scales, int row_lo,
                             int row_hi, int block, int c) {
  uint32_t word = 0;
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const int row = pair % 2 ? row_hi : row_lo;
    if (block_scale(p, scales, row, block) == 0) continue;
    const uint32_t two = codes[int64_t{row} * (p.cols / 2) + block * 8 + pair / 2 * 4 + c];
    word |= scatter_code(pair, two & 15) | scatter_code(pair, two >> 4) << 16;
  }
  return word;
}

}  // namespace
}  // namespace nvfp4

// One block of 128 threads a tile: grid (num_slabs, num_m_tiles, L).
extern "C" __global__ void __launch_bounds__(128) prepare_tiles(const __grid_constant__ PrepareParams p) {
  using namespace nvfp4;
  const int slab = blockIdx.x, m = blockIdx.y, expert = blockIdx.z, t = threadIdx.x;
  const uint8_t* codes = p.codes + int64_t{expert} * p.rows * (p.cols / 2);
  const uint8_t* scales = p.block_scale + int64_t{expert} * p.rows * (p.cols / 16);
  uint8_t* tile = p.tiles + expert * p.expert_stride + (int64_t{m} * p.num_slabs + slab) * kTileBytes;

  const int row = t / 32 * 16 + t % 32 / 4;
  const int row_lo = checkpoint_row(m, row, p.rows, p.gated, p.up_first);
  const int row_hi = checkpoint_row(m, row + 8, p.rows, p.gated, p.up_first);
  uint32_t words[kSlabSteps];
#pragma unroll
  for (int j = 0; j < kSlabSteps; ++j) {
    words[j] = fragment(p, codes, scales, row_lo, row_hi, slab * kSlabSteps + j, t % 4);
  }
  reinterpret_cast<uint4*>(tile)[t] = make_uint4(words[0], words[1], words[2], words[3]);

  // 256 scales, two a thread: byte (warp * 8 + g) * 8 + j * 2 + half.
  uint32_t pair = 0;
  for (int i = 0; i < 2; ++i) {
    const int at = 2 * t + i, group = at / 8, j = at % 8 / 2, half = at % 2;
    const int tile_row = group / 8 * 16 + group % 8 + half * 8;
    const uint32_t scale =
        block_scale(p, scales, checkpoint_row(m, tile_row, p.rows, p.gated, p.up_first), slab * kSlabSteps + j);
    check_block_scale(scale, p.bad_scales);
    pair |= e5m3_scale(scale & 0x7F) << (8 * i);
  }
  reinterpret_cast<uint16_t*>(tile + kTileCodeBytes)[t] = static_cast<uint16_t>(pair);
}
