// SPDX-License-Identifier: Apache-2.0
//! What the scales of weights must be, wherever the weights come from.

use super::e4m3_decode;
use crate::error::{Error, Result};

/// Weights with a NaN or negative block scale are broken files, not data.
pub fn check_block_scales(name: &str, block_scales: &[u8]) -> Result<()> {
    // All bytes up to 0x7E are finite and not negative; the maximum tells in one vectorised pass.
    if block_scales.iter().fold(0, |max: u8, b| max.max(*b)) < 0x7f {
        return Ok(());
    }
    let (index, bits) = block_scales.iter().enumerate().find(|(_, b)| **b >= 0x7f).map_or((0, 0), |(i, b)| (i, *b));
    let value = format!("{} (byte {bits:#04x})", e4m3_decode(bits));
    let rule = "block scales must be finite and not negative (bytes 0x00 to 0x7e)";
    Err(Error::argument(format!("{name}[{index}]"), value, rule, "Export the checkpoint again."))
}

/// A weight's global scale may be 0 only if the weight is: refuse it, as it is the mark of a scale never written.
pub fn check_weight_global_scales(name: &str, scales: &[f32]) -> Result<()> {
    match scales.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
        None => Ok(()),
        Some(i) => {
            let rule = "global scales must be finite and positive, in decode direction";
            Err(Error::argument(format!("{name}[{i}]"), scales[i], rule, "Export the checkpoint again."))
        }
    }
}
