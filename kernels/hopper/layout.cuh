// SPDX-License-Identifier: Apache-2.0
// Weights as Hopper's register dequantisation reads them.
//
// A tile is 64 weight rows x 64 columns (one slab), 2304 contiguous bytes: 128 threads x 16 bytes of codes, then 64 x 4
// block scales. A thread's 16 bytes are its wgmma A fragments of four k16 steps: word j is step j, and holds 8 values,
//
//   pair 0  row g      columns 2c, 2c+1          g = lane / 4, c = lane % 4; rows count from 16 * warp,
//   pair 1  row g + 8  columns 2c, 2c+1          columns from 64 * slab + 16 * j
//   pair 2  row g      columns 2c+8, 2c+9
//   pair 3  row g + 8  columns 2c+8, 2c+9
//
// the first of a pair in the low half of the word. Within a half, sign s and magnitude bits abc of pairs 0 to 3 lie at
//
//   bit  15 14 13 12 11 10  9  8  7  6  5  4  3  2  1  0
//        s0 a2 b2 c2 a1 b1 c1 a0 b0 c0 s2 c3 s3 s1 a3 b3
//
// so that a mask leaves pair 0 as bf16 of value * 2^-126 (bits 15, 8, 7, 6). A rotation of the word by 6 and the mask
// find pair 2, a shift of that by 3 to the left pair 1 (s1 and s2 lie in the other half). What the three leave over is
// brought together by a mask and a multiplication (gather_pair_3). Eight operations a word: five logical ones and the
// rotation share a pipe of half the rate; the shift to the left is a multiplication, on another. Found by a search of
// all rotations: no layout has a shift and a mask for each pair, as sign and magnitude do not tile 16 bits.
//
// A block scale is stored as e5m3 without a sign: exponent 21 + log2, so that `0x7000 | byte << 4` is bf16 of
// scale * 2^118, in both halves of a register at once. Every e4m3 scale fits, subnormals included; a block of scale 0
// has its codes set to 0 instead. The product misses 2^8, which the output factors hold. All 4,064 products are exact
// in bf16.
//
// Scales of a tile: 8 bytes for each (warp, g): steps 0 to 3, rows g and g + 8 of each; each word of four is rotated by
// 4 bits, so that a mask finds two of them.
//
// In mode fp8 tiles hold the same for e4m3 tensor cores (k32), in another order of columns, which rows of x and h
// follow (fp8_row_word). Slabs lie two by two, and thread (g, c) has 32 neighbours of their 128 columns: block 2c of 16
// columns in the first slab, 2c + 1 in the second. Word j is columns 4j .. 4j+3 of the block, of both rows. Nibble i of
// a half word selects a byte of a table (magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6 times the block scale); the signs are
// where a mask leaves them at the top of four bytes, of row g at once, of row g + 8 after a shift by 4:
//
//   bit  31 .. 28   27 .. 24   23 .. 20   19 .. 16   15 .. 12   11 .. 8    7 .. 4     3 .. 0
//        s3 m3'     s3' m2'    s2 m1'     s2' m0'    s1 m3      s1' m2     s0 m1      s0' m0       (' row g + 8)
//
// Scales that are powers of two are stored as 8 * (11 + log2 of scale over the matrix's largest), so that the largest
// is 2^6 and all products are normal e4m3 values: a table is two constants plus the scale in each byte but zero's. The
// output factors hold the matrix's largest over 2^6. (A matrix here is what has one output factor: gate, up or down of
// an expert.)
//
// Where they come in equal pairs, as in every cast of MXFP4, both blocks of a thread's row have one scale and one
// table. So two slabs of a tile are 4352 bytes, 2176 for each: codes of the first, codes of the second, then a byte a
// thread of row g, and one of row g + 8. A byte that is loaded by itself needs no operation to take it out of a word.
// Else a tile of a slab is as large as in mode bf16, with 2 bytes a thread, of rows g and g + 8.
//
// Weights that are rounded to e4m3 (fp8_max_error) have any block scales, (1 + m/8) * 2^e. Their products with 0.5, 1,
// 2 and 4 are exact, so that a stored scale is 8 * exponent + m, and the bytes of the table follow. Products with 1.5,
// 3 and 6 have more bits: rounded to nearest, ties to even, their bytes lie 5 above those of 1, 2 and 4 where m is 1 to
// 5, and 4 above elsewhere, as in the table of powers of two. Bit 7 of the stored scale says which. Blocks whose scale
// would have a negative exponent get exponent 0, and codes that are rounded to it.
//
// Where there is a gate, its rows and up's are interleaved by 8: rows 16w .. 16w+7 of tile m are gate of features 32m +
// 8w .., the next 8 are up of the same features. So the thread that accumulates a gate value accumulates its up value
// too.
#pragma once
#include <cstdint>

