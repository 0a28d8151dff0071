// SPDX-License-Identifier: Apache-2.0
//! Where the block scales of gate, up or down lie in a layer's tensors.

use crate::call::{LayerWeights, Tensor};
use crate::format::{BLOCK_SIZE, Part};
use crate::shape::MoeShape;

/// The block scales of all experts' gate, up or down.
#[derive(Debug, Clone, Copy)]
pub struct PartScales {
    /// Of w13 or w2.
    pub block_scale: Tensor<u8>,
    /// Of this part of an expert.
    pub rows: usize,
    /// In a row.
    pub blocks: usize,
    /// Of w13 or w2 of an expert.
    expert_rows: usize,
    /// First row there, and the step from one to the next.
    place: (usize, usize),
}

impl PartScales {
    /// Of weights of these sizes.
    pub fn of(weights: &LayerWeights, shape: MoeShape, part: Part) -> Self {
        let (hidden, inter) = (shape.hidden, shape.inter);
        match part {
            Part::Down => PartScales {
                block_scale: weights.w2_block_scale,
                rows: hidden,
                blocks: inter / BLOCK_SIZE,
                expert_rows: hidden,
                place: (0, 1),
            },
            Part::Gate | Part::Up => PartScales {
                block_scale: weights.w13_block_scale,
                rows: inter,
                blocks: hidden / BLOCK_SIZE,
                expert_rows: shape.w13_rows(),
                place: weights.row_order.rows(part == Part::Up, inter),
            },
        }
    }

    /// A row's number in w13 or w2 of its expert, as they were given.
    pub fn given(&self, row: usize) -> usize {
        self.place.0 + self.place.1 * row
    }

    /// Where the scales of a row of an expert begin.
    pub fn at(&self, expert: usize, row: usize) -> usize {
        (expert * self.expert_rows + self.given(row)) * self.blocks
    }
}
