// SPDX-License-Identifier: Apache-2.0
// Checkpoint weights into the register-dequant layout, once at load.
#include "../prepare/stage.cuh"
#include "layout.cuh"
#include "params.h"
#include "rounding.cuh"

namespace nvfp4 {
namespace {

// A block scale as tiles hold it, and the codes where rounding changes them. `row` is the checkpoint's.
__device__ uint8_t tile_scale(const PrepareParams& p, int expert, int row, uint32_t e4m3, uint2& codes) {
  if (!p.scales) return static_cast<uint8_t>(e5m3_scale(e4m3 & 0x7F));
  if (e4m3 == 0) return 0;  // of padding, too, which is no row of any projection
  const int projections = p.row_order == ROWS_PLAIN ? 1 : 2;
  const uint32_t largest = p.scales[projections * expert + projection_of_row(p.row_order, row, p.source.rows)].largest;
  if (!p.rounded) return static_cast<uint8_t>(fp8_scale(e4m3, largest));
  const int floor = rounded_floor(largest);
  if (e4m3_exponent(e4m3) >= floor) return static_cast<uint8_t>(rounded_scale(e4m3, floor));
  const uint32_t table = codes_at_floor(e4m3, floor);
  codes = make_uint2(look_up_codes(codes.x, table), look_up_codes(codes.y, table));
  return 0;
}

// The word of one step: see layout.cuh.
__device__ uint32_t fragment(uint2 low, uint2 high, int c) {
  const uint32_t pairs[4] = {low.x, high.x, low.y, high.y};
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) word |= scatter_pair(i, pairs[i] >> 8 * c & 15, pairs[i] >> (8 * c + 4) & 15);
  return word;
}

// Row g of the thread.
__device__ int tile_row() { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4; }

// Word j of a block in mode fp8.
__device__ uint32_t fp8_fragment(uint2 low, uint2 high, int j) {
  const int shift = 16 * (j % 2);
  return fp8_word((j < 2 ? low.x : low.y) >> shift & 0xFFFF, (j < 2 ? high.x : high.y) >> shift & 0xFFFF);
}

// The codes of one tile of those that are staged.
__device__ void store_codes(const Staged& staged, int slab, bool fp8, uint8_t* out) {
  const int t = threadIdx.x, row = tile_row();
  uint32_t words[kSlabSteps];
#pragma unroll
  for (int j = 0; j < kSlabSteps; ++j) {
    const int block = fp8 ? fp8_block(slab, t % 4) : slab * kSlabSteps + j;
    const uint2 low = staged.codes[row][block], high = staged.codes[row + 8][block];
    words[j] = fp8 ? fp8_fragment(low, high, j) : fragment(low, high, t % 4);
  }
  reinterpret_cast<uint4*>(out)[t] = make_uint4(words[0], words[1], words[2], words[3]);
}

// Its 256 scales, two a thread, of rows g and g + 8.
__device__ void store_scales(const Staged& staged, int slab, bool fp8, uint8_t* out) {
  const int t = threadIdx.x, row = tile_row(), block = fp8 ? fp8_block(slab, t % 4) : slab * kSlabSteps + t % 4;
  const uint32_t pair = staged.scales[row][block] | staged.scales[row + 8][block] << 8;
  const uint32_t next = __shfl_down_sync(~0u, pair, 1);
  if (fp8) {
    reinterpret_cast<uint16_t*>(out)[t] = static_cast<uint16_t>(pair);
  } else if (t % 2 == 0) {
    reinterpret_cast<uint32_t*>(out)[t / 2] = scale_word(pair | next << 16);
  }
}

// One tile of a slab.
__device__ void store_tile(const Staged& staged, int slab, bool fp8, uint8_t* tile) {
  store_codes(staged, slab, fp8, tile);
  store_scales(staged, slab, fp8, tile + kTileCodeBytes);
}

static_assert(kRun % kPairSlabs == 0, "a block of threads has both slabs of a pair");

// Those of two slabs, whose scales are equal in pairs.
__device__ void store_pair(const Staged& staged, int slab, uint8_t* tiles) {
  for (int i = 0; i < kPairSlabs; ++i) store_codes(staged, slab + i, true, tiles + i * kTileCodeBytes);
  const int row = tile_row(), block = fp8_block(slab, threadIdx.x % 4);
  uint8_t* const scales = tiles + kPairCodeBytes + threadIdx.x;
  scales[0] = staged.scales[row][block];
  scales[128] = staged.scales[row + 8][block];
}

}  // namespace
}  // namespace nvfp4

// Grid (runs of slabs, num_m_tiles, L).
extern "C" __global__ void __launch_bounds__(PREPARE_THREADS) prepare_tiles(const __grid_constant__ PrepareParams p) {
  using namespace nvfp4;
  __shared__ Staged staged;
  const int first = blockIdx.x * kRun, m = blockIdx.y, expert = blockIdx.z;
  const auto scale = [&](int row, uint32_t e4m3, uint2& codes) { return tile_scale(p, expert, row, e4m3, codes); };
  stage(p, expert, m, first * kSlabSteps, scale, staged);
  __syncthreads();
  const bool fp8 = p.scales != nullptr, paired = fp8 && !p.rounded;
  const int tile_bytes = paired ? kPairedTileBytes : kTileBytes;
  uint8_t* const tiles = p.tiles + expert * p.source.expert_stride + (int64_t{m} * p.num_slabs + first) * tile_bytes;
  for (int slab = 0; slab < min(kRun, p.num_slabs - first); slab += paired ? kPairSlabs : 1) {
    uint8_t* const own = tiles + slab * tile_bytes;
    paired ? store_pair(staged, slab, own) : store_tile(staged, slab, fp8, own);
  }
}
