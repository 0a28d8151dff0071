// SPDX-License-Identifier: Apache-2.0
//! Which weights mode fp8 may take: those that are exact in e4m3, with one power of two factored out of a part.

use super::is_power_of_two;
use crate::error::{Error, Result};
use crate::shape::RowOrder;

/// Largest block scale over smallest, as an exponent of two, that mode fp8 allows in a part.
///
/// With the smallest shifted to 2^-5, the largest is 2^6 at most, and e2m1 times a block scale runs from 0.5 * 2^-5 to
/// 6 * 2^6: e4m3's normal values, from 2^-6 to 448.
pub const MAX_SCALE_SPAN: i32 = 11;

/// A matrix of one expert that has one output factor. w13 is two of them, whichever of them comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Part {
    Gate,
    Up,
    Down,
}

impl Part {
    /// Its block scales, as errors name them: `w13_block_scale[3] (gate)`.
    pub(super) fn name(self, expert: usize) -> String {
        match self {
            Part::Gate => format!("w13_block_scale[{expert}] (gate)"),
            Part::Up => format!("w13_block_scale[{expert}] (up)"),
            Part::Down => format!("w2_block_scale[{expert}]"),
        }
    }
}

/// What mode fp8 asks of the block scales of a part. Those that are 0 count in `num_scales` only: their blocks are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScaleSpan {
    /// All block scales.
    pub num_scales: u64,
    /// Those that are neither 0 nor a power of two.
    pub not_powers: u64,
    /// Exponent of two of the smallest that is not 0, rounded down; from -9 on. `i32::MAX` if all are 0.
    pub smallest: i32,
    /// The same of the largest; up to 8. `i32::MIN` if all are 0.
    pub largest: i32,
}

impl Default for ScaleSpan {
    fn default() -> Self {
        ScaleSpan { num_scales: 0, not_powers: 0, smallest: i32::MAX, largest: i32::MIN }
    }
}

impl ScaleSpan {
    /// Of e4m3 bytes that are finite and not negative.
    pub fn of(block_scales: &[u8]) -> Self {
        let mut span = ScaleSpan { num_scales: block_scales.len() as u64, ..ScaleSpan::default() };
        // Bytes order as their values do, so that exponents are taken only once. 0 wraps round to the largest byte.
        let (mut smallest, mut largest) = (u8::MAX, 0);
        for piece in block_scales.chunks(255) {
            let mut not_powers = 0u8; // of a piece, so that all runs in vectors of bytes
            for bits in piece {
                not_powers += u8::from((*bits != 0) & !is_power_of_two(*bits));
                smallest = smallest.min(bits.wrapping_sub(1));
                largest = largest.max(*bits);
            }
            span.not_powers += u64::from(not_powers);
        }
        if largest > 0 {
            (span.smallest, span.largest) = (exponent(smallest + 1), exponent(largest));
        }
        span
    }

    /// Of both.
    pub fn and(self, other: ScaleSpan) -> Self {
        ScaleSpan {
            num_scales: self.num_scales + other.num_scales,
            not_powers: self.not_powers + other.not_powers,
            smallest: self.smallest.min(other.smallest),
            largest: self.largest.max(other.largest),
        }
    }

    /// Refuse a part of a local expert that is not exact in e4m3.
    pub fn check(self, expert: usize, part: Part) -> Result<()> {
        let remedy = "Use mode bf16, which is exact for any weights. To have them rounded, set fp8_max_error.";
        if self.not_powers > 0 {
            let value = format!("no power of two in {} of {} places", self.not_powers, self.num_scales);
            let rule = "mode fp8 needs powers of two (MXFP4 casts have them), because weights must be exact in e4m3";
            return Err(Error::argument(part.name(expert), value, rule, remedy));
        }
        let span = self.largest.saturating_sub(self.smallest);
        if span > MAX_SCALE_SPAN {
            let value = format!("2^{} to 2^{}, a factor of 2^{span}", self.smallest, self.largest);
            let rule = format!("mode fp8 allows a factor of 2^{MAX_SCALE_SPAN}, because weights must be exact in e4m3");
            return Err(Error::argument(part.name(expert), value, rule, remedy));
        }
        Ok(())
    }
}

