// SPDX-License-Identifier: Apache-2.0
//! MXFP4 brought to NVFP4 without loss: the codes stay, each scale becomes two block scales and a share of one factor.
//!
//! MXFP4 has the same e2m1 codes and one e8m0 scale, `2^(byte - 127)`, for [`MX_BLOCK_SIZE`] neighbours along the reduction.
//! With `2^g` the matrix's global scale, both blocks of 16 that were one get the block scale `2^(byte - 127 - g)`, exact
//! because e4m3 has the powers of two from 2^-9 to 2^8. Both formats decode to the same values, bit for bit.
//!
//! A scale counts only if one of its 32 codes is nonzero. The largest that counts becomes 2^8, so g is its exponent less 8;
//! g is at least -126, f32's smallest normal exponent, where no scale is too small. A scale that does not count becomes 0.

use super::{BLOCK_SIZE, e4m3_encode};
use crate::error::{Error, Result};
use std::fmt::Display;

/// Values that share one e8m0 scale.
pub const MX_BLOCK_SIZE: usize = 32;

/// The e8m0 byte that is no number.
pub const E8M0_NAN: u8 = 0xff;

const E8M0_BIAS: i32 = 127;
/// Exponent of e4m3's largest power of two.
const LARGEST: i32 = 8;
/// Largest scale over smallest, as an exponent of two: e4m3's powers of two run from 2^-9 to 2^8.
const MAX_SPAN: u8 = 17;
/// Exponent of the smallest normal f32.
const LEAST_GLOBAL: i32 = -126;

/// The e8m0 scales that a cast must keep, as bytes. They order as their values do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MxSpan {
    /// `u8::MAX` if there is none.
    pub smallest: u8,
    /// 0 if there is none.
    pub largest: u8,
}

impl MxSpan {
    /// Of the scales of one matrix that `counts` says must be kept; an error if any scale is NaN.
    pub fn of(name: &dyn Display, scales: &[u8], counts: impl Fn(usize) -> bool) -> Result<Self> {
        let mut span = MxSpan { smallest: u8::MAX, largest: 0 };
        for (at, scale) in scales.iter().copied().enumerate() {
            if scale == E8M0_NAN {
                let rule = "a scale must be a number (bytes 0x00 to 0xfe)";
                let value = format!("NaN (byte {scale:#04x})");
                return Err(Error::argument(format_args!("{name}[{at}]"), value, rule, "Export the checkpoint again."));
            }
            if counts(at) {
                span = MxSpan { smallest: span.smallest.min(scale), largest: span.largest.max(scale) };
            }
        }
        Ok(span)
    }

    /// Do e4m3's powers of two hold all of them under one factor?
    pub fn fits(self) -> bool {
        self.largest.saturating_sub(self.smallest) <= MAX_SPAN
    }

    /// Refuse the matrix if they do not.
    pub fn check(self, name: &dyn Display) -> Result<()> {
        if self.fits() {
            return Ok(());
        }
        let (smallest, largest) = (i32::from(self.smallest) - E8M0_BIAS, i32::from(self.largest) - E8M0_BIAS);
        Err(Error::argument(
            name,
            format_args!("2^{smallest} to 2^{largest}, a factor of 2^{}", largest - smallest),
            format_args!(
                "scales of nonzero codes must lie within a factor of 2^{MAX_SPAN} in each expert's gate, up and down matrix, \
                 to be block scales of NVFP4 without loss"
            ),
            "Run the layer with kernels for MXFP4.",
        ))
    }

    /// g, of the global scale 2^g; 0 if no scale counts.
    fn global_exponent(self) -> i32 {
        if self.smallest > self.largest { 0 } else { (i32::from(self.largest) - E8M0_BIAS - LARGEST).max(LEAST_GLOBAL) }
    }
}

/// Is any of these codes nonzero? A byte holds two, and the highest bit of each is its sign.
pub fn any_nonzero(codes: &[u8]) -> bool {
    codes.iter().fold(0, |all, byte| all | byte) & 0x77 != 0
}