#include "../common/format.cuh"
#include "../common/gemm.cuh"
#include "params.h"

namespace nvfp4 {

constexpr uint32_t kPairBits = 0x81C081C0u;  // of pair 0

// Two e2m1 codes as the bits of a pair.
__host__ __device__ constexpr uint32_t scatter_pair(uint32_t pair, uint32_t low, uint32_t high) {
  const uint32_t signs = low >> 3 & 1 | (high >> 3 & 1) << 16, magnitudes = low & 7 | (high & 7) << 16;
  if (pair == 3) return signs << 3 | magnitudes >> 1 & 0x00030003u | (magnitudes & 0x00010001u) << 4;
  const uint32_t first = signs << 15 | magnitudes << 6;
  return first << 3 * pair | first >> 1 >> (31 - 3 * pair);
}
static_assert((scatter_pair(0, 15, 0) | scatter_pair(1, 15, 0) | scatter_pair(2, 15, 0) | scatter_pair(3, 15, 0)) ==
                  (~0u ^
                   (scatter_pair(0, 0, 15) | scatter_pair(1, 0, 15) | scatter_pair(2, 0, 15) | scatter_pair(3, 0, 15))),
              "the values share a word without a gap");

// Pair 3 of a word where kPairBits finds it: copies 2, 7 and 12 bits higher put c3, a3 and b3, and s3 in their places.
__host__ __device__ constexpr uint32_t gather_pair_3(uint32_t word) {
  return (word & 0x001B001Bu) * (1 << 2 | 1 << 7 | 1 << 12);
}

// Where kPairBits finds pairs 0 to 3 of a word.
struct PairWords {
  uint32_t pair[4];

