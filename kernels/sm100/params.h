// SPDX-License-Identifier: Apache-2.0
/* What Rust hands to the kernels of compute capability 10.x, in the manner of ../params.h. */
#ifndef NVFP4_MOE_SM100_PARAMS_H
#define NVFP4_MOE_SM100_PARAMS_H

#include "../params.h"

/* Launch shape of every GEMM: one CTA a multiprocessor, all of its shared memory. Mode bf16 has eight more warps, which
 * dequantise. */
#define GEMM_SM100_THREADS 192
#define GEMM_SM100_BF16_THREADS 448
#define GEMM_SM100_SHARED_BYTES 232448

/* Token rows of a tile, at most: routing counts tiles by one of these. A tile multiplies as many rows as it has, in
 * eights (mode bf16: sixteens). Multiples of 64, at which tiles start in the rows of an expert. */
#define GEMM_SM100_ROW_TILES(of) of(64) of(128) of(256)

/* A weight tile: 128 rows x 256 columns, codes and block scales (layout.cuh). */
#define SM100_TILE_ROWS 128
#define SM100_TILE_COLS 256
#define SM100_TILE_BYTES 18432

/* How a record of a wait in vain names the barrier: one of these, plus its place in the ring. */
#define SM100_BARRIER_FULL 0         /* the producer's copies, a stage */
#define SM100_BARRIER_EMPTY 16       /* a stage has been read */
#define SM100_BARRIER_SUMS_FULL 32   /* a tile's products, a set of sums */
#define SM100_BARRIER_SUMS_EMPTY 48  /* they have been read */
#define SM100_BARRIER_PIECE_FULL 64  /* mode bf16: dequantised weights, a piece */
#define SM100_BARRIER_PIECE_EMPTY 80 /* they have been multiplied */

/* Rows of an expert start at a multiple of this. */
#define SM100_ROW_ALIGNMENT 8

/* out = rows x weights^T over grouped rows. */
typedef struct GemmSm100Params {
  TileList list;          /* m_tiles: of 128 weight rows; with a gate: of 128 features, which are two of those */
  const uint8_t *tiles;   /* weights of expert 0: tile (m, slab) at (m * slabs + slab) * 18432; with a gate two there */
  uint64_t expert_stride; /* bytes, of tiles, alphas and bias */
  const float *alphas;    /* of expert 0: {gate, up}, or one; with alpha_by_row [features] */
  const void *bias;       /* of expert 0: bf16 [features], with a gate of gate, then of up. Or NULL */
  const void *rows;       /* arranged: e2m1 or bf16 lines of num_rows rows */
  const uint8_t *block_scale; /* e2m1: e4m3, arranged, for all four quarters. Or NULL */
  const float *row_scale;     /* f32 [num_rows] global scales; NULL: 1 */
  int64_t row_scale_stride;   /* 1; 0: one for all */
  int64_t num_rows;           /* of `rows` and of arranged outputs: from one line to the next of the same row */
  void *out;                  /* bf16 [rows, out_row_stride]; arranged: e2m1 or bf16 lines */
  uint8_t *out_block_scale;   /* of e2m1, for the quarter that each row has in its tile */
  const float *out_scale;     /* [1] e2m1: the static global scale to quantise with; the previous kernel may have written it */
  DeviceStatus *status;       /* e2m1 */
  const int32_t *row_to_slot; /* e2m1: [R] names tokens in the status */
  int64_t out_row_stride;
  int32_t top_k;
  int32_t k; /* a multiple of 16 */
  int32_t features;
  int32_t alpha_by_row;
  int32_t pad_rows;      /* 1: rows up to the next multiple of SM100_ROW_ALIGNMENT become 0 */
  Activation activation; /* with a gate one that has it; else one without, or ACTIVATION_NONE */
  int32_t reserved;
  WaitBound bound;
} GemmSm100Params;

/* Rows of bf16 into lines (mode bf16). */
typedef struct ArrangeSm100Params {
  RowSource source;
  const void *x;        /* bf16 [rows, num_cols] */
  int64_t x_row_stride; /* elements */
  void *out;            /* arranged */
  int64_t num_rows;     /* from one line to the next of the same row */
  int32_t num_cols;     /* a multiple of 16 */
  int32_t reserved;
} ArrangeSm100Params;

/* One matrix of checkpoint weights into tiles; padding becomes 0. */
typedef struct PrepareSm100Params {
  PrepareSource source;
  uint8_t *tiles; /* of expert 0 */
  int32_t num_slabs;
  int32_t row_order; /* ROWS_*; with a gate, tiles of gate and up take turns */
} PrepareSm100Params;

#endif
