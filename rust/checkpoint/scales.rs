//! The checks on every scale of a layer, and what the scales tell.

use super::files::Files;
use super::header::Tensor;
use crate::error::{Error, Result};
use crate::format::{E2M1_MAX, E4M3_MAX, E4M3_NAN, MIN_GLOBAL_SCALE, e4m3_decode, e4m3_encode, is_power_of_two};
use serde::Serialize;

/// What the block scales of some tensors have in common.
#[derive(Debug, Clone)]
pub struct BlockScales {
    /// Is each a power of two, and equal for the two blocks that were one block of 32?
    pub lossless_cast: bool,
    /// All block scales.
    pub num_blocks: u64,
    /// Those at 448, the largest.
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
    pub fn scan(files: &Files, name: &str, tensor: &Tensor) -> Result<Self> {
        let row_len = tensor.shape.last().copied().unwrap_or(1).max(1);
        let mut lossless_cast = row_len.is_multiple_of(2);
        let (mut num_at_max, mut num_zero) = (0, 0);
        files.scan(tensor, |offset, piece| {
            // One comparison finds NaN (0x7f) and everything negative (0x80 and above, a second NaN included).
            if let Some(at) = piece.iter().position(|bits| *bits >= E4M3_NAN) {
                return Err(refuse_block_scale(name, piece[at], offset + at as u64, row_len));
            }
            num_at_max += piece.iter().filter(|bits| **bits == e4m3_encode(E4M3_MAX)).count() as u64;
            num_zero += piece.iter().filter(|bits| **bits == 0).count() as u64;
            lossless_cast &= piece.chunks(2).all(|pair| pair[0] == pair[pair.len() - 1] && is_power_of_two(pair[0]));
            Ok(())
        })?;
        let all_zero = if num_zero == tensor.len { vec![name.to_owned()] } else { Vec::new() };
        Ok(BlockScales { lossless_cast, num_blocks: tensor.len, num_at_max, all_zero })
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

fn refuse_block_scale(name: &str, bits: u8, at: u64, row_len: u64) -> Error {
    Error::checkpoint(
        format_args!("{name}[{}, {}]", at / row_len, at % row_len),
        format_args!("{} (byte {bits:#04x})", e4m3_decode(bits)),
        "a block scale must be from 0 to 448 (bytes 0x00 to 0x7e)",
        "Export the checkpoint again.",
    )
}

/// The multiplier that decodes, out of the stored one; refuses what is missing, NaN, infinite or not positive.
pub fn weight_global_scale(files: &Files, name: &str, inverse: bool) -> Result<f32> {
    let Some(stored) = files.scalar(name)? else {
        files.get(name)?; // its error says that the tensor is missing
        return Err(Error::Internal(format!("{name} is found and not found; this is a bug. Please report it.")));
    };
    decode_direction(stored, inverse).ok_or_else(|| {
        let stored_as = if inverse { "1 / scale" } else { "scale" };
        Error::checkpoint(
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
fn decode_direction(stored: f32, inverse: bool) -> Option<f32> {
    let scale = if inverse { 1.0 / stored } else { stored };
    (stored.is_finite() && scale.is_finite() && scale >= MIN_GLOBAL_SCALE).then_some(scale)
}

/// The input scale of one GEMM: the maximum over all experts, because one activation row serves several of them.
///
/// An expert that calibration never reached has NaN, 0, infinity or nothing. Such are passed over and named, and
/// the maximum over the others holds for all; where no expert has a usable one the scale is 0: "absent".
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct InputScale {
    /// Decodes; 0 if there is none.
    pub max: f32,
    /// The smallest usable one; 0 if there is none.
    pub min: f32,
    /// Number of usable ones.
    pub num_usable: usize,
    /// Tensors that are missing.
    pub missing: Vec<String>,
    /// Tensors that hold no usable scale, with what they hold.
    pub unusable: Vec<String>,
}

impl InputScale {
    /// Take another expert's tensor in.
    pub fn add(&mut self, files: &Files, name: String, inverse: bool) -> Result<()> {
        match files.scalar(&name)?.map(|stored| (stored, decode_direction(stored, inverse))) {
            None => self.missing.push(name),
            Some((stored, None)) => self.unusable.push(format!("{name} = {stored}")),
            Some((_, Some(scale))) => {
                self.min = if self.num_usable == 0 { scale } else { self.min.min(scale) };
                self.max = self.max.max(scale);
                self.num_usable += 1;
            }
        }
        Ok(())
    }

    /// The amax that calibration saw: `scale * 6 * 448`.
    pub fn calibrated_amax(&self) -> f32 {
        self.max * E2M1_MAX * E4M3_MAX
    }
}
