// SPDX-License-Identifier: Apache-2.0
//! Matrices of MXFP4 out of files: checked for what [`cast_mxfp4`] refuses, and cast as they are read.

use super::files::Files;
use super::pieces::Piece;
use super::scales::BlockScales;
use super::text::printable;
use crate::error::{Error, Result};
use crate::format::{BLOCK_SIZE, MX_BLOCK_SIZE, MxSpan, any_nonzero, cast_mxfp4};
use crate::memory::filled;

/// Look at the scales of one matrix, and at its codes only where scales do not fit unless some of them do not count.
pub fn scan(files: &Files, codes: &Piece<'_>, scales: &Piece<'_>) -> Result<BlockScales> {
    let bytes = read_all(files, scales)?;
    if !MxSpan::of(&scales.label, &bytes, |_| true).map_err(of_file)?.fits() {
        let codes = read_all(files, codes)?;
        let counts = |at: usize| any_nonzero(&codes[at * MX_BLOCK_SIZE / 2..][..MX_BLOCK_SIZE / 2]);
        MxSpan::of(&scales.label, &bytes, counts).and_then(|span| span.check(&scales.label)).map_err(of_file)?;
    }
    let num_blocks = scales.len * (MX_BLOCK_SIZE / BLOCK_SIZE) as u64;
    Ok(BlockScales { num_blocks, ..BlockScales::default() })
}

/// Cast a matrix whose codes are read to e4m3 `block_scales`; returns its global scale.
pub fn read(files: &Files, codes: &[u8], scales: &Piece<'_>, block_scales: &mut [u8]) -> Result<f32> {
    cast_mxfp4(&scales.label, codes, &read_all(files, scales)?, block_scales).map_err(of_file)
}

fn read_all(files: &Files, piece: &Piece<'_>) -> Result<Vec<u8>> {
    let mut bytes = filled("bytes of an MXFP4 matrix", piece.len as usize, 0)?;
    piece.read(files, &mut bytes)?;
    Ok(bytes)
}

/// The law's refusal as one of a file, fit to be printed.
fn of_file(error: Error) -> Error {
    match error {
        Error::InvalidArgument(text) => Error::Checkpoint(printable(text)),
        other => other,
    }
}
