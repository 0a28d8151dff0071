// SPDX-License-Identifier: Apache-2.0
//! The table of kernels of compute capability 12.x.

use crate::config::Mode;
use crate::cuda::kernels::Start::AfterPrevious;
use crate::cuda::kernels::{Kernel, ROW_WISE, Row, params};

/// What becomes of the result of a GEMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GemmKind {
    /// Any activation of gate and up, with biases: h.
    Gemm1,
    /// bf16 for combine, with biases; or h, of experts without a gate.
    Gemm2,
    /// bf16 with bias.
    Linear,
}

/// Its place among the tables of `families.rs`.
const TABLE: usize = 4;

/// A GEMM takes all the shared memory that a block may have. Its threads follow its row-tile size.
const GEMM: Row = Row { module: "sm120/gemm", threads: 0, shared_bytes: params::GEMM_SM120_SHARED_BYTES, ..ROW_WISE };

/// Rows of the table, and the row-tile sizes, for the sizes that `kernels/sm120/gemm.cu` is compiled for.
macro_rules! kernels_of_sizes {
    ($($rows:literal)*) => {
        /// Row-tile sizes: how many token rows one CTA multiplies with its weight rows.
        pub const GEMM_ROWS: [u32; [$($rows),*].len()] = [$($rows),*];

        /// Every kernel: GEMMs by kind, then by mode, then by size; then the rest.
        pub static KERNELS: &[Row] = &[
            $(Row { name: concat!("gemm1_bf16_sm120_n", $rows), ..GEMM },)*
            $(Row { name: concat!("gemm1_nvfp4_sm120_n", $rows), ..GEMM },)*
            $(Row { name: concat!("gemm2_bf16_sm120_n", $rows), ..GEMM },)*
            $(Row { name: concat!("gemm2_nvfp4_sm120_n", $rows), ..GEMM },)*
            $(Row { name: concat!("linear_bf16_sm120_n", $rows), ..GEMM },)*
            $(Row { name: concat!("linear_nvfp4_sm120_n", $rows), ..GEMM },)*
            Row {
                name: "prepare_tiles_sm120",
                module: "sm120/prepare",
                threads: params::PREPARE_THREADS,
                start: AfterPrevious,
                ..ROW_WISE
            },
        ];
    };
}
kernels_of_sizes!(8 16 32 64 128);

/// A weight matrix into tiles.
pub const PREPARE_TILES: Kernel = Kernel::of(KERNELS, TABLE, 6 * GEMM_ROWS.len());

/// The GEMM of this kind, mode and row-tile size, which must be one of [`GEMM_ROWS`].
pub fn gemm(kind: GemmKind, mode: Mode, rows: u32) -> Kernel {
    let size = GEMM_ROWS.iter().position(|size| *size == rows).unwrap_or(0);
    let kind = 2 * kind as usize + usize::from(mode == Mode::Nvfp4);
    Kernel::of(KERNELS, TABLE, kind * GEMM_ROWS.len() + size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_and_kinds_find_their_rows() {
        assert_eq!(PREPARE_TILES.row().name, "prepare_tiles_sm120");
        for (mode, mode_name) in [(Mode::Bf16, "bf16"), (Mode::Nvfp4, "nvfp4")] {
            for rows in GEMM_ROWS {
                let kinds = [(GemmKind::Gemm1, "gemm1"), (GemmKind::Gemm2, "gemm2"), (GemmKind::Linear, "linear")];
                for (kind, name) in kinds {
                    assert_eq!(gemm(kind, mode, rows).row().name, format!("{name}_{mode_name}_sm120_n{rows}"));
                }
            }
        }
    }
}
