// SPDX-License-Identifier: Apache-2.0
//! Weights that are rounded to e4m3, so that mode fp8 may take any: the law, and how far it moves them.
//!
//! A matrix with an output factor of its own has a *floor*, a power of two that follows from its largest block scale. With
//! the floor at 2^-5, all that is stored are e4m3's normal values, from 0.5 * 2^-5 to 448:
//!
//! ```text
//! block_scale >= floor    weight = e2m1 * block_scale, rounded to 4 significant bits: nearest, ties to even
//! block_scale <  floor    weight = floor * e2m1 of (e2m1 * block_scale / floor): nearest, ties to the even code
//! ```
//!
//! Block scales that are powers of two above the floor change nothing. Else only 1.5, 3 and 6 times a scale are rounded.

use super::scale_span::{MAX_SCALE_SPAN, exponent};

/// Weights of a magnitude code, for each block scale that is not negative; of NaN they are NaN.
pub type RoundedWeights = [[f32; 8]; 0x80];

/// The magnitudes in halves.
const HALVES: [u32; 8] = [0, 1, 2, 3, 4, 6, 8, 12];

/// The smallest exponent of a block scale: no floor below it changes anything.
const LEAST: i32 = -9;

/// Above every floor: the largest scale is 2^8 * 1.75.
const FLOORS: usize = 8;

/// How the weights of a matrix are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounding {
    /// The smallest power of two that a stored block scale may have, as an exponent.
    floor: i32,
}

impl Rounding {
    /// Of the matrix whose largest block scale this is; 0 if all are.
    pub const fn of(largest: u8) -> Self {
        if largest == 0 {
            return Rounding { floor: LEAST };
        }
        let (exponent, mantissa) = scale_parts(largest);
        // 6 times the largest is 448 at most where its mantissa is 0 or 1; else there is a binade less.
        let floor = exponent - MAX_SCALE_SPAN + (mantissa > 1) as i32;
        Rounding { floor: if floor < LEAST { LEAST } else { floor } }
    }

    /// Of the largest among these.
    pub fn of_scales<'a>(rows: impl Iterator<Item = &'a [u8]>) -> Self {
        Rounding::of(rows.map(|row| row.iter().fold(0, |largest, scale| largest.max(*scale))).fold(0, u8::max))
    }

    /// A magnitude times a positive block scale, exact and rounded, in sixteenths of the scale's power of two.
    pub const fn products(self, code: u8, block_scale: u8) -> [u32; 2] {
        let (exponent, mantissa) = scale_parts(block_scale);
        let product = HALVES[(code & 7) as usize] * (8 + mantissa);
        let below = self.floor - exponent;
        [product, if below > 0 { at_floor(product, below) } else { four_bits(product) }]
    }

    /// All rounded weights.
    pub fn weights(self) -> &'static RoundedWeights {
        &WEIGHTS[(self.floor - LEAST) as usize]
    }
}

/// The nearest number of four significant bits, ties to even.
const fn four_bits(product: u32) -> u32 {
    let mut step = 1;
    while product >= 16 * step {
        step *= 2;
    }
    let is_even = (product / step).is_multiple_of(2);
    let half = if step > 1 && is_even { step / 2 - 1 } else { step / 2 };
    (product + half) / step * step
}

/// The nearest e2m1 magnitude times a power of two that is so many binades above these sixteenths'.
const fn at_floor(product: u32, below: i32) -> u32 {
    const MIDPOINTS: [u64; 7] = [1, 3, 5, 7, 10, 14, 20]; // in quarters
    let half = 8u64 << below;
    let mut code = 0;
    while code < 7 {
        let (twice, midpoint) = (2 * product as u64, MIDPOINTS[code] * half);
        if twice < midpoint || (twice == midpoint && code.is_multiple_of(2)) {
            break;
        }
        code += 1;
    }
    // Of a binade so far below that this would not fit, all is 0.
    if code == 0 { 0 } else { HALVES[code] << (3 + below) }
}

