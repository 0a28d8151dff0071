// SPDX-License-Identifier: Apache-2.0
//! What an instruction set must provide, and what it computes on.

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
    /// Turn `group` activations into `group_bytes` of an operand row.
    pub write_group: fn(&[f32], &mut [u8]),
    /// Compute a tile. Safety: the CPU has the instructions, and the tile keeps its promises.
    pub tile: unsafe fn(&Tile, &mut TileOut),
    /// `sum += weight * y`, fused multiply-adds. Safety: the CPU has the instructions.
    pub add_scaled: unsafe fn(sum: &mut [f32], weight: f32, y: &[f32]),
    /// Does this machine have it?
    pub available: fn() -> bool,
}

impl Isa {
    /// Bytes from one operand row to the next: a cache line more than the row, because rows a multiple of 4 KiB apart
    /// would share one set of the L1, which has 8 ways (without it a tile of six tokens ran at a quarter of its speed).
    pub fn operand_row_bytes(&self, reduction: usize) -> usize {
        reduction.div_ceil(self.group) * self.group_bytes + CACHE_LINE
    }
}
