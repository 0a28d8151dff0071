// SPDX-License-Identifier: Apache-2.0
//! Hopper's table of kernels.

use crate::cuda::kernels::Start::{AfterPrevious, Together};
use crate::cuda::kernels::{Kernel, ROW_WISE, Row, params};

/// What becomes of the result of a GEMM. Of bf16 rows, then of e4m3 rows, then of weights that are rounded to e4m3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GemmKind {
    /// SwiGLU of gate and up, to bf16: h.
    Gemm1,
    /// Any activation of gate and up, with biases.
    Gemm1Any,
    /// bf16 for combine.
    Gemm2,
    /// With biases; or h, of experts without a gate.
    Gemm2Any,
    /// bf16 with bias.
    Linear,
    /// As those of bf16 rows, of e4m3 rows and weights prepared for mode fp8 whose block scales are equal in pairs.
    Gemm1Fp8,
    /// The same.
    Gemm1AnyFp8,
    /// The same.
    Gemm2Fp8,
    /// The same.
    Gemm2AnyFp8,
    /// As those of e4m3 rows, of block scales of any value, by which products are rounded to e4m3.
    Gemm1Rounded,
    /// The same.
    Gemm1AnyRounded,
    /// The same.
    Gemm2Rounded,
    /// The same.
    Gemm2AnyRounded,
}

impl GemmKind {
    /// Of a column of a token row: bf16, or e4m3.
    pub fn column_bytes(self) -> usize {
        if self >= Self::Gemm1Fp8 { 1 } else { 2 }
    }
}

/// Its place among the tables of `families.rs`.
const TABLE: usize = 1;

/// A GEMM takes all of a multiprocessor's shared memory. Its threads follow its row-tile size.
const GEMM: Row = Row { module: "hopper/gemm", threads: 0, shared_bytes: params::GEMM_SM90_SHARED_BYTES, ..ROW_WISE };
const ROUNDED_GEMM: Row = Row { module: "hopper/gemm_rounded", ..GEMM };

/// Rows of the table, and the row-tile sizes, for the sizes that `kernels/hopper/gemm.cu` is compiled for.
macro_rules! kernels_of_sizes {
    ($($rows:literal)*; $($fp8:literal)*; $($rounded:literal)*) => {
        /// Row-tile sizes: how many token rows one CTA multiplies with its weight rows.
        pub const GEMM_ROWS: [u32; [$($rows),*].len()] = [$($rows),*];

        /// Those of e4m3 rows.
        pub const FP8_ROWS: [u32; [$($fp8),*].len()] = [$($fp8),*];

        /// Those of weights that are rounded to e4m3.
        pub const ROUNDED_ROWS: [u32; [$($rounded),*].len()] = [$($rounded),*];

        /// Every kernel of Hopper: GEMMs by kind, then by size; then the rest.
        pub static KERNELS: &[Row] = &[
            $(Row { name: concat!("gemm1_sm90_n", $rows), ..GEMM },)*
            $(Row { name: concat!("gemm1_any_sm90_n", $rows), ..GEMM },)*
            $(Row { name: concat!("gemm2_sm90_n", $rows), ..GEMM },)*
            $(Row { name: concat!("gemm2_any_sm90_n", $rows), ..GEMM },)*
            $(Row { name: concat!("linear_sm90_n", $rows), ..GEMM },)*
            $(Row { name: concat!("gemm1_fp8_sm90_n", $fp8), ..GEMM },)*
            $(Row { name: concat!("gemm1_any_fp8_sm90_n", $fp8), ..GEMM },)*
            $(Row { name: concat!("gemm2_fp8_sm90_n", $fp8), ..GEMM },)*
            $(Row { name: concat!("gemm2_any_fp8_sm90_n", $fp8), ..GEMM },)*
            $(Row { name: concat!("gemm1_rounded_sm90_n", $rounded), ..ROUNDED_GEMM },)*
            $(Row { name: concat!("gemm1_any_rounded_sm90_n", $rounded), ..ROUNDED_GEMM },)*
            $(Row { name: concat!("gemm2_rounded_sm90_n", $rounded), ..ROUNDED_GEMM },)*
            $(Row { name: concat!("gemm2_any_rounded_sm90_n", $rounded), ..ROUNDED_GEMM },)*
            Row { name: "few_sm90", module: "hopper/few", threads: params::GEMM_SM90_THREADS, start: Together, ..GEMM },
            Row { name: "quantize_rows_fp8", module: "hopper/quantize_fp8", ..ROW_WISE },
            Row { name: "part_scales", module: "hopper/scales_fp8", start: AfterPrevious, ..ROW_WISE },
            Row { name: "measure_rounding", module: "hopper/rounding", start: AfterPrevious, ..ROW_WISE },
            Row {
                name: "prepare_tiles",
                module: "hopper/prepare",
                threads: params::PREPARE_THREADS,
                start: AfterPrevious,
                ..ROW_WISE
            },
        ];
    };
}
kernels_of_sizes!(8 16 24 32 48 64 80 96 112 128 144; 8 16 24 32 48 64 80 96 112 128 144 208; 8 16 24 48 64 80 112 144 208);