/// Exponent of a positive finite e4m3 byte, and its mantissa's three bits, as a normal value would have them.
const fn scale_parts(bits: u8) -> (i32, u32) {
    let exponent = exponent(bits);
    let normal = if bits >= 8 { bits as u32 } else { (bits as u32) << (-6 - exponent) };
    (exponent, normal & 7)
}

/// By floors, from [`LEAST`] on. No lock is held to make them, which a process could be forked under.
static WEIGHTS: [RoundedWeights; FLOORS] = {
    let mut all = [[[0.0; 8]; 0x80]; FLOORS];
    let mut floor = 0;
    while floor < FLOORS {
        all[floor][0x7f] = [f32::NAN; 8];
        let rounding = Rounding { floor: LEAST + floor as i32 };
        let mut scale = 1;
        while scale < 0x7f {
            let unit = f32::from_bits(((127 - 4 + exponent(scale)) as u32) << 23);
            let mut code = 0;
            while code < 8 {
                all[floor][scale as usize][code] = rounding.products(code as u8, scale)[1] as f32 * unit;
                code += 1;
            }
            scale += 1;
        }
        floor += 1;
    }
    all
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{E2M1_VALUES, e2m1_decode, e2m1_encode, e4m3_decode, e4m3_encode, is_power_of_two};

    const POSITIVE: std::ops::Range<u8> = 1..0x7f;

    /// The law in words of the format: both roundings are those of its own encoders.
    #[test]
    fn weights_are_the_nearest_e4m3_or_lie_on_the_floors_e2m1() {
        for largest in POSITIVE {
            let rounding = Rounding::of(largest);
            let top = e4m3_decode(largest).log2().floor() as i32;
            let mantissa = e4m3_decode(largest) / 2f32.powi(top);
            let floor = 2f32.powi(top - if mantissa > 1.125 { 10 } else { 11 });
            for scale in 1..=largest {
                for code in 0..8u8 {
                    let (exact, weight) =
                        (e2m1_decode(code) * e4m3_decode(scale), rounding.weights()[scale as usize][code as usize]);
                    let wanted = if e4m3_decode(scale) >= floor {
                        let stored = exact / floor * 2f32.powi(-5);
                        assert!(
                            stored == 0.0 || (2f32.powi(-6)..=464.0).contains(&stored),
                            "normal, and not saturated"
                        );
                        e4m3_decode(e4m3_encode(stored)) * floor * 2f32.powi(5)
                    } else {
                        e2m1_decode(e2m1_encode(exact / floor)) * floor
                    };
                    assert_eq!(weight, wanted, "largest {largest:#x}, scale {scale:#x}, code {code}");
                }
            }
        }
    }

    #[test]
    fn what_is_exact_today_stays_so() {
        let powers = || POSITIVE.filter(|scale| is_power_of_two(*scale));
        for largest in powers() {
            let weights = Rounding::of(largest).weights();
            for scale in powers().filter(|s| *s <= largest && exponent(largest) - exponent(*s) <= MAX_SCALE_SPAN) {
                let exact = E2M1_VALUES[..8].iter().map(|value| value * e4m3_decode(scale));
                assert!(exact.eq(weights[scale as usize]), "{scale:#x} below {largest:#x}");
            }
        }
    }

    #[test]
    fn products_are_the_weights() {
        for (largest, scale, code) in [(0x7e, 0x01, 7), (0x7e, 0x39, 3), (0x79, 0x10, 6), (0x30, 0x2f, 5)] {
            let rounding = Rounding::of(largest);
            let [exact, rounded] =
                rounding.products(code, scale).map(|units| units as f32 * 2f32.powi(exponent(scale) - 4));
            assert_eq!(exact, e2m1_decode(code) * e4m3_decode(scale));
            assert_eq!(rounded, rounding.weights()[scale as usize][code as usize]);
        }
    }
}
