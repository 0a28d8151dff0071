// SPDX-License-Identifier: Apache-2.0
//! The block quantiser: 16 values to 16 e2m1 codes and one e4m3 scale.

use super::{BLOCK_SIZE, E2M1_MAX, E4M3_MAX, e2m1_decode, e2m1_encode, e4m3_decode, e4m3_encode};
use crate::error::{Error, Result};

/// The smallest global scale accepted: its reciprocal over the smallest block scale (2^-9) is still finite in f32.
pub const MIN_GLOBAL_SCALE: f32 = f32::from_bits((127 - 110) << 23); // 2^-110

/// What quantising met; counted, never an error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockReport {
    /// Blocks whose scale would have passed 448.
    pub saturated_blocks: u64,
    /// NaN or infinite inputs.
    pub nonfinite_values: u64,
}

impl BlockReport {
    /// Add another report to this one.
    pub fn merge(&mut self, other: BlockReport) {
        self.saturated_blocks += other.saturated_blocks;
        self.nonfinite_values += other.nonfinite_values;
    }

    /// Did anything happen that is worth telling?
    pub fn is_clean(&self) -> bool {
        *self == BlockReport::default()
    }
}

/// A global scale, turned round for encoding.
#[derive(Debug, Clone, Copy)]
pub struct QuantScale {
    /// `1 / global_scale`
    encode: f32,
    /// `encode / 6`: an amax of 6 quanta fills a block.
    encode_sixth: f32,
}

impl QuantScale {
    /// From the multiplier that decodes; it must have passed [`check_global_scale`].
    pub fn from_global_scale(global_scale: f32) -> Self {
        let encode = 1.0 / global_scale;
        QuantScale { encode, encode_sixth: encode / E2M1_MAX }
    }
}

/// Refuse a global scale that is not finite, not positive, or so small that its reciprocal overflows.
pub fn check_global_scale(name: &str, value: f32) -> Result<()> {
    if value.is_finite() && value >= MIN_GLOBAL_SCALE {
        return Ok(());
    }
    let rule = "a global scale must be finite and at least 2^-110";
    Err(Error::argument(name, value, rule, "Recalibrate the model, or use mode bf16, which needs no input scale."))
}

/// The static input scale for a calibrated amax: `amax / (6 * 448)`, held at [`MIN_GLOBAL_SCALE`] or above.
pub fn input_scale_from_amax(amax: f32) -> f32 {
    (amax / (E2M1_MAX * E4M3_MAX)).max(MIN_GLOBAL_SCALE)
}

/// The global scale of a row in the dynamic policy, from its finite values; 1 for a row of zeros.
pub fn dynamic_global_scale(row: &[f32]) -> f32 {
    let amax = finite_amax(row);
    if amax == 0.0 { 1.0 } else { input_scale_from_amax(amax) }
}

/// The largest finite magnitude; 0 if there is none.
pub fn finite_amax(values: &[f32]) -> f32 {
    values.iter().map(|v| v.abs()).filter(|a| a.is_finite()).fold(0.0, f32::max)
}

/// Quantise one block; returns its e4m3 scale and what happened.
///
/// ```text
/// scale = e4m3(amax * ((1 / g) / 6))        saturating at 448
/// code  = e2m1(x * ((1 / g) / scale))       ties to even, saturating at 6; factor 0 where scale is 0
/// ```
///
/// Each operation rounds once to f32. The order is part of the format. A NaN gives the block the scale NaN, so
/// that it cannot hide; an infinity saturates; both are counted.
pub fn quantize_block(x: &[f32; BLOCK_SIZE], scale: QuantScale, codes: &mut [u8; BLOCK_SIZE / 2]) -> (u8, BlockReport) {
    let amax = x.iter().map(|v| v.abs()).fold(0.0, f32::max); // f32::max passes over NaN
    let has_nan = x.iter().any(|v| v.is_nan());
    let wanted = if has_nan { f32::NAN } else { amax * scale.encode_sixth };
    let block_scale = e4m3_encode(wanted);
    let decoded = e4m3_decode(block_scale);
    let factor = if decoded == 0.0 { 0.0 } else { scale.encode / decoded };
    for (byte, pair) in codes.iter_mut().zip(x.chunks_exact(2)) {
        *byte = e2m1_encode(pair[0] * factor) | (e2m1_encode(pair[1] * factor) << 4);
    }
    let report = BlockReport {
        saturated_blocks: u64::from(wanted > E4M3_MAX),
        nonfinite_values: x.iter().filter(|v| !v.is_finite()).count() as u64,
    };
    (block_scale, report)
}

