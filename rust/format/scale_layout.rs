// SPDX-License-Identifier: Apache-2.0
//! Where a block scale lies in memory.

/// Order of the block scales of a `[rows, cols / 16]` matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SfLayout {
    /// Row-major, unpadded.
    Linear,
    /// Tiles of 128 rows x 4 scales, as Blackwell's tensor cores read them ("32_4_4").
    Swizzled128x4,
}

impl SfLayout {
    /// Bytes of the scales of a matrix, padding included.
    pub fn size(self, rows: u64, sf_cols: u64) -> u64 {
        match self {
            SfLayout::Linear => rows * sf_cols,
            SfLayout::Swizzled128x4 => sf_size_128x4(rows, sf_cols),
        }
    }

    /// Byte at which scale `(row, sf_col)` lies.
    pub fn offset(self, row: u64, sf_col: u64, sf_cols: u64) -> u64 {
        match self {
            SfLayout::Linear => row * sf_cols + sf_col,
            SfLayout::Swizzled128x4 => sf_offset_128x4(row, sf_col, sf_cols),
        }
    }
}

/// Bytes of a swizzled buffer: rows padded to 128, scale columns to 4.
pub fn sf_size_128x4(rows: u64, sf_cols: u64) -> u64 {
    rows.next_multiple_of(128) * sf_cols.next_multiple_of(4)
}

/// Byte of scale `(row, sf_col)` in a swizzled buffer.
///
/// The tensor core reads block scales in 512-byte tiles of 128 rows x 4 scales. Inside a tile rows are dealt like
/// cards: r, r+32, r+64, r+96 sit side by side. Tiles run along K first.
/// Source: PTX ISA, tcgen05, scale-factor layout for scale_vec::4X.
pub fn sf_offset_128x4(row: u64, sf_col: u64, sf_cols: u64) -> u64 {
    let tile = row / 128 * sf_cols.div_ceil(4) + sf_col / 4;
    tile * 512 + row % 32 * 16 + row % 128 / 32 * 4 + sf_col % 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_lie_where_the_picture_says() {
        assert_eq!(sf_offset_128x4(1, 0, 4), 16, "neighbouring rows are 16 bytes apart");
        assert_eq!(sf_offset_128x4(32, 0, 4), 4, "row 32 sits beside row 0");
        assert_eq!(sf_offset_128x4(0, 4, 8), 512, "the next tile is along K");
        assert_eq!(sf_offset_128x4(128, 0, 5), 1024, "5 scale columns are two tiles");
    }

    proptest! {
        #[test]
        fn swizzle_is_a_bijection_onto_the_padded_buffer(rows in 1u64..400, sf_cols in 1u64..40) {
            let size = sf_size_128x4(rows, sf_cols);
            let mut seen = vec![false; size as usize];
            for row in 0..rows.next_multiple_of(128) {
                for col in 0..sf_cols.next_multiple_of(4) {
                    let at = sf_offset_128x4(row, col, sf_cols) as usize;
                    prop_assert!(!std::mem::replace(&mut seen[at], true));
                }
            }
            prop_assert!(seen.into_iter().all(|s| s));
        }
    }
}
