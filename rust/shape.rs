// SPDX-License-Identifier: Apache-2.0
//! Every length of a layer's six weight tensors, for readers, checks and backends alike.

use crate::format::BLOCK_SIZE;

/// Sizes of the experts whose weights are together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoeShape {
    /// L: experts.
    pub experts: usize,
    /// H, a multiple of 16.
    pub hidden: usize,
    /// I, a multiple of 16.
    pub inter: usize,
    /// Projections that w13 stacks: 2 with a gate ([`crate::activation::Activation::projections`]).
    pub projections: usize,
}

impl MoeShape {
    /// Rows of an expert's w13.
    pub const fn w13_rows(self) -> usize {
        self.projections * self.inter
    }

    /// `[L, w13_rows, H / 2]` bytes of e2m1x2.
    pub const fn w13(self) -> usize {
        self.experts * self.w13_rows() * self.hidden / 2
    }

    /// `[L, w13_rows, H / 16]` of e4m3.
    pub const fn w13_block_scale(self) -> usize {
        self.experts * self.w13_rows() * self.hidden / BLOCK_SIZE
    }

    /// `[L, projections]` of f32.
    pub const fn w13_global_scale(self) -> usize {
        self.experts * self.projections
    }

    /// `[L, H, I / 2]` bytes of e2m1x2.
    pub const fn w2(self) -> usize {
        self.experts * self.hidden * self.inter / 2
    }

    /// `[L, H, I / 16]` of e4m3.
    pub const fn w2_block_scale(self) -> usize {
        self.experts * self.hidden * self.inter / BLOCK_SIZE
    }

    /// `[L]` of f32.
    pub const fn w2_global_scale(self) -> usize {
        self.experts
    }

    /// Block scales of one projection of one expert, which is as many as of its w2.
    pub const fn projection_block_scales(self) -> usize {
        self.hidden * self.inter / BLOCK_SIZE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_header() {
        let shape = MoeShape { experts: 3, hidden: 64, inter: 32, projections: 2 };
        assert_eq!((shape.w13(), shape.w13_block_scale(), shape.w13_global_scale()), (3 * 64 * 32, 3 * 64 * 4, 6));
        assert_eq!((shape.w2(), shape.w2_block_scale(), shape.w2_global_scale()), (3 * 64 * 16, 3 * 64 * 2, 3));
        assert_eq!(3 * shape.projection_block_scales(), shape.w2_block_scale());
    }
}
