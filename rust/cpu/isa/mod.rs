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
//! integers, so its loops are its own; rare rows with outliers have a rest, which `avx512` adds. `rounded` serves weights
//! that are rounded to e4m3, on any CPU.

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
mod rounded;
mod rows;
#[cfg(test)]
mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod vnni_operand;

pub use rounded::rounded;
pub use tile::{Isa, MAX_TILE_TOKENS, Rest, TILE_ROWS, Tile, TileOut};

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

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

/// The one in use. Behind no lock, which a process could be forked under.
pub fn best() -> &'static Isa {
    static BEST: AtomicUsize = AtomicUsize::new(usize::MAX);
    let known = ALL.get(BEST.load(Relaxed)).copied();
    known.unwrap_or_else(|| {
        let found = ALL.iter().position(|isa| (isa.available)()).unwrap_or(ALL.len() - 1);
        BEST.store(found, Relaxed);
        ALL[found]
    })
}
