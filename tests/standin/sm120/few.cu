// SPDX-License-Identifier: Apache-2.0
// The GEMMs of kernels/sm120/ with two row-tile sizes, one of each form: what check.py runs, quick to compile.
#include "../../../kernels/sm120/params.h"
#undef GEMM_SM120_ROW_TILES
#define GEMM_SM120_ROW_TILES(of) of(16) of(64)
#include "../../../kernels/sm120/gemm.cu"
