// SPDX-License-Identifier: Apache-2.0
/* What Rust hands to Hopper's kernels, in the manner of ../params.h. */
#ifndef NVFP4_MOE_HOPPER_PARAMS_H
#define NVFP4_MOE_HOPPER_PARAMS_H

#include "../params.h"

/* Row-tile sizes that the GEMMs are compiled for: of(rows) for each. rust/cuda/tiles.rs chooses. */
#define GEMM_SM90_ROW_TILES(of) of(8) of(16) of(24) of(32) of(48) of(64) of(80) of(96) of(112) of(128) of(144)

/* Launch shape of every GEMM of Hopper: one CTA a multiprocessor, all of its shared memory. Those whose CTA has four
 * weight tiles have fewer threads, with more registers. */
#define GEMM_SM90_THREADS 640
#define GEMM_SM90_FOUR_TILES_THREADS 384
#define GEMM_SM90_SHARED_BYTES 232448

/* The widest kernel multiplies as many token rows as a tile has, in steps: fine down to where most tiles are, then
 * coarse, and no fewer than the last. */
#define GEMM_SM90_WIDEST_ROWS 144
#define GEMM_SM90_COLUMN_STEP 16
#define GEMM_SM90_COARSE_COLUMNS 112
#define GEMM_SM90_COARSE_STEP 32
#define GEMM_SM90_FEWEST_COLUMNS 48

/* A CTA multiplies one weight tile of 64 rows; from so many token rows on two; from so many on four, in a linear later. */
#define GEMM_SM90_TWO_TILES_ROWS 24
#define GEMM_SM90_FOUR_TILES_ROWS 48
#define GEMM_SM90_LINEAR_FOUR_TILES_ROWS 80

/* out = rows x weights^T over grouped rows, in the form of each GEMM's epilogue. */
typedef struct GemmParams {
  TileList list;
  const uint8_t *tiles;       /* weights of expert 0, register-dequant layout */
  uint64_t expert_stride;     /* bytes */
  const float *alphas;        /* of expert 0: gemm1 {gate, up}, gemm2 {down}; linear [features] */
  const void *x;              /* bf16 rows; *_fp8: e4m3, 16-byte aligned */
  int64_t x_row_stride;       /* of bf16 or e4m3 rows, in elements */
  const float *row_scale;     /* f32 by the index that x is read with, or NULL = 1 */
  const int32_t *row_to_slot; /* [R]: row r reads x row row_to_slot[r] / top_k. NULL: row r reads x row r */
  void *out;                  /* bf16. gemm1: h [R, features]; gemm2: y, the same; linear: [T, features] */
  const void *bias;           /* linear: bf16 [features] or NULL */
  int64_t out_row_stride;
  int32_t top_k;
  int32_t k_valid;     /* columns of x, a multiple of 16; the rest up to 64 * num_slabs is 0 */
  int32_t num_slabs;
  int32_t features;    /* gemm1: intermediate_size; gemm2: hidden_size; linear: out_features */
  Activation activation;
  int32_t tiles_known; /* 1: routing has finished when this kernel starts, so that it may load its first weights before
                          the previous kernel has ended */
} GemmParams;

/* Mode fp8: exponent of two of a matrix's largest block scale as it is stored. */
#define FP8_LARGEST_EXPONENT 6

/* Rows of bf16 to e4m3, each with one scale (mode fp8). */
typedef struct QuantizeFp8Params {
  QuantizerInput input;
  uint8_t *out;           /* e4m3 [rows, num_cols padded to 64 with 0], slabs transposed (layout.cuh); may be x, each row
                             in the place of its own start */
  int64_t out_row_stride; /* bytes */
  float *row_scale;       /* [rows] the scale that decodes */
  int32_t num_cols;       /* a multiple of 16 */
  int32_t reserved;
} QuantizeFp8Params;

/* Counts what mode fp8 asks of the block scales of each matrix. */
typedef struct MatrixScalesParams {
  const uint8_t *block_scale; /* e4m3 [experts, matrices of an expert, scales_each] */
  MatrixScales *matrices;     /* [experts, matrices of an expert]; starts as {0, 0x7F, 0} */
  int64_t scales_each;        /* a multiple of 16 */
} MatrixScalesParams;

/* prepare_tiles: slabs that a block of threads repacks. */
#define PREPARE_RUN_SLABS 4
#define PREPARE_THREADS 128

/* One matrix of checkpoint weights into the register-dequant layout (layout.cuh). */
typedef struct PrepareParams {
  PrepareSource source;
  uint8_t *tiles;             /* of expert 0; tile (m, slab) at (m * num_slabs + slab) * 2304 */
  const MatrixScales *scales; /* mode fp8: [L, 1 + gated], in the checkpoint's order. NULL: for bf16 */
  int32_t num_slabs;
  int32_t gated;    /* rows are gate and up halves, to be interleaved by 8 */
  int32_t up_first; /* the first half is up */
  int32_t reserved;
} PrepareParams;

#endif
