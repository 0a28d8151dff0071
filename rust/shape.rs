// SPDX-License-Identifier: Apache-2.0
//! Every length of a layer's weight tensors, and the order of their rows, for readers, checks and backends alike.

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

/// How the rows of w13 follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// One projection: there is no gate.
    Plain,
    /// All of gate, then all of up.
    GateFirst,
    /// All of up, then all of gate.
    UpFirst,
    /// Gate and up in turn.
    Interleaved,
}

impl RowOrder {
    /// First row of gate or up, each of `inter` rows, and the step from one of its rows to the next.
    pub const fn rows(self, is_up: bool, inter: usize) -> (usize, usize) {
        match self {
            RowOrder::Interleaved => (is_up as usize, 2),
            _ => (self.place(is_up) * inter, 1),
        }
    }

    /// Place of what gate and up have one each of, as their global scales.
    pub const fn place(self, is_up: bool) -> usize {
        match self {
            RowOrder::Plain => 0,
            RowOrder::GateFirst | RowOrder::Interleaved => is_up as usize,
            RowOrder::UpFirst => !is_up as usize,
        }
    }
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

    /// `[L, w13_rows]` of bf16.
    pub const fn w13_bias(self) -> usize {
        self.experts * self.w13_rows()
    }

    /// `[L, H]` of bf16.
    pub const fn w2_bias(self) -> usize {
        self.experts * self.hidden
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
        assert_eq!((shape.w13_bias(), shape.w2_bias()), (3 * 64, 3 * 64));
        let ungated = MoeShape { projections: 1, ..shape };
        assert_eq!((ungated.w13(), ungated.w13_global_scale(), ungated.w13_bias()), (3 * 32 * 32, 3, 3 * 32));
    }

    #[test]
    fn every_row_of_w13_is_one_of_gate_or_up() {
        for order in [RowOrder::GateFirst, RowOrder::UpFirst, RowOrder::Interleaved] {
            let rows_of = |is_up| {
                let (first, step) = order.rows(is_up, 3);
                (0..3).map(move |i| first + i * step)
            };
            let mut rows: Vec<usize> = rows_of(false).chain(rows_of(true)).collect();
            assert_eq!(rows[0] == 0, order != RowOrder::UpFirst);
            rows.sort_unstable();
            assert!(rows.into_iter().eq(0..6), "{order:?}");
        }
        assert_eq!(RowOrder::Plain.rows(true, 3), (0, 1));
    }
}
