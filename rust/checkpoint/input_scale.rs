// SPDX-License-Identifier: Apache-2.0
//! The input scale of a GEMM, out of one for each expert, some of which may never have been written.

use super::scales::decode_direction;
use super::text::printable;
use crate::format::{E2M1_MAX, E4M3_MAX};
use serde::Serialize;

/// Exporters write it where calibration never ran; its amax, 2688, is none that a calibration sees.
const PLACEHOLDER: f32 = 1.0;

/// A scale this many times the largest of all that are smaller is no measurement.
///
/// Experts of one layer differ by tens (a few see massive activations), sentinels and unwritten memory by thousands.
const DWARFS: f32 = 100.0;

/// The input scale of one GEMM: the maximum over all experts, because one activation row serves several of them.
///
/// An expert that calibration never reached has NaN, 0, infinity or nothing; or a placeholder, or whatever memory held.
/// Such are passed over and named, and the maximum over the others holds for all; where no expert has a usable one the
/// scale is 0: "absent".
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
    /// Scales that could decode, and are left out because they were not measured, with what they hold.
    pub left_out: Vec<String>,
    #[serde(skip)]
    seen: Vec<(String, f32)>,
}

impl InputScale {
    /// Take another expert's stored scale in.
    pub fn add(&mut self, name: String, stored: Option<f32>, inverse: bool) {
        let name = printable(name);
        let usable = |scale: &f32| (scale * E2M1_MAX * E4M3_MAX).is_finite();
        match stored.map(|stored| (stored, decode_direction(stored, inverse).filter(usable))) {
            None => self.missing.push(name),
            Some((stored, None)) => self.unusable.push(format!("{name} = {stored}")),
            Some((_, Some(scale))) => self.seen.push((name, scale)),
        }
    }

    /// When all are in: leave out what was not measured, and take the maximum over the rest.
    pub fn settle(&mut self) {
        let mut seen = std::mem::take(&mut self.seen);
        seen.retain(|(name, scale)| {
            let measured = *scale != PLACEHOLDER;
            if !measured {
                self.left_out.push(format!("{name} = {scale}, a placeholder"));
            }
            measured
        });
        seen.sort_by(|a, b| a.1.total_cmp(&b.1));
        // Fewer than half, above a gap: they are the exception.
        let gap = (seen.len() / 2 + 1..seen.len()).find(|at| seen[*at].1 > DWARFS * seen[at - 1].1);
        if let Some(gap) = gap {
            let largest = seen[gap - 1].1;
            let text =
                |(name, scale): (String, f32)| format!("{name} = {scale:e}; the largest of all others is {largest:e}");
            self.left_out.extend(seen.split_off(gap).into_iter().map(text));
        }
        self.num_usable = seen.len();
        self.min = seen.first().map_or(0.0, |(_, scale)| *scale);
        self.max = seen.last().map_or(0.0, |(_, scale)| *scale);
    }

    /// The amax that calibration saw: `scale * 6 * 448`.
    pub fn calibrated_amax(&self) -> f32 {
        self.max * E2M1_MAX * E4M3_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(scales: &[f32]) -> InputScale {
        let mut all = InputScale::default();
        for (at, scale) in scales.iter().enumerate() {
            all.add(format!("s{at}"), Some(*scale), false);
        }
        all.settle();
        all
    }

    #[test]
    fn placeholders_and_giants_are_left_out_of_the_maximum() {
        let scale = settled(&[0.001, 1.0, 0.003, 0.002, 1e6, f32::MAX, f32::NAN]);
        assert_eq!((scale.max, scale.min, scale.num_usable), (0.003, 0.001, 3));
        assert_eq!(scale.left_out, ["s1 = 1, a placeholder", "s4 = 1e6; the largest of all others is 3e-3"]);
        assert_eq!(scale.unusable.len(), 2, "an amax beyond f32, and NaN");
        assert_eq!(settled(&[1.0, 1.0]).max, 0.0);
    }

    #[test]
    fn what_experts_do_differ_by_stays() {
        assert_eq!(settled(&[0.001, 0.002, 0.003, 0.09]).max, 0.09);
        assert_eq!(settled(&[1e-6, 0.01]).max, 0.01, "one of two is no exception");
        assert_eq!(settled(&[1e-6, 0.01, 0.02, 0.03]).max, 0.03, "nor are three of four");
        assert_eq!(settled(&[1e-7, 0.001, 0.002, 0.003, 500.0]).max, 0.003);
    }
}
