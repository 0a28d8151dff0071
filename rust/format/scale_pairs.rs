// SPDX-License-Identifier: Apache-2.0
//! Block scales that are equal in pairs, as a cast of MXFP4 makes them: [`MX_BLOCK_SIZE`] neighbours of a row share one.

use super::{MX_BLOCK_SIZE, Part, e4m3_decode};
use crate::error::{Error, Result};
use std::fmt::Display;

/// A row of a local expert's w13 or w2, as errors name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ScaleRow {
    pub expert: usize,
    pub part: Part,
    /// Of w13 or w2 of its expert, as they were given.
    pub row: usize,
}

impl Display for ScaleRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, row {}", self.part.name(self.expert), self.row)
    }
}

/// Refuse a row of e4m3 block scales, an even number, of which two differ that share [`MX_BLOCK_SIZE`] weights.
pub fn check_scale_pairs(row: ScaleRow, block_scales: &[u8]) -> Result<()> {
    let Some(at) = block_scales.chunks_exact(2).position(|pair| pair[0] != pair[1]) else { return Ok(()) };
    let (first, second) = (2 * at, 2 * at + 1);
    let [a, b] = [first, second].map(|block| e4m3_decode(block_scales[block]));
    let value = format!("{a} in block {first} and {b} in block {second}");
    let rule = format!("scale_block_size {MX_BLOCK_SIZE} needs one scale in both (casts of MXFP4 have one)");
    Err(Error::argument(row, value, rule, "Make the layer with scale_block_size 16."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_that_differs_is_named_with_its_place_and_both_scales() {
        let row = ScaleRow { expert: 3, part: Part::Up, row: 17 };
        assert_eq!(check_scale_pairs(row, &[0x38, 0x38, 0, 0]), Ok(()));
        let text = check_scale_pairs(row, &[0x38, 0x38, 0x38, 0x40, 0x38, 0x30]).unwrap_err().to_string();
        let wanted =
            "w13_block_scale[3] (up), row 17 is 1 in block 2 and 2 in block 3; scale_block_size 32 needs one scale";
        assert!(text.starts_with(wanted), "{text}");
    }
}
