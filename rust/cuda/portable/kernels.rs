// SPDX-License-Identifier: Apache-2.0
//! The table of portable kernels.

use crate::cuda::kernels::Start::AfterPrevious;
use crate::cuda::kernels::{kernel_table, params};

kernel_table! {
    /// Every portable kernel.
    KERNELS = 2;
    GEMM_BF16 = "gemm_portable_bf16" of "portable/gemm", threads: GEMM_THREADS;
    GEMM_NVFP4 = "gemm_portable_nvfp4" of "portable/gemm", threads: GEMM_THREADS;
    SWIGLU_ROWS = "swiglu_rows" of "portable/activation";
    PREPARE_SWIZZLED = "prepare_swizzled" of "portable/prepare", start: AfterPrevious;
}

/// Threads of a GEMM's block.
pub const GEMM_THREADS: u32 = params::GEMM_PORTABLE_THREADS;
/// Rows, and features, of a GEMM's tile.
pub const TILE: usize = params::GEMM_PORTABLE_TILE as usize;
