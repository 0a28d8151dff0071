// SPDX-License-Identifier: Apache-2.0
/* What Rust hands to the portable kernels, which read Blackwell's layouts, in the manner of ../params.h. */
#ifndef NVFP4_MOE_PORTABLE_PARAMS_H
#define NVFP4_MOE_PORTABLE_PARAMS_H

#include "../params.h"

/* Launch shape of the GEMMs: a CTA's tile is so many rows by as many features. */
#define GEMM_PORTABLE_TILE 64
#define GEMM_PORTABLE_THREADS 128

/* out = rows x weights^T over grouped rows, by any GPU, in Blackwell's layouts. */
typedef struct PortableGemmParams {
  TileList list;
  const uint8_t *codes;         /* weights of expert 0: e2m1x2 [features, k / 2] */
  const uint8_t *block_scale;   /* of expert 0: e4m3, 128x4 swizzled */
  const float *alphas;          /* of expert 0: alphas[feature / alpha_features] */
  uint64_t expert_stride;       /* bytes between experts in all three, and in biases */
  const void *x;                /* bf16 rows, or e2m1x2 [rows, k / 2] */
  const uint8_t *x_block_scale; /* e4m3, 128x4 swizzled over all rows; NULL with bf16 rows */
  const float *x_global_scale;  /* f32 [rows]; NULL with bf16 rows */
  const int32_t *row_to_slot;   /* bf16: row r reads x row row_to_slot[r] / top_k. NULL: row r reads x row r */
  int64_t x_row_stride;         /* bf16: elements */
  float *sums;                  /* f32 [rows, out_row_stride]. Or NULL */
  void *out;                    /* bf16 [rows, out_row_stride], with bias. Or NULL */
  const void *bias;             /* of expert 0: bf16 [features]. Or NULL */
  int64_t out_row_stride;
  int32_t top_k;
  int32_t k;              /* a multiple of 16 */
  int32_t features;
  int32_t alpha_features; /* features that share an alpha */
} PortableGemmParams;

/* h = the activation of GEMM1's sums, rounded to bf16; kept as `h`, or quantised on into `out`. */
typedef struct ActivationParams {
  QuantizeParams out;   /* rows are grouped rows (row_to_slot); x is not read. packed NULL: h is written */
  const float *gate_up; /* [R, projections * num_cols]: gate, then up; or up alone */
  void *h;              /* bf16 [R, num_cols] or NULL */
  Activation activation;
  int32_t projections;
} ActivationParams;

/* One matrix of checkpoint weights into the layout of Blackwell: codes as they are, block scales 128x4 swizzled. */
typedef struct PrepareSwizzledParams {
  PrepareSource source;
  uint8_t *out_codes;       /* of expert 0: e2m1x2 [rows, cols / 2] */
  uint8_t *out_block_scale; /* of expert 0: padded to 128 rows and 4 columns with 0 */
  int32_t row_order;        /* ROWS_*; gate comes first here */
  int32_t reserved;
} PrepareSwizzledParams;

#endif
