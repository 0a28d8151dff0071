// SPDX-License-Identifier: Apache-2.0
/* What Rust hands to the kernels of compute capability 12.x, in the manner of ../params.h. */
#ifndef NVFP4_MOE_SM120_PARAMS_H
#define NVFP4_MOE_SM120_PARAMS_H

#include "../tile_params.h"

/* Row-tile sizes that the GEMMs are compiled for: of(rows) for each. rust/cuda/sm120/tiles.rs chooses. */
#define GEMM_SM120_ROW_TILES(of) of(8) of(16) of(32) of(64) of(128)

/* Launch shape of every GEMM: one CTA a multiprocessor, all the shared memory that a CTA may have; from so many rows on
 * twice the warps compute. */
#define GEMM_SM120_SHARED_BYTES 101376
#define GEMM_SM120_THREADS 256
#define GEMM_SM120_WIDE_THREADS 384
#define GEMM_SM120_WIDE_ROWS 64

/* A GEMM of 64 x 64 tiles. Rows of mode nvfp4 (gemm.x) are e2m1x2, codes of a row in order. */
typedef struct GemmSm120Params {
  GemmParams gemm;
  const uint8_t* x_block_scale; /* e4m3, 128x4 swizzled by the index that x is read with. NULL with bf16 rows */
  QuantizeParams h;             /* gemm1 of mode nvfp4, with a gate: h goes there, quantised by `static_scale`; only
                                   status, row_to_token_slot, source.top_k and the outputs are read, and gemm.out is
                                   not written. `packed` NULL: h is written as bf16 */
  WaitBound wait;
} GemmSm120Params;

#endif