/// Quantise a row of `n * 16` values; `codes` gets `n * 8` bytes, `put_scale(i, scale)` each block's scale.
pub fn quantize_row(
    x: &[f32],
    scale: QuantScale,
    codes: &mut [u8],
    mut put_scale: impl FnMut(usize, u8),
) -> BlockReport {
    let (blocks, _) = x.as_chunks::<BLOCK_SIZE>();
    let (packed, _) = codes.as_chunks_mut::<{ BLOCK_SIZE / 2 }>();
    let mut report = BlockReport::default();
    for (i, (block, packed)) in blocks.iter().zip(packed).enumerate() {
        let (block_scale, seen) = quantize_block(block, scale, packed);
        put_scale(i, block_scale);
        report.merge(seen);
    }
    report
}

/// Decode a row of linear-order NVFP4: `(e2m1 * block_scale) * global_scale`; the first product is exact.
pub fn dequantize_row(codes: &[u8], block_scales: &[u8], global_scale: f32, out: &mut [f32]) {
    for ((out, codes), scale) in out.chunks_mut(BLOCK_SIZE).zip(codes.chunks(BLOCK_SIZE / 2)).zip(block_scales) {
        let block_scale = e4m3_decode(*scale);
        for (pair, byte) in out.chunks_mut(2).zip(codes) {
            pair[0] = e2m1_decode(*byte) * block_scale * global_scale;
            pair[1] = e2m1_decode(*byte >> 4) * block_scale * global_scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quantize(x: &[f32; 16], global_scale: f32) -> ([u8; 8], u8, BlockReport) {
        let mut codes = [0; 8];
        let (scale, report) = quantize_block(x, QuantScale::from_global_scale(global_scale), &mut codes);
        (codes, scale, report)
    }

    #[test]
    fn live_amax_above_the_calibrated_one_saturates_and_is_counted() {
        // q_a_proj of a real checkpoint: input_scale 0.00025141 (amax 0.676) against activations of amax 8.
        let mut x = [0.1; 16];
        x[3] = -8.0;
        let (codes, scale, report) = quantize(&x, 0.000_251_41);
        assert_eq!(e4m3_decode(scale), 448.0);
        assert_eq!(e2m1_decode(codes[1] >> 4), -6.0);
        assert_eq!(report, BlockReport { saturated_blocks: 1, nonfinite_values: 0 });
    }

    #[test]
    fn nan_makes_its_block_nan_and_infinity_saturates() {
        let mut x = [1.0; 16];
        x[0] = f32::NAN;
        let (_, scale, report) = quantize(&x, 1.0);
        assert!(e4m3_decode(scale).is_nan());
        assert_eq!(report.nonfinite_values, 1);
        x[0] = f32::NEG_INFINITY;
        let (codes, scale, report) = quantize(&x, 1.0);
        assert_eq!((e4m3_decode(scale), e2m1_decode(codes[0])), (448.0, -6.0));
        assert_eq!(report, BlockReport { saturated_blocks: 1, nonfinite_values: 1 });
    }

    #[test]
    fn zeros_stay_zeros() {
        let (codes, scale, report) = quantize(&[0.0; 16], MIN_GLOBAL_SCALE);
        assert_eq!((codes, scale), ([0; 8], 0));
        assert!(report.is_clean());
        assert_eq!(dynamic_global_scale(&[0.0; 32]), 1.0);
    }

    proptest! {
        #[test]
        fn finite_in_gives_finite_out_and_error_within_a_quantum(
            x in prop::array::uniform16(-1e4f32..1e4), exponent in -20i32..4
        ) {
            let global_scale = 2f32.powi(exponent);
            let (codes, scale, report) = quantize(&x, global_scale);
            let mut y = [0.0; 16];
            dequantize_row(&codes, &[scale], global_scale, &mut y);
            prop_assert_eq!(report.nonfinite_values, 0);
            for (x, y) in x.iter().zip(y) {
                prop_assert!(y.is_finite());
                // Half the widest e2m1 gap (4 to 6), and what rounding the scale to 4 bits may clip off 6.
                let quantum = e4m3_decode(scale).max(2f32.powi(-9)) * global_scale;
                if report.saturated_blocks == 0 {
                    prop_assert!((x - y).abs() <= quantum * 1.4, "{} {} {}", x, y, quantum);
                }
            }
        }

        #[test]
        fn quantising_what_was_dequantised_changes_nothing(
            codes in prop::array::uniform8(0u8..), scale in 8u8..0x7f, exponent in -60i32..20
        ) {
            // Only where some code is ±6: otherwise the amax, and with it the scale, is a smaller one.
            let mut codes = codes;
            codes[0] = (codes[0] & 0xf0) | 7;
            let global_scale = 2f32.powi(exponent);
            let mut x = [0.0; 16];
            dequantize_row(&codes, &[scale], global_scale, &mut x);
            prop_assert_eq!(quantize(&x, global_scale), (codes, scale, BlockReport::default()));
        }
    }
}
