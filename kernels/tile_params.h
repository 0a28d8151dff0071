// SPDX-License-Identifier: Apache-2.0
/* What Rust hands to the kernels of families whose weights are tiles of 64 x 64 (common/gemm.cuh), in the manner of
 * params.h. */
#ifndef NVFP4_MOE_TILE_PARAMS_H
#define NVFP4_MOE_TILE_PARAMS_H

#include "params.h"

/* out = rows x weights^T over grouped rows, in the form of each GEMM's epilogue. */
typedef struct GemmParams {
  TileList list;
  const uint8_t *tiles;       /* weights of expert 0, the family's layout */
  uint64_t expert_stride;     /* bytes */
  const float *alphas;        /* of expert 0: gemm1 {gate, up}; gemm2 {down}, or {up} without a gate; linear [features] */
  const void *x;              /* bf16 rows; or e4m3 or e2m1x2, 16-byte aligned */
  int64_t x_row_stride;       /* in elements */
  const float *row_scale;     /* f32 by the index that x is read with, or NULL = 1 */
  const int32_t *row_to_slot; /* [R]: row r reads x row row_to_slot[r] / top_k. NULL: row r reads x row r */
  void *out;                  /* bf16. gemm1: h [R, features]; gemm2: y, or h without a gate; linear: [T, features] */
  const void *bias;           /* of expert 0: bf16 [features]; gemm1: of gate, then of up. Or NULL */
  int64_t out_row_stride;
  int32_t top_k;
  int32_t k_valid;     /* columns of x, a multiple of 16; the rest up to 64 * num_slabs is 0 */
  int32_t num_slabs;
  int32_t features;    /* gemm1: intermediate_size; gemm2: hidden_size, or intermediate_size; linear: out_features */
  Activation activation; /* gemm1: one with a gate; gemm2: one without, or ACTIVATION_NONE */
  int32_t tiles_known; /* 1: routing has finished when this kernel starts, so that it may load its first weights before
                          the previous kernel has ended */
} GemmParams;

/* prepare_tiles: slabs that a block of threads repacks. */
#define PREPARE_RUN_SLABS 4
#define PREPARE_THREADS 128

/* One matrix of checkpoint weights into the family's tiles (layout.cuh). */
typedef struct PrepareParams {
  PrepareSource source;
  uint8_t *tiles;             /* of expert 0; tile (m, slab) at (m * num_slabs + slab) * 2304, or 2176 of scales in pairs */
  const MatrixScales *scales; /* mode fp8: [L, projections], in the checkpoint's order. NULL: for bf16 */
  int32_t num_slabs;
  int32_t row_order; /* ROWS_*; gate and up become interleaved by 8 */
  int32_t rounded;   /* mode fp8: 1: for any scales, where products are rounded to e4m3; 0: for powers of two in pairs */
  int32_t reserved;
} PrepareParams;

#endif