/// Cast one matrix: `codes` `[rows, cols / 2]` and e8m0 `scales` `[rows, cols / 32]`, which errors call `name`, to e4m3
/// `block_scales` `[rows, cols / 16]`. Returns the global scale. A refusal leaves `block_scales` as they were.
pub fn cast_mxfp4(name: &dyn Display, codes: &[u8], scales: &[u8], block_scales: &mut [u8]) -> Result<f32> {
    debug_assert_eq!(codes.len(), scales.len() * MX_BLOCK_SIZE / 2);
    debug_assert_eq!(block_scales.len(), scales.len() * MX_BLOCK_SIZE / BLOCK_SIZE);
    let counts = |at: usize| any_nonzero(&codes[at * MX_BLOCK_SIZE / 2..][..MX_BLOCK_SIZE / 2]);
    let span = MxSpan::of(name, scales, counts)?;
    span.check(name)?;
    let global = span.global_exponent();
    for (at, (scale, pair)) in scales.iter().zip(block_scales.chunks_exact_mut(2)).enumerate() {
        let exponent = i32::from(*scale) - E8M0_BIAS - global;
        pair.fill(if counts(at) { e4m3_encode(2f32.powi(exponent)) } else { 0 });
    }
    Ok(2f32.powi(global))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{dequantize_row, e4m3_decode};

    /// One code of 1 in each block.
    fn ones(blocks: usize) -> Vec<u8> {
        (0..blocks * 16).map(|at| if at % 16 == 3 { 0x20 } else { 0x80 }).collect()
    }

    fn cast(codes: &[u8], scales: &[u8]) -> Result<(Vec<u8>, f32)> {
        let mut block_scales = vec![0x55; scales.len() * 2];
        let global = cast_mxfp4(&"w", codes, scales, &mut block_scales)?;
        Ok((block_scales, global))
    }

    /// Every pair of scales: both ends of e8m0 and of the span that e4m3 has.
    #[test]
    fn a_pair_of_scales_is_cast_exactly_or_refused_for_its_span() {
        for low in 0..E8M0_NAN {
            for high in low..E8M0_NAN {
                let cast = cast(&ones(2), &[low, high]);
                assert_eq!(cast.is_ok(), high - low <= 17, "{low} {high}");
                let Ok((block_scales, global)) = cast else { continue };
                assert!(global.is_normal(), "{low} {high}: {global}");
                for (at, scale) in [low, high].into_iter().enumerate() {
                    let value = f64::from(e4m3_decode(block_scales[2 * at])) * f64::from(global);
                    assert_eq!(value, 2f64.powi(i32::from(scale) - E8M0_BIAS), "{low} {high}");
                    assert_eq!(block_scales[2 * at], block_scales[2 * at + 1]);
                }
            }
        }
    }

    #[test]
    fn a_scale_without_nonzero_codes_constrains_nothing_and_is_0() {
        let mut codes = ones(3);
        codes[16..32].fill(0x88); // -0
        let (block_scales, global) = cast(&codes, &[127, 0, 120]).unwrap();
        assert_eq!(global, 2f32.powi(-8));
        assert_eq!(
            block_scales.iter().map(|s| e4m3_decode(*s)).collect::<Vec<_>>(),
            [256.0, 256.0, 0.0, 0.0, 2.0, 2.0]
        );
        let mut values = [1.0; 96];
        dequantize_row(&codes, &block_scales, global, &mut values);
        assert_eq!((values[7], values[96 - 32 + 7]), (1.0, 2f32.powi(-7)));
        assert!(values[32..64].iter().all(|v| v.to_bits() == (-0f32).to_bits()));
        assert_eq!(cast(&[0; 16], &[254]).unwrap(), (vec![0, 0], 1.0), "nothing counts");
    }

    #[test]
    fn refusals_name_the_place_and_the_numbers() {
        let mut codes = ones(3);
        let text = |scales: &[u8], codes: &[u8]| cast(codes, scales).unwrap_err().to_string();
        let span = text(&[100, 118, 110], &codes);
        assert!(span.contains("w is 2^-27 to 2^-9, a factor of 2^18; scales"), "{span}");
        assert!(span.contains("a factor of 2^17"), "{span}");
        codes[16..32].fill(0);
        let nan = text(&[100, 255, 110], &codes);
        assert!(nan.contains("w[1] is NaN (byte 0xff)"), "NaN, even of zeros: {nan}");
    }
}
