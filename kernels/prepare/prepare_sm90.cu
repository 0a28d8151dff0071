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

// The 16 codes of a block, 8 in each word; 0 where its scale is 0, and in the padding. Read whatever the scale: loads
// in flight together cost one latency.
__device__ uint2 block_codes(const PrepareParams& p, const uint8_t* codes, const uint8_t* scales, int row, int block) {
  if (row < 0 || block >= p.cols / 16) return make_uint2(0, 0);
  const uint8_t* const at = codes + int64_t{row} * (p.cols / 2) + block * 8;
  uint2 both = {};
  if (reinterpret_cast<uintptr_t>(codes) % 8 == 0) {  // as rows are
    both = *reinterpret_cast<const uint2*>(at);
  } else {
    for (int i = 0; i < 4; ++i) {
      both.x |= uint32_t{at[i]} << 8 * i;
      both.y |= uint32_t{at[i + 4]} << 8 * i;
    }
  }
  return block_scale(p, scales, row, block) == 0 ? make_uint2(0, 0) : both;
}

// Two codes, one for each half word, as the pair that layout.cuh says.
template <int kPair>
__device__ uint32_t scatter_two(uint32_t two) {
  return scatter_code(kPair, two & 15) | scatter_code(kPair, two >> 4 & 15) << 16;
}

// The word of one step: see layout.cuh.
__device__ uint32_t fragment(uint2 low, uint2 high, int c) {
  return scatter_two<0>(low.x >> 8 * c) | scatter_two<1>(high.x >> 8 * c) | scatter_two<2>(low.y >> 8 * c) |
         scatter_two<3>(high.y >> 8 * c);
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
  uint2 low[kSlabSteps], high[kSlabSteps];
#pragma unroll
  for (int j = 0; j < kSlabSteps; ++j) {
    low[j] = block_codes(p, codes, scales, row_lo, slab * kSlabSteps + j);
    high[j] = block_codes(p, codes, scales, row_hi, slab * kSlabSteps + j);
  }
  uint32_t words[kSlabSteps];
#pragma unroll
  for (int j = 0; j < kSlabSteps; ++j) words[j] = fragment(low[j], high[j], t % 4);
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
