// SPDX-License-Identifier: Apache-2.0
// Weights as the block-scaled tensor core of compute capability 12.x reads them, and how its operands lie in registers.
//
//   mma.sync.m16n8k64 kind::mxf4nvf4, scale_vec::4X      D[16 x 8] += (A[16 x 64] * SFA[16 x 4]) (B[64 x 8] * SFB[4 x
//   8])
//
// lane = 4 g + c; nibble i counts from the low one.
//   A   register r, nibble i   row g + 8 (r % 2)     k = 32 (r / 2) + 8 c + i            r = 0..3
//   B   register r, nibble i   k = 32 r + 8 c + i    column g                            r = 0..1
//   D   register r             row g + 8 (r / 2)     column 2 c + r % 2                  r = 0..3
//   SFA byte b                 row g + 8 (c % 2)     k block b = k / 16                  read in lanes c / 2 ==
//   thread_id_a SFB byte b                 k block b             column g                            read in lanes c ==
//   thread_id_b
//
// So a register of scales serves two times 16 weight rows, or four times 8 token rows. Source: PTX ISA, "Matrix
// multiply-accumulate operation using mma instruction with block scaling" (fragments, selectors).
//
// A tile is 64 weight rows x 64 columns, 2304 contiguous bytes: 128 threads x 16 bytes, a thread's four A registers of
// 16 rows (row g + 16 * warp and on); then four block scales of each row. Codes and scales are the checkpoint's.
//
// Mode bf16 reads the same tiles: mma.sync.m16n8k16 takes of A rows g and g + 8, columns 2c, 2c+1 and 2c+8, 2c+9, and
// of B the same columns of token row g. Which columns those are is free, if A and B agree: here they are columns 32h +
// 8c .. 32h + 8c + 7 of the slab, four a step, which are one A register, and 16 bytes of a token row. All eight have
// one block scale. A block scale becomes bf16 of scale * 2^118 by two exact products, a code is bf16 of value * 2^-126
// by its bits, their product is exact and misses 2^8, which multiplies the sums.
#pragma once
#include <cstdint>

#include "../common/gemm.cuh"

namespace nvfp4::sm120 {

struct Place {
  int row, column;
};

// Weight row and column of nibble i of register r of A.
__host__ __device__ constexpr Place place_of_a(int lane, int r, int i) {
  return {lane / 4 + 8 * (r % 2), 32 * (r / 2) + 8 * (lane % 4) + i};
}
// Token row and column of nibble i of register r of B.
__host__ __device__ constexpr Place place_of_b(int lane, int r, int i) {
  return {lane / 4, 32 * r + 8 * (lane % 4) + i};
}
// Weight row of the tile whose block scales a lane holds, and of which of a warp's two tiles.
__host__ __device__ constexpr int scale_row_of_a(int lane) { return lane / 4 + 8 * (lane % 2); }
__host__ __device__ constexpr int scale_tile_of_a(int lane) { return lane % 4 / 2; }
static_assert(place_of_a(5, 3, 2).row == 9 && place_of_a(5, 3, 2).column == 42, "lane 5 is g 1, c 1");
static_assert(scale_row_of_a(7) == 9 && scale_tile_of_a(7) == 1, "c 3: the second tile's row g + 8");

// Where word r of lane t (of 128) lies in a tile, and the scales of a row.
__host__ __device__ constexpr int code_offset(int t, int r) { return t * 16 + r * 4; }
__host__ __device__ constexpr int scale_offset(int row) { return kTileCodeBytes + row * 4; }
static_assert(code_offset(127, 3) + 4 == kTileCodeBytes && scale_offset(63) + 4 == kTileBytes, "a tile is full");

// Columns 2i and 2i + 1 of a word of eight codes as two bf16, the first in the low half, times 2^-126: sign and
// magnitude moved to the places of a bf16's sign, low exponent bits and first mantissa bit, subnormals included.
__host__ __device__ constexpr uint32_t bf16_pair(uint32_t word, int i) {
  const uint32_t low = word >> 8 * i, high = word >> (8 * i + 4);
  return (low & 8) << 12 | (low & 7) << 6 | (high & 8) << 28 | (high & 7) << 22;
}
static_assert(bf16_pair(0x000000F1, 0) == 0x81C00040, "0.5 and -6, times 2^-126");
static_assert(bf16_pair(0x42000000, 3) == 0x01000080, "1 and 2");

// A block scale in both halves, as bf16 of scale * 2^-120.
__host__ __device__ constexpr uint32_t small_scale_pair(uint32_t e4m3) { return e4m3 << 4 | e4m3 << 20; }
constexpr uint32_t kTwoTo119 = 0x7B007B00u;  // twice in bf16; of it twice makes 2^118 of 2^-120
constexpr float kMissingFactor = 256.0f;     // what products of mode bf16 lack

// Where 16-byte chunk `chunk` of a token row lies in its line. Lines of rows follow each other, kLineBytes each, and
// eight rows (mode nvfp4: one chunk of each) or two rows (mode bf16: four chunks of each) are read at once from all
// banks.
template <bool kIsNvfp4, int kLineBytes>
__host__ __device__ constexpr int chunk_offset(int row, int chunk) {
  constexpr int kChunks = kLineBytes / 16;
  const int turn = kIsNvfp4 ? row / (128 / kLineBytes) % kChunks : row % 2 * 4;
  return row * kLineBytes + (chunk ^ turn) * 16;
}

}  // namespace nvfp4::sm120
