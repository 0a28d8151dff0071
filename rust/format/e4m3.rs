// SPDX-License-Identifier: Apache-2.0
//! e4m3, the "fn" variant: no infinity, 0x7F and 0xFF are NaN, 448 is the largest value, 2^-9 the smallest.

/// The largest magnitude.
pub const E4M3_MAX: f32 = 448.0;

/// The NaN that encoding writes.
pub const E4M3_NAN: u8 = 0x7f;

/// Value of a byte; NaN for 0x7F and 0xFF.
pub fn e4m3_decode(bits: u8) -> f32 {
    let magnitude = bits & 0x7f;
    if magnitude == E4M3_NAN {
        return f32::NAN;
    }
    let (exponent, mantissa) = (i32::from(magnitude >> 3), f32::from(magnitude & 7));
    // Subnormals have no leading one and the exponent of the first normal.
    let value = if exponent == 0 { mantissa * 2f32.powi(-9) } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) };
    if bits & 0x80 != 0 { -value } else { value }
}

/// The nearest byte, ties to even, saturating at ±448 (never to NaN); NaN gives 0x7F.
pub fn e4m3_encode(x: f32) -> u8 {
    if x.is_nan() {
        return E4M3_NAN;
    }
    let sign = u8::from(x.is_sign_negative()) << 7;
    let a = x.abs();
    if a >= E4M3_MAX {
        return sign | 0x7e;
    }
    if a < 2f32.powi(-6) {
        // Subnormal: count units of 2^-9. Adding 2^23 makes f32's own ties-to-even round to whole units;
        // 8 units are the first normal, and its byte is 8 as well.
        let units = (a * 2f32.powi(9) + 2f32.powi(23)) - 2f32.powi(23);
        return sign | units as u8;
    }
    // Normal: keep 3 of f32's 23 mantissa bits; half a unit, less one where the kept part is even, rounds ties to
    // even. A carry moves into the exponent by itself. 448 was taken above, so no carry reaches NaN.
    let bits = a.to_bits();
    let rounded = bits + 0x7_ffff + ((bits >> 20) & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

/// Is this byte a positive power of two? Block scales of lossless-cast (MXFP4) checkpoints all are.
pub fn is_power_of_two(bits: u8) -> bool {
    // What a power of two has not: subnormal a second bit, normal a mantissa. Without branches, for billions of scales.
    let excess = if bits < 8 { bits & bits.wrapping_sub(1) } else { bits & 7 };
    (excess == 0) & (bits != 0) & (bits < 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_a_round_trip() {
        for bits in 0..=255u8 {
            let value = e4m3_decode(bits);
            let again = e4m3_encode(value);
            if value.is_nan() { assert_eq!(again, E4M3_NAN) } else { assert_eq!(again, bits, "{value}") }
        }
    }

    #[test]
    fn midpoints_go_to_the_even_byte_and_their_neighbours_to_the_nearest() {
        for bits in 0..0x7eu8 {
            let midpoint = (e4m3_decode(bits) + e4m3_decode(bits + 1)) / 2.0;
            assert_eq!(e4m3_encode(midpoint), bits + (bits & 1), "tie above {bits:#x}");
            assert_eq!(e4m3_encode(midpoint.next_down()), bits);
            assert_eq!(e4m3_encode(midpoint.next_up()), bits + 1);
            assert_eq!(e4m3_encode(-midpoint), 0x80 | (bits + (bits & 1)));
        }
    }

    #[test]
    fn extremes_saturate_and_nan_stays_nan() {
        for x in [448.0, 464.0, 465.0, 1e30, f32::INFINITY] {
            assert_eq!(e4m3_encode(x), 0x7e);
            assert_eq!(e4m3_encode(-x), 0xfe);
        }
        assert_eq!(e4m3_encode(f32::NAN), 0x7f);
        assert_eq!(e4m3_encode(-0.0), 0x80);
        assert_eq!(e4m3_encode(f32::MIN_POSITIVE), 0);
    }

    #[test]
    fn powers_of_two_are_recognised_by_value() {
        for bits in 0..=255u8 {
            let value = e4m3_decode(bits);
            assert_eq!(is_power_of_two(bits), value > 0.0 && value.log2().fract() == 0.0, "{value}");
        }
    }

    #[test]
    fn every_product_with_e2m1_is_exact_in_bf16() {
        for code in 0..16 {
            for bits in (0..=255u8).filter(|b| !e4m3_decode(*b).is_nan()) {
                let product = crate::format::e2m1_decode(code) * e4m3_decode(bits);
                assert_eq!(half::bf16::from_f32(product).to_f32().to_bits(), product.to_bits());
            }
        }
    }
}
