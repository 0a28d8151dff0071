// SPDX-License-Identifier: Apache-2.0
//! How far rounding to e4m3 moves the weights of a layer. The sums are of integers, so that a GPU's threads may add them
//! in any order, and both backends report the same bits.

use super::rounding::Rounding;
use super::scale_span::{Part, exponent};
use crate::error::{Error, Result};

/// Binades of e4m3's positive values: exponents -9 to 8.
pub const BINADES: usize = 18;
const LEAST: i32 = -9;
/// Bits of a block's index in [`RoundingSums::worst_block`]; both dimensions are below 2^20.
const INDEX_BITS: u32 = 36;
const INDICES: u64 = 1 << INDEX_BITS;
/// Bits of a share that have no room beside it.
const DROPPED_BITS: u32 = 3;

/// Of a matrix, in sixteenths of the power of two of a weight's block scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct RoundingSums {
    /// Of weights without global scale, by the exponent of their block scale.
    pub squares: [u64; BINADES],
    /// Squares of what rounding adds to them.
    pub errors: [u64; BINADES],
    /// f32 bits of the largest errors / squares of a block, without the last three, then what its index lacks to 2^36 - 1: the
    /// larger is the worse block, or the earlier one. 0 if no block has an error.
    pub worst_block: u64,
}

impl RoundingSums {
    /// One block more: 8 bytes of codes, and its index in the matrix.
    pub fn add(&mut self, rounding: Rounding, codes: &[u8], block_scale: u8, index: usize) {
        if block_scale == 0 {
            return;
        }
        let (mut squares, mut errors) = (0u64, 0u64);
        for code in codes.iter().flat_map(|byte| [byte & 7, byte >> 4 & 7]) {
            let [exact, rounded] = rounding.products(code, block_scale);
            squares += u64::from(exact * exact);
            errors += u64::from(exact.abs_diff(rounded).pow(2));
        }
        let binade = (exponent(block_scale) - LEAST) as usize;
        self.squares[binade] += squares;
        self.errors[binade] += errors;
        if errors > 0 {
            let share = u64::from((errors as f32 / squares as f32).to_bits() >> DROPPED_BITS);
            self.worst_block = self.worst_block.max(share << INDEX_BITS | (INDICES - 1 - index as u64));
        }
    }

    /// Relative L2 error of the matrix.
    fn rel_l2(&self) -> f64 {
        let sum = |sums: &[u64; BINADES]| -> f64 {
            sums.iter().enumerate().map(|(i, sum)| *sum as f64 * 4f64.powi(i as i32 + LEAST)).sum()
        };
        let (errors, squares) = (sum(&self.errors), sum(&self.squares));
        if errors == 0.0 { 0.0 } else { (errors / squares).sqrt() }
    }

    /// Relative L2 error of the worst block, and its index.
    fn worst(&self) -> (f32, u64) {
        let share = f32::from_bits(((self.worst_block >> INDEX_BITS) as u32) << DROPPED_BITS);
        (share.sqrt(), INDICES - 1 - self.worst_block % INDICES)
    }
}

/// A matrix of a local expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MatrixOf {
    pub expert: usize,
    pub part: Part,
}

/// A matrix of a layer that was rounded.
#[derive(Debug, Clone, Copy)]
pub struct RoundedMatrix {
    /// Which.
    pub matrix: MatrixOf,
    /// What rounding does to it.
    pub sums: RoundingSums,
    /// Blocks of a row.
    pub row_blocks: usize,
    /// Its first row in w13 or w2, and the step from one to the next.
    pub place: (usize, usize),
}

/// What rounding to e4m3 did to a layer's weights: errors are relative L2, without global scales.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightError {
    /// Of the matrix that lost most.
    pub rel_l2: f32,
    /// That matrix.
    pub matrix: MatrixOf,
    /// Of the block of 16 that lost most.
    pub block_rel_l2: f32,
    /// Its matrix.
    pub block_matrix: MatrixOf,
    /// Its row in w13 or w2.
    pub block_row: usize,
    /// Its index in that row.
    pub block: usize,
}

impl Default for WeightError {
    /// Weights that were not rounded.
    fn default() -> Self {
        let first = MatrixOf { expert: 0, part: Part::Down };
        WeightError { rel_l2: 0.0, matrix: first, block_rel_l2: 0.0, block_matrix: first, block_row: 0, block: 0 }
    }
}

impl WeightError {
    /// Of a layer's matrices, in order; of two that are equal, the first.
    pub fn of(matrices: impl IntoIterator<Item = RoundedMatrix>) -> Self {
        let mut error = WeightError::default();
        for RoundedMatrix { matrix, sums, row_blocks, place: (first_row, step) } in matrices {
            let rel_l2 = sums.rel_l2() as f32;
            if rel_l2 > error.rel_l2 {
                (error.rel_l2, error.matrix) = (rel_l2, matrix);
            }
            let (block_rel_l2, index) = sums.worst();
            if block_rel_l2 > error.block_rel_l2 {
                let (row, block) = (index as usize / row_blocks, index as usize % row_blocks);
                error = WeightError {
                    block_rel_l2,
                    block_matrix: matrix,
                    block_row: first_row + row * step,
                    block,
                    ..error
                };
            }
        }
        error
    }

    /// Refuse more than the caller allows.
    pub fn check(self, most: f32) -> Result<Self> {
        if self.rel_l2 <= most {
            return Ok(self);
        }
        let matrix = self.matrix.part.name(self.matrix.expert).replace("_block_scale", "");
        let name = format!("relative L2 error of {matrix} in e4m3");
        let rule = format!("it must be at most fp8_max_error, which is {most}");
        let remedy = "Use mode bf16, which is exact for any weights, or allow more.";
        Err(Error::argument(name, self.rel_l2, rule, remedy))
    }
}
