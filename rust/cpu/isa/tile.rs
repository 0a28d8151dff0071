// SPDX-License-Identifier: Apache-2.0
//! What an instruction set must provide, and what it computes on.

use crate::format::RoundedWeights;

/// Weight rows of a tile.
pub const TILE_ROWS: usize = 8;

/// Bytes of a cache line.
pub const CACHE_LINE: usize = 64;

/// Activation rows that one tile call takes at most.
pub const MAX_TILE_TOKENS: usize = 48;

/// One tile's inputs.
pub struct Tile<'a> {
    /// e2m1x2 rows, from the first row of the tile.
    pub codes: &'a [u8],
    /// e4m3 rows, from the first row of the tile.
    pub block_scales: &'a [u8],
    /// Rows of the tile, 1 to [`TILE_ROWS`].
    pub rows: usize,
    /// From one of them to the next: 2 where gate and up are interleaved, else 1.
    pub row_step: usize,
    /// Length of the reduction, a multiple of 16.
    pub reduction: usize,
    /// Weights by block scale and code, where they are rounded to e4m3; for `rounded` alone.
    pub rounded: Option<&'a RoundedWeights>,
    /// Operand rows of the tokens: `Isa::operand_row_bytes(reduction)` readable bytes each.
    pub x: &'a [*const u8],
}

/// `[token][row]`, what a tile computes.
pub type TileOut = [[f32; TILE_ROWS]; MAX_TILE_TOKENS];

/// What an instruction set provides.
pub struct Isa {
    /// As reported by `nvfp4_moe_cpu_isa`.
    pub name: &'static str,
    /// Values that lie together in an operand row, in an order of the instruction set's own. Reductions are padded to
    /// whole groups with zeros.
    pub group: usize,
    /// Bytes of a group in an operand row.
    pub group_bytes: usize,
    /// Turn `group` activations into `group_bytes` of an operand row. True: they hold less than bf16 does, and `rest`
    /// has to add what they left out.
    pub write_group: fn(&[f32], &mut [u8]) -> bool,
    /// How that is added; nothing where operands hold every value.
    pub rest: Option<Rest>,
    /// Compute a tile. Safety: the CPU has the instructions, and the tile keeps its promises.
    pub tile: unsafe fn(&Tile, &mut TileOut),
    /// `sum += weight * y`, fused multiply-adds. Safety: the CPU has the instructions.
    pub add_scaled: unsafe fn(sum: &mut [f32], weight: f32, y: &[f32]),
    /// Does this machine have it?
    pub available: fn() -> bool,
}

/// How a tile adds what an instruction set's own form of the activations leaves out of rare rows.
pub struct Rest {
    /// Whose operand row holds it, behind the row's own.
    pub isa: &'static Isa,
    /// What is left out of whole blocks.
    pub left_out: fn(&[f32], &mut [f32]),
}

/// No instruction set has larger groups.
const MAX_GROUP: usize = 256;

impl Isa {
    /// Bytes of an operand row that every tile reads: a cache line more than the groups, because rows a multiple of 4 KiB
    /// apart would share one set of the L1, which has 8 ways (without it a tile of six tokens ran at a quarter of its
    /// speed). Its first byte is [`Isa::has_rest`].
    pub fn main_row_bytes(&self, reduction: usize) -> usize {
        reduction.div_ceil(self.group) * self.group_bytes + CACHE_LINE
    }

    /// Bytes from one operand row to the next.
    pub fn operand_row_bytes(&self, reduction: usize) -> usize {
        self.main_row_bytes(reduction) + self.rest.as_ref().map_or(0, |rest| rest.isa.operand_row_bytes(reduction))
    }

    /// An operand row from a row of activations.
    pub fn write_row(&self, values: &[f32], out: &mut [u8]) {
        let (main, behind) = out.split_at_mut(self.main_row_bytes(values.len()));
        let (groups, line) = main.split_at_mut(main.len() - CACHE_LINE);
        let needs_rest = self.write_groups(values, groups, |group, out| (self.write_group)(group, out));
        line[0] = u8::from(needs_rest);
        if let (true, Some(rest)) = (needs_rest, &self.rest) {
            rest.isa.write_groups(values, behind, |group, out| {
                let mut left_out = [0.0; MAX_GROUP];
                (rest.left_out)(group, &mut left_out[..group.len()]);
                (rest.isa.write_group)(&left_out[..group.len()], out)
            });
        }
    }

    /// Whole groups of `values`, the last completed with zeros; true if `write` was for any.
    fn write_groups(&self, values: &[f32], out: &mut [u8], write: impl Fn(&[f32], &mut [u8]) -> bool) -> bool {
        let mut any = false;
        for (group, out) in values.chunks(self.group).zip(out.chunks_exact_mut(self.group_bytes)) {
            any |= if group.len() == self.group {
                write(group, out)
            } else {
                let mut padded = [0.0; MAX_GROUP];
                padded[..group.len()].copy_from_slice(group);
                write(&padded[..self.group], out)
            };
        }
        any
    }

    /// Did [`Isa::write_row`] put a rest behind this row?
    ///
    /// # Safety
    /// `row` is an operand row of this reduction.
    pub unsafe fn has_rest(&self, row: *const u8, reduction: usize) -> bool {
        // SAFETY: the row's last line is readable.
        unsafe { *row.add(self.main_row_bytes(reduction) - CACHE_LINE) != 0 }
    }
}
