// SPDX-License-Identifier: Apache-2.0
//! Blocks of a GEMM: some weight rows times the rows of one expert.

use super::isa::{Isa, MAX_TILE_TOKENS, TILE_ROWS, Tile, TileOut};
use crate::error::Result;
use crate::format::{BLOCK_SIZE, Rounding};
use crate::memory::vec_for;
use crate::threads;
use std::ops::{Deref, Range};

/// A weight matrix in checkpoint order.
#[derive(Clone, Copy)]
pub struct WeightMatrix<'a> {
    /// e2m1x2 `[rows, reduction/2]`
    pub codes: &'a [u8],
    /// e4m3 `[rows, reduction/16]`
    pub block_scales: &'a [u8],
    /// Columns.
    pub reduction: usize,
    /// Rows of the whole matrix: the first of those that count, and the step from one to the next.
    pub place: (usize, usize),
    /// How weights are rounded to e4m3, if they are.
    pub rounding: Option<Rounding>,
}

impl<'a> WeightMatrix<'a> {
    /// Expert `index` of matrices stacked along the first dimension, `rows` rows each.
    pub fn expert(codes: &'a [u8], block_scales: &'a [u8], rows: usize, reduction: usize, index: usize) -> Self {
        let (code_len, scale_len) = (rows * reduction / 2, rows * reduction / BLOCK_SIZE);
        WeightMatrix {
            codes: &codes[index * code_len..][..code_len],
            block_scales: &block_scales[index * scale_len..][..scale_len],
            reduction,
            place: (0, 1),
            rounding: None,
        }
    }
}

/// Features of one task. At least: enough to be worth a steal, few enough that one expert feeds all threads. At most:
/// activation rows that come from memory into L2 for a task should stay there for long.
const TASK_FEATURES: Range<usize> = 32..256;

/// Activation rows that stay in a core's L2 (1 MiB on the machines we know) while weight rows pass by.
const L2_OPERAND_BYTES: usize = 800 << 10;

/// Tokens for one pass over a block of weight rows: as many as L2 and the tile take, but at least six, below which
/// decoding would be shared by too few.
pub fn tokens_at_a_time(isa: &Isa, reduction: usize) -> usize {
    (L2_OPERAND_BYTES / isa.main_row_bytes(reduction)).clamp(6, MAX_TILE_TOKENS) / 6 * 6
}

/// For tiles of weight rows in `rows`: `put(first_row, tile_rows, out)` gets the f32 products with each row of `x`.
pub fn for_each_tile(
    isa: &Isa,
    weights: WeightMatrix,
    rows: Range<usize>,
    x: &[*const u8],
    mut put: impl FnMut(usize, usize, &[[f32; TILE_ROWS]]),
) {
    let mut out: TileOut = [[0.0; TILE_ROWS]; MAX_TILE_TOKENS];
    let (first, row_step) = weights.place;
    for row in rows.clone().step_by(TILE_ROWS) {
        let at = first + row * row_step;
        let tile = Tile {
            codes: &weights.codes[at * weights.reduction / 2..],
            block_scales: &weights.block_scales[at * weights.reduction / BLOCK_SIZE..],
            rows: (rows.end - row).min(TILE_ROWS),
            row_step,
            rounded: weights.rounding.map(Rounding::weights),
            reduction: weights.reduction,
            x,
        };
        // SAFETY: `isa` is available on this machine; x holds operand rows of this reduction.
        unsafe { (isa.tile)(&tile, &mut out) };
        put(row, tile.rows, &out[..x.len()]);
    }
}

/// Run `body(expert, rows, features)` over all experts that have rows, in parallel: a task is some features of one
/// expert, for all its rows, `rows_at_a_time`.
pub fn for_each_task(
    row_offsets: &[i32],
    features: usize,
    rows_at_a_time: usize,
    body: impl Fn(usize, Range<usize>, Range<usize>) -> Result<()> + Send + Sync,
) -> Result<()> {
    let num_experts = row_offsets.len() - 1;
    let mut active: Vec<usize> = vec_for("num_local_experts", num_experts)?;
    active.extend((0..num_experts).filter(|e| row_offsets[*e] < row_offsets[*e + 1]));
    // Eight tasks a thread balance what differs between them.
    let fair = active.len() * features / (8 * threads::count());
    let task_features = fair.clamp(TASK_FEATURES.start, TASK_FEATURES.end) / TILE_ROWS * TILE_ROWS;
    let blocks = features.div_ceil(task_features);
    let nothing = || ();
    threads::try_for_each(active.len() * blocks, 1, nothing, |(), task| {
        let expert = active[task / blocks];
        let first = task % blocks * task_features;
        let features = first..(first + task_features).min(features);
        let rows = row_offsets[expert] as usize..row_offsets[expert + 1] as usize;
        for start in rows.clone().step_by(rows_at_a_time) {
            body(expert, start..(start + rows_at_a_time).min(rows.end), features.clone())?;
        }
        Ok(())
    })
}

/// One value for each row of a task, of which there are at most [`MAX_TILE_TOKENS`]; on the stack.
pub struct PerRow<T> {
    values: [T; MAX_TILE_TOKENS],
    len: usize,
}

impl<T: Copy> PerRow<T> {
    /// `value` of each row; `unused` fills the rest.
    pub fn new(rows: Range<usize>, unused: T, value: impl Fn(usize) -> T) -> Self {
        let mut values = [unused; MAX_TILE_TOKENS];
        let len = rows.len();
        for (place, row) in values.iter_mut().zip(rows) {
            *place = value(row);
        }
        PerRow { values, len }
    }
}

impl<T> Deref for PerRow<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[..self.len]
    }
}
