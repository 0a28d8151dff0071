// SPDX-License-Identifier: Apache-2.0
//! The table of kernels of compute capability 10.x.

use crate::cuda::kernels::Start::AfterPrevious;
use crate::cuda::kernels::{kernel_table, params};

const SHARED: u32 = params::GEMM_SM100_SHARED_BYTES;
const THREADS: u32 = params::GEMM_SM100_THREADS;
const BF16_THREADS: u32 = params::GEMM_SM100_BF16_THREADS;

kernel_table! {
    /// Every kernel of compute capability 10.x. GEMMs with a gate are `GEMM1`; what they leave is e2m1 or bf16 in lines, or
    /// rows of bf16.
    KERNELS = 3;
    GEMM1_NVFP4 = "gemm1_nvfp4_sm100" of "sm100/gemm", threads: THREADS, shared_bytes: SHARED;
    GEMM1_NVFP4_ROWS = "gemm1_nvfp4_rows_sm100" of "sm100/gemm", threads: THREADS, shared_bytes: SHARED;
    GEMM_NVFP4 = "gemm_nvfp4_sm100" of "sm100/gemm", threads: THREADS, shared_bytes: SHARED;
    GEMM_NVFP4_ROWS = "gemm_nvfp4_rows_sm100" of "sm100/gemm", threads: THREADS, shared_bytes: SHARED;
    GEMM1_BF16 = "gemm1_bf16_sm100" of "sm100/gemm", threads: BF16_THREADS, shared_bytes: SHARED;
    GEMM_BF16 = "gemm_bf16_sm100" of "sm100/gemm", threads: BF16_THREADS, shared_bytes: SHARED;
    GEMM_BF16_ROWS = "gemm_bf16_rows_sm100" of "sm100/gemm", threads: BF16_THREADS, shared_bytes: SHARED;
    ARRANGE_ROWS = "arrange_sm100" of "sm100/rows";
    PREPARE_TILES = "prepare_sm100" of "sm100/prepare", start: AfterPrevious;
}
