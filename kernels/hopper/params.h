// SPDX-License-Identifier: Apache-2.0
/* What Rust hands to Hopper's kernels, in the manner of ../params.h. */
#ifndef NVFP4_MOE_HOPPER_PARAMS_H
#define NVFP4_MOE_HOPPER_PARAMS_H

#include "../tile_params.h"

/* Row-tile sizes that the GEMMs are compiled for: of(rows) for each. rust/cuda/tiles.rs chooses. */
#define GEMM_SM90_ROW_TILES(of) of(8) of(16) of(24) of(32) of(48) of(64) of(80) of(96) of(112) of(128) of(144)

/* The same of e4m3 rows: one size more. */
#define GEMM_SM90_FP8_ROW_TILES(of) GEMM_SM90_ROW_TILES(of) of(208)

/* The same of weights that are rounded to e4m3: fewer, because every size is four kernels. */
#define GEMM_SM90_ROUNDED_ROW_TILES(of) of(8) of(16) of(24) of(48) of(64) of(80) of(112) of(144) of(208)

/* Launch shape of every GEMM of Hopper: one CTA a multiprocessor, all of its shared memory. Those whose warpgroups
 * have two weight tiles each, or more token rows than any other, have fewer threads, with more registers. */
#define GEMM_SM90_THREADS 640
#define GEMM_SM90_FEW_THREADS 384
#define GEMM_SM90_SHARED_BYTES 232448

/* The widest kernel multiplies as many token rows as a tile has, in steps, and no fewer than the last number. */
#define GEMM_SM90_WIDEST_ROWS 144
#define GEMM_SM90_COLUMN_STEP 16
#define GEMM_SM90_FEWEST_COLUMNS 32

/* A CTA multiplies one weight tile of 64 rows; of a linear from so many token rows on two; from so many on four, in a
 * linear later; and from so many, of e4m3 rows, two again, whose sums take all registers. Of four, two warpgroups take
 * two each; of bf16 up to so many rows, four one each. */
#define GEMM_SM90_TWO_TILES_ROWS 24
#define GEMM_SM90_FOUR_TILES_ROWS 16
#define GEMM_SM90_LINEAR_FOUR_TILES_ROWS 80
#define GEMM_SM90_FP8_WIDE_ROWS 208
#define GEMM_SM90_FOUR_GROUPS_ROWS 64

/* Mode fp8: exponent of two of a matrix's largest block scale as it is stored. */
#define FP8_LARGEST_EXPONENT 6

/* Rows of bf16 to e4m3, each with one scale (mode fp8). */
typedef struct QuantizeFp8Params {
  QuantizerInput input;
  uint8_t *out;           /* e4m3 [rows, num_cols padded to 128 with 0], in another order (layout.cuh); may be x, each row
                             in the place of its own start */
  int64_t out_row_stride; /* bytes */
  float *row_scale;       /* [rows] the scale that decodes */
  int32_t num_cols;       /* a multiple of 16 */
  int32_t reserved;
} QuantizeFp8Params;

/* Few tokens: calls of up to so many tokens and slots take one launch. */
#define FEW_TOKENS 8
#define FEW_SLOTS 64

/* few_sm90: a whole call. All its CTAs run at once, one a multiprocessor, as a cooperative launch has them. `tables` of
 * `route`, `list.groups` of both GEMMs, gemm1.row_to_slot and gemm2.out are NULL: CTAs keep these in shared memory. */
typedef struct FewParams {
  RouteParams route;
  GemmParams gemm1;
  GemmParams gemm2;
  CombineParams combine;
  uint32_t *arrivals; /* [1] of CTAs between the GEMMs: bit 31 changes when all have come, the others are 0 again then. One
                         a device: no two of these launches run at once */
  WaitBound wait;
} FewParams;

/* Counts what mode fp8 asks of the block scales of each matrix. */
typedef struct MatrixScalesParams {
  const uint8_t *block_scale; /* e4m3 [experts, matrices of an expert, scales_each] */
  MatrixScales *matrices;     /* [experts, matrices of an expert]; starts as {0, 0x7F, 0, NO_ROW} */
  int64_t scales_each;        /* a multiple of 16 */
  int64_t row_scales;         /* 0: a matrix's scales are one run. Else those of a row: rows of two matrices take turns */
  int64_t paired_row;         /* 0: scales need not be equal in pairs. Else those of a row, an even number */
} MatrixScalesParams;

/* Exponents of two of block scales: e4m3's, -9 to 8. */
#define ROUNDING_BINADES 18

/* What rounding to e4m3 does to a matrix: integers, so that no order of sums matters, in sixteenths of the power of two of
 * a weight's block scale. */
typedef struct RoundingSums {
  uint64_t squares[ROUNDING_BINADES]; /* of weights without global scale, by the exponent of their block scale */
  uint64_t errors[ROUNDING_BINADES];  /* squares of what rounding adds to them */
  uint64_t worst_block; /* f32 bits of the largest errors / squares of a block, without the last three, << 36 |
                           2^36 - 1 - its index in the matrix; 0 if no block has an error */
} RoundingSums;

/* Measures the rounding of every matrix of a layer's w13 or w2. */
typedef struct RoundingParams {
  const uint8_t *codes;         /* e2m1x2 [experts, matrices of an expert, matrix_blocks, 8] */
  const uint8_t *block_scale;   /* e4m3 [experts, matrices of an expert, matrix_blocks] */
  const MatrixScales *matrices; /* [experts, matrices of an expert] */
  RoundingSums *sums;           /* the same; starts as 0 */
  int64_t matrix_blocks;        /* of 16 weights */
  int64_t row_blocks; /* 0: a matrix's blocks are one run. Else those of a row: rows of two matrices take turns */
} RoundingParams;

#endif