/// The first row of a GEMM of e4m3 rows, of one of rounded weights, and the first that is not a GEMM's.
const FP8: usize = 5 * GEMM_ROWS.len();
const ROUNDED: usize = FP8 + 4 * FP8_ROWS.len();
const OTHERS: usize = ROUNDED + 4 * ROUNDED_ROWS.len();

/// A whole call of few tokens.
pub const FEW: Kernel = Kernel::of(KERNELS, TABLE, OTHERS);
/// Rows of bf16 to e4m3.
pub const QUANTIZE_ROWS_FP8: Kernel = Kernel::of(KERNELS, TABLE, OTHERS + 1);
/// Counts what mode fp8 asks of block scales.
pub const MATRIX_SCALES: Kernel = Kernel::of(KERNELS, TABLE, OTHERS + 2);
/// Measures what rounding to e4m3 does to weights.
pub const MEASURE_ROUNDING: Kernel = Kernel::of(KERNELS, TABLE, OTHERS + 3);
/// A weight matrix into tiles.
pub const PREPARE_TILES: Kernel = Kernel::of(KERNELS, TABLE, OTHERS + 4);

/// The GEMM of this kind and row-tile size, which must be one of its kind's: [`GEMM_ROWS`], [`FP8_ROWS`] or [`ROUNDED_ROWS`].
pub fn gemm(kind: GemmKind, rows: u32) -> Kernel {
    let (first, first_kind, sizes): (_, _, &[u32]) = match kind {
        _ if kind >= GemmKind::Gemm1Rounded => (ROUNDED, GemmKind::Gemm1Rounded, &ROUNDED_ROWS),
        _ if kind >= GemmKind::Gemm1Fp8 => (FP8, GemmKind::Gemm1Fp8, &FP8_ROWS),
        _ => (0, GemmKind::Gemm1, &GEMM_ROWS),
    };
    let place = sizes.iter().position(|size| *size == rows).unwrap_or(0);
    Kernel::of(KERNELS, TABLE, first + (kind as usize - first_kind as usize) * sizes.len() + place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_and_kinds_find_their_rows() {
        assert_eq!(FEW.row().name, "few_sm90");
        assert_eq!(QUANTIZE_ROWS_FP8.row().name, "quantize_rows_fp8");
        assert_eq!(MATRIX_SCALES.row().name, "part_scales");
        assert_eq!(MEASURE_ROUNDING.row().name, "measure_rounding");
        assert_eq!(PREPARE_TILES.row().name, "prepare_tiles");
        for rows in ROUNDED_ROWS {
            assert_eq!(gemm(GemmKind::Gemm1Rounded, rows).row().name, format!("gemm1_rounded_sm90_n{rows}"));
            assert_eq!(gemm(GemmKind::Gemm1AnyRounded, rows).row().name, format!("gemm1_any_rounded_sm90_n{rows}"));
            assert_eq!(gemm(GemmKind::Gemm2Rounded, rows).row().name, format!("gemm2_rounded_sm90_n{rows}"));
            assert_eq!(gemm(GemmKind::Gemm2AnyRounded, rows).row().name, format!("gemm2_any_rounded_sm90_n{rows}"));
        }
        for rows in FP8_ROWS {
            assert_eq!(gemm(GemmKind::Gemm1Fp8, rows).row().name, format!("gemm1_fp8_sm90_n{rows}"));
            assert_eq!(gemm(GemmKind::Gemm1AnyFp8, rows).row().name, format!("gemm1_any_fp8_sm90_n{rows}"));
            assert_eq!(gemm(GemmKind::Gemm2Fp8, rows).row().name, format!("gemm2_fp8_sm90_n{rows}"));
            assert_eq!(gemm(GemmKind::Gemm2AnyFp8, rows).row().name, format!("gemm2_any_fp8_sm90_n{rows}"));
        }
        for rows in GEMM_ROWS {
            assert_eq!(gemm(GemmKind::Gemm1, rows).row().name, format!("gemm1_sm90_n{rows}"));
            assert_eq!(gemm(GemmKind::Gemm1Any, rows).row().name, format!("gemm1_any_sm90_n{rows}"));
            assert_eq!(gemm(GemmKind::Gemm2, rows).row().name, format!("gemm2_sm90_n{rows}"));
            assert_eq!(gemm(GemmKind::Gemm2Any, rows).row().name, format!("gemm2_any_sm90_n{rows}"));
            assert_eq!(gemm(GemmKind::Linear, rows).row().name, format!("linear_sm90_n{rows}"));
        }
    }
}
