// SPDX-License-Identifier: Apache-2.0
//! The checks on every scale of a layer, and what the scales tell.

use super::files::Files;
use super::pieces::Piece;
use super::text::{fault, printable};
use crate::error::{Error, Result};
use crate::format::{E4M3_MAX, E4M3_NAN, MIN_GLOBAL_SCALE, e4m3_decode, e4m3_encode, is_power_of_two};
use serde::Serialize;

/// What the block scales of some tensors have in common.
#[derive(Debug, Clone, Serialize)]
pub struct BlockScales {
    /// Is each a power of two, and equal for the two blocks that were one block of 32?
    pub lossless_cast: bool,
    /// All block scales.
    pub num_blocks: u64,
    /// Those at 448, the largest.
    #[serde(rename = "blocks_at_max")]
    pub num_at_max: u64,
    /// Tensors in which every scale is 0.
    pub all_zero: Vec<String>,
}

impl Default for BlockScales {
    fn default() -> Self {
        BlockScales { lossless_cast: true, num_blocks: 0, num_at_max: 0, all_zero: Vec::new() }
    }
}

impl BlockScales {
    /// Of one tensor `[rows, cols / 16]`; refuses one that is NaN or negative.
    pub fn scan(files: &Files, piece: &Piece<'_>) -> Result<Self> {
        let row_len = piece.row_len;
        let mut lossless_cast = row_len.is_multiple_of(2);
        let (mut num_at_max, mut num_zero) = (0, 0);
        piece.scan(files, |offset, bytes| {
            check_block_scales(piece, offset, bytes)?;
            num_at_max += bytes.iter().filter(|bits| **bits == e4m3_encode(E4M3_MAX)).count() as u64;
            num_zero += bytes.iter().filter(|bits| **bits == 0).count() as u64;
            lossless_cast &= bytes.chunks(2).all(|pair| pair[0] == pair[pair.len() - 1] && is_power_of_two(pair[0]));
            Ok(())
        })?;
        let all_zero = if num_zero == piece.len { vec![printable(&piece.label)] } else { Vec::new() };
        Ok(BlockScales { lossless_cast, num_blocks: piece.len, num_at_max, all_zero })
    }

    /// Of both.
    pub fn merge(mut self, other: BlockScales) -> Self {
        self.lossless_cast &= other.lossless_cast;
        self.num_blocks += other.num_blocks;
        self.num_at_max += other.num_at_max;
        self.all_zero.extend(other.all_zero);
        self
    }
}

/// Refuse a NaN or a negative among scales of a piece, from byte `offset` of it on.
pub fn check_block_scales(piece: &Piece<'_>, offset: u64, bytes: &[u8]) -> Result<()> {
    // One comparison finds NaN (0x7f) and everything negative (0x80 and above, a second NaN included).
    match bytes.iter().position(|bits| *bits >= E4M3_NAN) {
        Some(at) => Err(refuse_block_scale(&piece.label, bytes[at], offset + at as u64, piece.row_len)),
        None => Ok(()),
    }
}

fn refuse_block_scale(name: &str, bits: u8, at: u64, row_len: u64) -> Error {
    fault(
        format_args!("{name}[{}, {}]", at / row_len, at % row_len),
        format_args!("{} (byte {bits:#04x})", e4m3_decode(bits)),
        "a block scale must be from 0 to 448 (bytes 0x00 to 0x7e)",
        "Export the checkpoint again.",
    )
}

/// The multiplier that decodes, out of the stored one; refuses what is NaN, infinite or not positive.
pub fn weight_global_scale(name: &str, stored: f32, inverse: bool) -> Result<f32> {
    decode_direction(stored, inverse).ok_or_else(|| {
        let stored_as = if inverse { "1 / scale" } else { "scale" };
        fault(
            name,
            stored,
            format_args!(
                "a global scale, stored as {stored_as}, must be finite and at least {MIN_GLOBAL_SCALE:e} (2^-110)"
            ),
            "Export the checkpoint again.",
        )
    })
}

/// A usable global scale in decode direction.
pub(super) fn decode_direction(stored: f32, inverse: bool) -> Option<f32> {
    let scale = if inverse { 1.0 / stored } else { stored };
    (stored.is_finite() && scale.is_finite() && scale >= MIN_GLOBAL_SCALE).then_some(scale)
}
