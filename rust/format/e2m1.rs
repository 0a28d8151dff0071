// SPDX-License-Identifier: Apache-2.0
//! e2m1: sign, two exponent bits, one mantissa bit. No infinity, no NaN, but a negative zero.

/// The largest magnitude.
pub const E2M1_MAX: f32 = 6.0;

/// Value of each 4-bit code.
pub const E2M1_VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Value of a code; only its low four bits count.
pub fn e2m1_decode(code: u8) -> f32 {
    E2M1_VALUES[usize::from(code & 15)]
}

/// The nearest code, ties to the even code, saturating at ±6; NaN becomes +6, as PTX `cvt.rn.satfinite.e2m1x2`.
///
/// The code is the number of midpoints below the magnitude. A tie goes up where the code above is even.
pub fn e2m1_encode(x: f32) -> u8 {
    if x.is_nan() {
        return 7;
    }
    let a = x.abs();
    let magnitude = u8::from(a > 0.25)
        + u8::from(a >= 0.75)
        + u8::from(a > 1.25)
        + u8::from(a >= 1.75)
        + u8::from(a > 2.5)
        + u8::from(a >= 3.5)
        + u8::from(a > 5.0);
    magnitude | (u8::from(x.is_sign_negative()) << 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_a_round_trip() {
        for code in 0..16 {
            assert_eq!(e2m1_encode(e2m1_decode(code)), code);
        }
    }

    #[test]
    fn midpoints_go_to_the_even_code_and_their_neighbours_to_the_nearest() {
        for code in 0..7u8 {
            let midpoint = (e2m1_decode(code) + e2m1_decode(code + 1)) / 2.0;
            let even = code + (code & 1);
            for sign in [0, 8] {
                let x = if sign == 0 { midpoint } else { -midpoint };
                assert_eq!(e2m1_encode(x), even | sign);
                assert_eq!(e2m1_encode(x.next_down()), if sign == 0 { code } else { (code + 1) | 8 });
                assert_eq!(e2m1_encode(x.next_up()), if sign == 0 { code + 1 } else { code | 8 });
            }
        }
    }

    #[test]
    fn extremes_saturate() {
        assert_eq!(e2m1_encode(f32::INFINITY), 7);
        assert_eq!(e2m1_encode(f32::NEG_INFINITY), 15);
        assert_eq!(e2m1_encode(f32::NAN), 7);
        assert_eq!(e2m1_encode(-0.0), 8);
    }
}
