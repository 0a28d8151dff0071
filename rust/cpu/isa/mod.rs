// SPDX-License-Identifier: Apache-2.0
//! One microkernel, five instruction sets.
//!
//! A *tile* is [`TILE_ROWS`] weight rows times any number of activation rows over the whole reduction:
//!
//! ```text
//! for each chunk of the reduction that fits L1
//!     for each weight row    decode e2m1 * block_scale (exact) into scratch
//!     for each few tokens    accumulators[row][token][lane] += scratch[row] * x[token]
//! out[token][row] = sum over lanes
//! ```
//!
//! Decoding into scratch costs almost nothing even for one token (stores have a port of their own), and every
//! output sees the same additions in the same order however many tokens share the tile: a token alone equals the
//! token in a batch, bit for bit.
//!
//! Layers, as in memchr: `generic` is the algorithm over a trait `Simd`, `portable`, `avx2`, `avx512` and
//! `avx512bf16` are what an instruction set adds, and this file is the only dispatch. `avx512vnni` computes with
//! integers, so its loops are its own.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
mod generic;
mod lanes;
mod portable;
mod rows;
#[cfg(test)]
mod tests;

use once_cell::sync::Lazy;

/// Weight rows of a tile.
pub const TILE_ROWS: usize = 8;

/// Bytes.
const CACHE_LINE: usize = 64;

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
    available: fn() -> bool,
}

impl Isa {
    /// Bytes from one operand row to the next: a cache line more than the row, because rows a multiple of 4 KiB apart
    /// would share one set of the L1, which has 8 ways (without it a tile of six tokens ran at a quarter of its speed).
    pub fn operand_row_bytes(&self, reduction: usize) -> usize {
        reduction.div_ceil(self.group) * self.group_bytes + CACHE_LINE
    }
}

/// Every instruction set this build knows, best first.
static ALL: &[&Isa] = &[
    #[cfg(target_arch = "x86_64")]
    &avx512vnni::ISA,
    #[cfg(target_arch = "x86_64")]
    &avx512bf16::ISA,
    #[cfg(target_arch = "x86_64")]
    &avx512::ISA,
    #[cfg(target_arch = "x86_64")]
    &avx2::ISA,
    &portable::ISA,
];

/// The instruction sets of this machine, best first; never empty.
pub fn available() -> impl Iterator<Item = &'static Isa> {
    ALL.iter().copied().filter(|isa| (isa.available)())
}

/// The one in use.
pub fn best() -> &'static Isa {
    static BEST: Lazy<&'static Isa> = Lazy::new(|| available().next().unwrap_or(&portable::ISA));
    &BEST
}
