// SPDX-License-Identifier: Apache-2.0
//! The row quantiser of mode fp8: a row of activations to e4m3 codes and one scale.

use super::{BlockReport, E4M3_MAX, MIN_GLOBAL_SCALE, e4m3_encode, finite_amax};

/// What decodes a row in mode fp8, from its finite values: `amax / 448`, at least 2^-110; 1 for a row of zeros.
pub fn fp8_row_scale(row: &[f32]) -> f32 {
    let amax = finite_amax(row);
    if amax == 0.0 { 1.0 } else { (amax / E4M3_MAX).max(MIN_GLOBAL_SCALE) }
}

/// Quantise a row to as many e4m3 codes; returns the scale that decodes it, and what happened.
///
/// ```text
/// scale = fp8_row_scale(x)
/// code  = e4m3(x * (1 / scale))       ties to even, saturating at 448
/// ```
///
/// Each operation rounds once to f32. A NaN stays NaN (0x7F), an infinity saturates; both are counted. A finite value
/// saturates only by what rounding the scale lifts it above 448, so that nothing else is to be told.
pub fn quantize_row_fp8(x: &[f32], codes: &mut [u8]) -> (f32, BlockReport) {
    let scale = fp8_row_scale(x);
    let encode = 1.0 / scale;
    let mut nonfinite_values = 0;
    for (code, value) in codes.iter_mut().zip(x) {
        *code = e4m3_encode(value * encode);
        nonfinite_values += u64::from(!value.is_finite());
    }
    (scale, BlockReport { saturated_blocks: 0, nonfinite_values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::e4m3_decode;
    use half::bf16;
    use proptest::prelude::*;

    fn quantize(x: &[f32]) -> (f32, Vec<u8>, u64) {
        let mut codes = vec![0xff; x.len()];
        let (scale, report) = quantize_row_fp8(x, &mut codes);
        assert_eq!(report.saturated_blocks, 0);
        (scale, codes, report.nonfinite_values)
    }

    #[test]
    fn the_largest_value_takes_the_largest_code() {
        assert_eq!(quantize(&[1.0, -2.0, 0.0, -0.0]), (2.0 / 448.0, vec![0x76, 0xfe, 0, 0x80], 0));
    }

    #[test]
    fn rows_of_zeros_and_of_the_smallest_values() {
        assert_eq!(quantize(&[0.0; 5]), (1.0, vec![0; 5], 0));
        let smallest = bf16::from_bits(1).to_f32(); // far below what 2^-110 resolves
        assert_eq!(quantize(&[smallest, -smallest]), (MIN_GLOBAL_SCALE, vec![0, 0x80], 0));
    }

    #[test]
    fn nan_stays_nan_and_infinities_saturate_and_neither_sets_the_scale() {
        let row = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 448.0];
        assert_eq!(quantize(&row), (1.0, vec![0x7f, 0x7f, 0x7e, 0xfe, 0x7e], 4));
        assert_eq!(quantize(&row[..4]), (1.0, vec![0x7f, 0x7f, 0x7e, 0xfe], 4));
    }

    #[test]
    fn every_code_survives_a_round_trip() {
        for exponent in [-100, -8, 0, 20, 118] {
            let scale = 2f32.powi(exponent);
            let codes: Vec<u8> = (0..=255).filter(|code| code & 0x7f != 0x7f).collect();
            let row: Vec<f32> = codes.iter().map(|code| e4m3_decode(*code) * scale).collect();
            assert_eq!(quantize(&row), (scale, codes, 0));
        }
    }

    proptest! {
        #[test]
        fn error_is_within_half_a_quantum(
            values in prop::collection::vec((-2f32..2.0, -15i32..0), 1..80), exponent in -80i32..100
        ) {
            let row: Vec<f32> = values.iter().map(|(value, small)| value * 2f32.powi(small + exponent)).collect();
            let (scale, codes, nonfinite) = quantize(&row);
            prop_assert_eq!(nonfinite, 0);
            for (value, code) in row.iter().zip(codes) {
                let error = (f64::from(*value) - f64::from(e4m3_decode(code)) * f64::from(scale)).abs();
                // 4 significant bits, or units of 2^-9; and what two f32 roundings add.
                let bound = (f64::from(value.abs()) / 16.0).max(f64::from(scale) / 1024.0) * 1.0001;
                prop_assert!(error <= bound, "{} {} {}", value, code, scale);
            }
        }

        #[test]
        fn any_bf16_row_has_a_finite_scale_and_codes_nan_only_where_it_is_nan(
            bits in prop::collection::vec(any::<u16>(), 1..40)
        ) {
            let row: Vec<f32> = bits.iter().map(|bits| bf16::from_bits(*bits).to_f32()).collect();
            let (scale, codes, nonfinite) = quantize(&row);
            prop_assert!(scale.is_finite() && scale >= MIN_GLOBAL_SCALE);
            prop_assert_eq!(nonfinite, row.iter().filter(|value| !value.is_finite()).count() as u64);
            for (value, code) in row.iter().zip(codes) {
                prop_assert_eq!(value.is_nan(), code & 0x7f == 0x7f);
                prop_assert!(value.is_nan() || value.is_sign_negative() == (code & 0x80 != 0));
            }
        }
    }
}
