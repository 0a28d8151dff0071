// SPDX-License-Identifier: Apache-2.0
//! What the self-test computes with: made so that every order of additions gives the same bits.
//!
//! Codes are any; block scales are 0.5, 1 and 2; global scales are powers of two. So each product is a multiple of 2^-4, and
//! sums stay below 2^18: no addition rounds. x has a 6 in each block, so that quantising it is exact. What an activation
//! leaves has no such form. Where it is the question, GEMM2's rows have one weight that is not 0, and add nothing.

use crate::format::{BLOCK_SIZE, E2M1_VALUES, e4m3_decode};

/// A number that looks random, the same for the same place.
pub fn hash(seed: u64, place: usize) -> u32 {
    let mut z = (seed << 40) ^ (place as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 33) as u32
}

/// Block scales 0.5, 1 and 2.
const SCALES: [u8; 3] = [0x30, 0x38, 0x40];
const NEGATIVE: u8 = 8;

/// The weights of a matrix, as a checkpoint has them.
#[derive(Debug, Default)]
pub struct Matrix {
    /// e2m1x2 `[rows, cols / 2]`
    pub codes: Vec<u8>,
    /// e4m3 `[rows, cols / 16]`
    pub block_scale: Vec<u8>,
}

/// Which codes a row of weights has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codes {
    /// Any.
    Any,
    /// From 0.5 to 6.
    Positive,
    /// One of those, at a column that differs from row to row; else 0.
    One,
}

impl Matrix {
    /// Add rows.
    pub fn extend(&mut self, seed: u64, rows: usize, cols: usize, kind: Codes) {
        let first_row = 2 * self.codes.len() / cols;
        for row in first_row..first_row + rows {
            let only = hash(seed, row) as usize % cols;
            let code = |col: usize| {
                let (word, digit) = ((row * cols + col) / 7, (row * cols + col) % 7); // of 28 random bits
                let random = hash(seed + 1, word) >> (4 * digit) & 15;
                let positive = 1 + (random % 7) as u8;
                match kind {
                    Codes::Any => random as u8,
                    Codes::Positive => positive,
                    Codes::One => {
                        if col == only {
                            positive
                        } else {
                            0
                        }
                    }
                }
            };
            self.codes.extend((0..cols).step_by(2).map(|col| code(col) | code(col + 1) << 4));
            let scale = |block| SCALES[hash(seed + 2, row * cols + block) as usize % 3];
            self.block_scale.extend((0..cols / BLOCK_SIZE).map(scale));
        }
    }

    /// A row, decoded.
    #[cfg(test)]
    pub fn row(&self, row: usize, cols: usize) -> Vec<f32> {
        let mut out = vec![0.0; cols];
        let (codes, scales) = (&self.codes[row * cols / 2..][..cols / 2], &self.block_scale[row * cols / BLOCK_SIZE..]);
        crate::format::dequantize_row(codes, &scales[..cols / BLOCK_SIZE], 1.0, &mut out);
        out
    }
}

/// bf16 `[rows, cols]`
pub fn inputs(seed: u64, rows: usize, cols: usize, is_positive: bool) -> Vec<u16> {
    let value = |place: usize| {
        let scale = e4m3_decode(SCALES[hash(seed, place / BLOCK_SIZE) as usize % 3]);
        let random = hash(seed + 1, place) as u8;
        let magnitude = if place.is_multiple_of(BLOCK_SIZE) { 7 } else { random & 7 };
        let sign = if is_positive || random & NEGATIVE == 0 { 1.0 } else { -1.0 };
        bf16(sign * scale * E2M1_VALUES[magnitude as usize])
    };
    (0..rows * cols).map(value).collect()
}

/// bf16 `[rows]`, multiples of a quarter.
pub fn biases(seed: u64, rows: usize) -> Vec<u16> {
    (0..rows).map(|row| bf16((hash(seed, row) % 17) as f32 / 4.0 - 2.0)).collect()
}

/// A number that bf16 has.
fn bf16(value: f32) -> u16 {
    (value.to_bits() >> 16) as u16
}

/// The number.
pub fn of_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}
