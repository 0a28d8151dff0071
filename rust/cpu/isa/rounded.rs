// SPDX-License-Identifier: Apache-2.0
//! Tiles of weights that are rounded to e4m3. What an instruction set gains by decoding codes in registers it would lose to
//! the second factor that 1.5, 3 and 6 have, so there is one algorithm, by a table of weights, in plain Rust; the compiler
//! makes vectors of it.

use super::tile::{Isa, MAX_TILE_TOKENS, Tile, TileOut};
use super::{generic, portable};
use crate::format::{BLOCK_SIZE, RoundedWeights};

/// Sums of an output, each of every so many-th column.
const LANES: usize = 16;

/// Weights of a row that are decoded at a time, for all tokens.
const CHUNK: usize = 512;

const PLAIN: Isa = Isa {
    name: "rounded",
    group: generic::GROUP,
    group_bytes: 4 * generic::GROUP,
    write_group: portable::write_group,
    rest: None,
    tile,
    add_scaled: portable::add_scaled,
    available: || true,
};

/// Of this build, best first.
pub(super) static ALL: &[Isa] = &[
    #[cfg(target_arch = "x86_64")]
    Isa {
        tile: tile_fused,
        add_scaled: add_scaled_fused,
        available: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        ..PLAIN
    },
    PLAIN,
];

/// What computes layers whose weights are rounded, on this machine.
pub fn rounded() -> &'static Isa {
    ALL.iter().find(|isa| (isa.available)()).unwrap_or(&ALL[ALL.len() - 1])
}

unsafe fn tile(tile: &Tile, out: &mut TileOut) {
    // SAFETY: by contract of Isa::tile.
    unsafe { compute::<false>(tile, out) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_fused(tile: &Tile, out: &mut TileOut) {
    // SAFETY: by contract of Isa::tile.
    unsafe { compute::<true>(tile, out) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_scaled_fused(sum: &mut [f32], weight: f32, y: &[f32]) {
    generic::add_scaled(sum, weight, y)
}

/// Every output sums the same products in the same order, whichever other tokens there are.
#[inline(always)]
unsafe fn compute<const FUSED: bool>(tile: &Tile, out: &mut TileOut) {
    let Some(weights) = tile.rounded else { return };
    let mut decoded = [0.0f32; CHUNK];
    for row in 0..tile.rows {
        let at = row * tile.row_step * tile.reduction;
        let codes = &tile.codes[at / 2..][..tile.reduction / 2];
        let scales = &tile.block_scales[at / BLOCK_SIZE..][..tile.reduction / BLOCK_SIZE];
        let mut sums = [[0.0f32; LANES]; MAX_TILE_TOKENS];
        for (chunk, (codes, scales)) in codes.chunks(CHUNK / 2).zip(scales.chunks(CHUNK / BLOCK_SIZE)).enumerate() {
            decode(weights, codes, scales, &mut decoded);
            let decoded = &decoded[..2 * codes.len()];
            for (x, sums) in tile.x.iter().zip(&mut sums) {
                // SAFETY: an operand row holds the whole reduction in order, as f32.
                unsafe { add_products::<FUSED>(decoded, x.cast::<f32>().add(chunk * CHUNK).cast(), sums) };
            }
        }
        for (out, sums) in out.iter_mut().zip(&sums[..tile.x.len()]) {
            out[row] = sums.iter().sum();
        }
    }
}

#[inline(always)]
fn decode(weights: &RoundedWeights, codes: &[u8], scales: &[u8], out: &mut [f32; CHUNK]) {
    let blocks = codes.as_chunks::<{ BLOCK_SIZE / 2 }>().0.iter().zip(scales);
    for (out, (codes, scale)) in out.as_chunks_mut::<BLOCK_SIZE>().0.iter_mut().zip(blocks) {
        let magnitudes = &weights[usize::from(scale & 0x7f)];
        for (pair, code) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
            *pair = [*code, code >> 4].map(|code| {
                let sign = u32::from(code >> 3 & 1) << 31;
                f32::from_bits(magnitudes[usize::from(code & 7)].to_bits() | sign)
            });
        }
    }
}

/// As many of `x` as there are weights.
#[inline(always)]
unsafe fn add_products<const FUSED: bool>(weights: &[f32], x: *const [f32; LANES], sums: &mut [f32; LANES]) {
    let mut own = *sums;
    for (i, weights) in weights.as_chunks::<LANES>().0.iter().enumerate() {
        // SAFETY: by contract; operand rows may start at any byte.
        let x = unsafe { x.add(i).read_unaligned() };
        for lane in 0..LANES {
            // A fused one would be a library call where the CPU has no such instruction.
            own[lane] =
                if FUSED { weights[lane].mul_add(x[lane], own[lane]) } else { own[lane] + weights[lane] * x[lane] };
        }
    }
    *sums = own;
}