/// Refuse local experts that are not exact in e4m3: of each the spans of w13's projections, by the places that their
/// order gives them, and of w2.
pub fn check_scale_spans(experts: impl Iterator<Item = Vec<ScaleSpan>>, order: RowOrder) -> Result<()> {
    for (expert, spans) in experts.enumerate() {
        for (part, span) in parts_of(order).iter().copied().zip(spans) {
            span.check(expert, part)?;
        }
    }
    Ok(())
}

/// The matrices of an expert: w13's projections by the places that their order gives them, then w2.
pub const fn parts_of(order: RowOrder) -> &'static [Part] {
    match order {
        RowOrder::Plain => &[Part::Up, Part::Down],
        RowOrder::GateFirst | RowOrder::Interleaved => &[Part::Gate, Part::Up, Part::Down],
        RowOrder::UpFirst => &[Part::Up, Part::Gate, Part::Down],
    }
}

/// Exponent of two of a positive finite byte, rounded down.
pub(super) const fn exponent(bits: u8) -> i32 {
    let normal = (bits >> 3) as i32;
    if normal > 0 { normal - 7 } else { bits.ilog2() as i32 - 9 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{E2M1_VALUES, e4m3_decode, e4m3_encode};

    const FINITE: std::ops::Range<u8> = 0..0x7f;

    #[test]
    fn every_byte_is_judged_by_its_value() {
        for bits in FINITE {
            let value = e4m3_decode(bits);
            let span = ScaleSpan::of(&[0, bits]);
            assert_eq!(span.num_scales, 2);
            if bits == 0 {
                assert_eq!(span, ScaleSpan { num_scales: 2, ..ScaleSpan::default() });
                continue;
            }
            let exponent = value.log2().floor() as i32;
            assert_eq!((span.smallest, span.largest), (exponent, exponent), "{value}");
            assert_eq!(span.not_powers == 0, value == 2f32.powi(exponent), "{value}");
        }
    }

    /// The rule itself: allowed is what one power of two, taken out of the part, makes exact and normal in e4m3.
    #[test]
    fn allowed_pairs_of_scales_are_those_whose_weights_are_exact_in_e4m3() {
        let exact = |smallest: u8, scale: u8| {
            E2M1_VALUES.iter().all(|value| {
                let weight = value * e4m3_decode(scale) / e4m3_decode(smallest) * 2f32.powi(-5);
                e4m3_decode(e4m3_encode(weight)) == weight && (weight == 0.0 || weight.abs() >= 2f32.powi(-6))
            })
        };
        let powers = || FINITE.filter(|bits| is_power_of_two(*bits));
        assert_eq!(powers().count(), 18);
        for small in powers() {
            for large in powers().filter(|large| *large >= small) {
                let allowed = ScaleSpan::of(&[large, 0, small]).check(0, Part::Down).is_ok();
                assert_eq!(allowed, exact(small, small) && exact(small, large), "{small:#x} {large:#x}");
            }
        }
    }

    #[test]
    fn more_than_a_byte_counts_are_counted() {
        assert_eq!(ScaleSpan::of(&[0x39; 1000]).not_powers, 1000);
    }

    #[test]
    fn refusals_name_the_place_the_numbers_and_the_remedy() {
        let not_powers = ScaleSpan::of(&[0x38, 0x39, 0, 0x3f, 0x40]).check(7, Part::Up).unwrap_err().to_string();
        for text in ["w13_block_scale[7] (up) is no power of two in 2 of 5 places", "mode bf16"] {
            assert!(not_powers.contains(text), "{not_powers}");
        }
        let too_wide = ScaleSpan::of(&[0x01, 0, 0x78]).check(0, Part::Down).unwrap_err().to_string();
        for text in ["w2_block_scale[0] is 2^-9 to 2^8, a factor of 2^17", "2^11", "mode bf16"] {
            assert!(too_wide.contains(text), "{too_wide}");
        }
        for fine in [&[][..], &[0, 0], &[0x01, 0x48], &[0, 0x78]] {
            assert_eq!(ScaleSpan::of(fine).check(0, Part::Gate), Ok(()), "{fine:?}");
        }
    }
}
