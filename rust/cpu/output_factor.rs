// SPDX-License-Identifier: Apache-2.0
//! What multiplies a sum of products of blocks.

/// The global scales of a row of the input and of a weight.
#[derive(Debug, Clone, Copy)]
pub struct OutputFactor {
    both: f32,
    /// 1, where the product of both scales is an f32.
    rest: f32,
}

impl OutputFactor {
    /// Of two global scales. Where their product overflows they multiply one after the other, so that a sum of 0 stays 0.
    pub fn new(input: f32, weight: f32) -> Self {
        let both = input * weight;
        if both.is_infinite() { OutputFactor { both: input, rest: weight } } else { OutputFactor { both, rest: 1.0 } }
    }

    /// A sum, decoded.
    pub fn times(self, sum: f32) -> f32 {
        sum * self.both * self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_stays_zero_and_others_are_rounded_once() {
        let (input, weight) = (f32::MAX / 2688.0, 1e10);
        let past_f32 = OutputFactor::new(input, weight);
        assert_eq!([0.0, 1.0, 1e-30].map(|sum| past_f32.times(sum)), [0.0, f32::INFINITY, 1e-30 * input * weight]);
        let (input, weight, sum) = (0.001_234_f32, 0.0567_f32, 1234.5);
        assert_eq!(OutputFactor::new(input, weight).times(sum), sum * (input * weight));
        assert!(OutputFactor::new(f32::NAN, 1.0).times(0.0).is_nan());
    }
}