  __host__ __device__ constexpr explicit PairWords(uint32_t word) : pair{word, 0, word >> 6 | word << 26, 0} {
    pair[1] = pair[2] << 3;
    pair[3] = gather_pair_3(word);
  }
};

constexpr bool pairs_are_found() {
  for (uint32_t pair = 0; pair < 4; ++pair) {
    const uint32_t own = scatter_pair(pair, 15, 15);
    for (uint32_t codes = 0; codes < 512; ++codes) {  // of a pair, beside others that are 0 or all ones
      const uint32_t low = codes & 15, high = codes >> 4 & 15;
      const uint32_t word = scatter_pair(pair, low, high) | (codes < 256 ? 0 : ~own);
      if ((PairWords(word).pair[pair] & kPairBits) != scatter_pair(0, low, high)) return false;
    }
  }
  return true;
}
static_assert(pairs_are_found(), "as pair 0");

// A finite, non-negative, non-zero e4m3 scale as e5m3 with exponent 21 + log2.
__host__ __device__ constexpr uint32_t e5m3_scale(uint32_t e4m3) {
  if (e4m3 >= 8) return e4m3 + (14 << 3);
  if (e4m3 >= 4) return 14 << 3 | (e4m3 & 3) << 1;
  if (e4m3 >= 2) return 13 << 3 | (e4m3 & 1) << 2;
  return 12 << 3;
}
static_assert(e5m3_scale(0x38) == 21 << 3, "1.0");
static_assert(e5m3_scale(1) == 12 << 3 && e5m3_scale(7) == (14 << 3 | 6), "2^-9, and 7 * 2^-9 = 2^-7 * 1.75");

// Four of these, the first in the low byte, as a tile holds them.
__host__ __device__ constexpr uint32_t scale_word(uint32_t bytes) { return bytes << 4 | bytes >> 28; }

// Mode fp8: the word of four codes (16 bits) of row g and of row g + 8.
__host__ __device__ constexpr uint32_t fp8_word(uint32_t low, uint32_t high) {
  uint32_t word = (low & 0x7777) | (high & 0x7777) << 16;
  for (int i = 0; i < 4; ++i)
    word |= (low >> (4 * i + 3) & 1) << (8 * i + 7) | (high >> (4 * i + 3) & 1) << (8 * i + 3);
  return word;
}
static_assert(fp8_word(0x8F21, 0) == 0x80800721 && fp8_word(0, 0x9ABC) == 0x1A3C0808, "signs at the tops of bytes");

constexpr int kPairSlabs = 2, kPairBlocks = kPairSlabs * kSlabSteps;  // of the columns that mode fp8 orders anew
// Where scales come in pairs: bytes of two slabs of a tile, and of one.
constexpr int kPairCodeBytes = kPairSlabs * kTileCodeBytes, kPairBytes = kPairCodeBytes + kTileRows * kPairBlocks / 2;
constexpr int kPairedTileBytes = kPairBytes / kPairSlabs;
static_assert(kPairedTileBytes == 2176 && kPairBytes % 128 == 0, "bulk copies, and reads of 16 bytes a thread");

// Mode fp8: the block that thread c has of a slab.
__host__ __device__ constexpr int fp8_block(int slab, int c) {
  return slab / kPairSlabs * kPairBlocks + c * kPairSlabs + slab % kPairSlabs;
}

// Mode fp8: where words of four columns lie in a row of e4m3, as a count of words: word `i` of block `block`. A tensor
// core's step of 32 columns takes words i = 2 step and 2 step + 1 of the blocks of four threads.
__host__ __device__ constexpr int fp8_row_word(int block, int i) {
  const int pair = block / kPairBlocks, c = block % kPairBlocks / kPairSlabs, slab = pair * kPairSlabs + block % 2;
  return slab * (kSlabCols / 4) + i * 4 + c;
}
static_assert(fp8_row_word(0, 1) == 4 && fp8_row_word(6, 0) == 3 && fp8_row_word(11, 2) == 32 + 16 + 8 + 1,
              "by columns");

constexpr int kFp8Span = 11;  // largest over smallest block scale of a matrix, as an exponent of two

// Mode fp8: what is stored of a block scale. `largest` is the matrix's, as e4m3.
__host__ __device__ constexpr uint32_t fp8_scale(uint32_t e4m3, uint32_t largest) {
  return e4m3 == 0 ? 0 : static_cast<uint32_t>(e4m3_exponent(e4m3) - e4m3_exponent(largest) + kFp8Span) << 3 & 0xFF;
}
// The table of a stored scale: e4m3 of 0, 0.5, 1, 1.5 and of 2, 3, 4, 6, times 2^(scale / 8 - 5). No byte carries.
__host__ __device__ constexpr uint32_t fp8_table_low(uint32_t scale) { return 0x14100800u + scale * 0x01010100u; }
__host__ __device__ constexpr uint32_t fp8_table_high(uint32_t scale) { return 0x24201C18u + scale * 0x01010101u; }

constexpr bool fp8_tables_are_exact() {
  constexpr uint32_t kHalves[8] = {0, 1, 2, 3, 4, 6, 8, 12};
  for (uint32_t e = 0; e <= kFp8Span; ++e) {
    if ((fp8_table_low(8 * e) & 0xFF) != 0) return false;
    for (uint32_t code = 1; code < 8; ++code) {
      const uint32_t byte = (code < 4 ? fp8_table_low(8 * e) : fp8_table_high(8 * e)) >> code % 4 * 8 & 0xFF;
      if ((8 + byte % 8) << byte / 8 != kHalves[code] << (e + 4)) return false;  // both times 2^10
    }
  }
  return true;
}
static_assert(fp8_tables_are_exact(), "every product of mode fp8");
static_assert(fp8_scale(0x38, 0x38) / 8 - 5 == FP8_LARGEST_EXPONENT, "what prepare_alphas is told");
static_assert(fp8_scale(0x38, 0x38) == 88 && fp8_scale(1, 0x10) == 88 - 32, "1 of 1; 2^-9 of 2^-5");

// Rounded weights: exponent of two of the smallest block scale that tiles hold, in a matrix with this largest one. 6
// times the largest is 448 at most where that has a mantissa of 0 or 1; else there is a binade less.
__host__ __device__ constexpr int rounded_floor(uint32_t largest) {
  return e4m3_exponent(largest) - kFp8Span + (e4m3_mantissa(largest) > 1);
}
constexpr uint32_t kRoundedUp = 0x80;  // of a stored scale: 1.5, 3 and 6 lie 5 above 1, 2 and 4
// What is added to a table of such a scale for each 1 of that bit: its bytes were added as if it was of the scale.
constexpr uint32_t kRoundedLow = 0x01000000u / kRoundedUp - 0x01010100u;
constexpr uint32_t kRoundedHigh = 0x01000100u / kRoundedUp - 0x01010101u;

// What is stored of a block scale whose exponent is the floor's at least, or 0.
__host__ __device__ constexpr uint32_t rounded_scale(uint32_t e4m3, int floor) {
  if (e4m3 == 0) return 0;
  const uint32_t m = e4m3_mantissa(e4m3);
  return static_cast<uint32_t>(e4m3_exponent(e4m3) - floor) << 3 | m | (m >= 1 && m <= 5 ? kRoundedUp : 0);
}

// An e2m1 magnitude in halves.
__host__ __device__ constexpr uint32_t halves_of_code(uint32_t code) { return 0xC8643210u >> 4 * code & 15; }

// The magnitude times such a block scale, rounded, as a count of sixteenths of the scale's power of two; exact it is
// halves_of_code(code) * (8 + m).
__host__ __device__ constexpr uint32_t rounded_product(uint32_t code, uint32_t m) {
  const uint32_t product = halves_of_code(code) * (8 + m);
  uint32_t step = 1;  // of e4m3: an eighth of the power of two below
  while (product >= 16 * step) step *= 2;
  return (product + step / 2 - (step > 1 && (product / step) % 2 == 0)) / step * step;
}
static_assert(rounded_product(7, 7) == 176 && rounded_product(3, 1) == 28, "11.25 to 11; 27 of 26 and 28 to the even");

constexpr bool rounded_tables_are_nearest() {
  for (uint32_t scale = 8; scale < 8 * (kFp8Span + 1) + 2; ++scale) {
    const uint32_t stored = rounded_scale(scale, -6), e = stored >> 3 & 15, bit = stored & kRoundedUp;
    for (uint32_t code = 1; code < 8; ++code) {
      const uint32_t low = fp8_table_low(stored) + bit * kRoundedLow,
                     high = fp8_table_high(stored) + bit * kRoundedHigh;
      const uint32_t byte = (code < 4 ? low : high) >> code % 4 * 8 & 0xFF;
      if ((low & 0xFF) != 0 || (8 + byte % 8) << byte / 8 != rounded_product(code, scale % 8) << (e + 1)) return false;
    }
  }
  return true;
}
static_assert(rounded_tables_are_nearest(), "every product with a block scale that is rounded");

}  // namespace nvfp4
