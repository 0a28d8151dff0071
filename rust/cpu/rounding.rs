// SPDX-License-Identifier: Apache-2.0
//! Weights that mode fp8 rounds to e4m3, on the CPU: they stay in place, and are rounded whenever they are read.

use crate::call::LayerWeights;
use crate::config::LayerConfig;
use crate::error::Result;
use crate::format::{BLOCK_SIZE, MatrixOf, Part, RoundedMatrix, Rounding, RoundingSums, parts_of};
use crate::memory::vec_for;
use crate::threads;

/// A matrix of the checkpoint that is rounded by itself.
struct Matrix<'a> {
    matrix: MatrixOf,
    /// Of its expert's w13 or w2.
    codes: &'a [u8],
    block_scales: &'a [u8],
    cols: usize,
    rows: usize,
    /// First row, and the step from one to the next.
    place: (usize, usize),
}

impl<'a> Matrix<'a> {
    /// `part` of a local expert.
    ///
    /// # Safety
    /// The weights are host memory that nobody writes during `'a`.
    unsafe fn of(config: &LayerConfig, weights: &LayerWeights, expert: usize, part: Part) -> Self {
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let w13_rows = config.shape().w13_rows();
        // SAFETY: the caller's promise is the same.
        let (codes, scales, all_rows, rows, cols, place) = unsafe {
            match part {
                Part::Down => (weights.w2.slice(), weights.w2_block_scale.slice(), hidden, hidden, inter, (0, 1)),
                Part::Gate | Part::Up => {
                    let place = weights.row_order.rows(part == Part::Up, inter);
                    (weights.w13.slice(), weights.w13_block_scale.slice(), w13_rows, inter, hidden, place)
                }
            }
        };
        let (code_len, scale_len) = (all_rows * cols / 2, all_rows * cols / BLOCK_SIZE);
        Matrix {
            matrix: MatrixOf { expert, part },
            codes: &codes[expert * code_len..][..code_len],
            block_scales: &scales[expert * scale_len..][..scale_len],
            cols,
            rows,
            place,
        }
    }

    fn row_blocks(&self) -> usize {
        self.cols / BLOCK_SIZE
    }

    fn rows_of<T>(&self, values: &'a [T], width: usize) -> impl Iterator<Item = &'a [T]> + use<'a, T> {
        let (first, step) = self.place;
        values.chunks_exact(width).skip(first).step_by(step).take(self.rows)
    }

    fn rounding(&self) -> Rounding {
        Rounding::of_scales(self.rows_of(self.block_scales, self.row_blocks()))
    }

    fn measure(&self) -> RoundedMatrix {
        let (rounding, row_blocks, mut sums) = (self.rounding(), self.row_blocks(), RoundingSums::default());
        let rows = self.rows_of(self.codes, self.cols / 2).zip(self.rows_of(self.block_scales, row_blocks));
        for (row, (codes, scales)) in rows.enumerate() {
            for (block, (codes, scale)) in codes.chunks_exact(BLOCK_SIZE / 2).zip(scales).enumerate() {
                sums.add(rounding, codes, *scale, row * row_blocks + block);
            }
        }
        RoundedMatrix { matrix: self.matrix, sums, row_blocks, place: self.place }
    }
}

/// What rounding does to every matrix of a layer, in order.
///
/// # Safety
/// The weights are host memory that nobody writes during the call.
pub unsafe fn measure(config: &LayerConfig, weights: &LayerWeights) -> Result<Vec<RoundedMatrix>> {
    let parts = parts_of(weights.row_order);
    let mut all = vec_for("experts", config.num_local_experts * parts.len())?;
    all.extend((0..config.num_local_experts).flat_map(|expert| parts.iter().map(move |part| (expert, *part))));
    let measured = |(expert, part)| {
        // SAFETY: the caller's promise is the same.
        Ok(unsafe { Matrix::of(config, weights, expert, part) }.measure())
    };
    threads::run(|| threads::try_map(all, measured))?
}

/// How the matrices of each expert are rounded.
pub struct Roundings(Vec<[Rounding; 3]>);

impl Roundings {
    /// Of the experts that have rows. Asked at every call, because the owner of weights may move experts between calls.
    ///
    /// # Safety
    /// As [`measure`].
    pub unsafe fn of(config: &LayerConfig, weights: &LayerWeights, row_offsets: &[i32]) -> Result<Self> {
        let mut experts = vec_for("experts", config.num_local_experts)?;
        experts.extend(row_offsets.windows(2).map(|rows| rows[0] < rows[1]).enumerate());
        threads::try_map(experts, |(expert, has_rows)| {
            let mut own = [Rounding::of(0); 3];
            for part in parts_of(weights.row_order).iter().filter(|_| has_rows) {
                // SAFETY: the caller's promise is the same.
                own[*part as usize] = unsafe { Matrix::of(config, weights, expert, *part) }.rounding();
            }
            Ok(own)
        })
        .map(Roundings)
    }

    /// Of one matrix.
    pub fn get(&self, expert: usize, part: Part) -> Rounding {
        self.0[expert][part as usize]
    }
}
