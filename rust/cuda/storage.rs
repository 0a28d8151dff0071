//! Where prepared weights lie: for each local expert one slice of equal size, so that an expert can be moved by a copy.
//!
//! ```text
//! slice     = w13 | w2 | f32 {gate, up, down} output factors
//! Hopper    tiles [m_tiles, slabs] of 64 rows x 64 columns, 2304 bytes (kernels/hopper/layout.cuh); in w13 gate and up
//!           rows alternate by 8
//! portable  codes [rows, cols / 2], then block scales in tiles of 128 x 4; in w13 gate rows come first
//! ```

use crate::config::Kernels;
use crate::format::{BLOCK_SIZE, sf_size_128x4};
use crate::workspace::{Region, Walk};

/// Rows and columns of a weight tile.
pub const TILE: usize = 64;
/// Bytes of a weight tile of Hopper: codes and block scales.
const TILE_BYTES: usize = TILE * TILE / 2 + TILE * TILE / 16;

/// One weight matrix.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Rows of the checkpoint's tensor; of gate and up together.
    pub rows: usize,
    /// Columns: the reduction.
    pub cols: usize,
    /// Tiles along the rows.
    pub m_tiles: usize,
    /// Tiles along the columns.
    pub slabs: usize,
    /// Where the codes lie in the slice; on Hopper the tiles, which hold the block scales too.
    pub codes: Region<u8>,
    /// Where the block scales lie; empty on Hopper.
    pub block_scale: Region<u8>,
}

impl Matrix {
    /// The next matrix of a slice.
    pub fn new(walk: &mut Walk, kernels: Kernels, rows: usize, cols: usize) -> Self {
        let (m_tiles, slabs) = (rows.div_ceil(TILE), cols.div_ceil(TILE));
        let (codes, scales) = match kernels {
            Kernels::Hopper => (m_tiles * slabs * TILE_BYTES, 0),
            Kernels::Portable => (rows * cols / 2, sf_size_128x4(rows as u64, (cols / BLOCK_SIZE) as u64) as usize),
        };
        Matrix { rows, cols, m_tiles, slabs, codes: walk.region(codes), block_scale: walk.region(scales) }
    }
}

/// One expert's slice of the storage.
#[derive(Debug)]
pub struct ExpertSlice {
    /// Gate and up. On Hopper a tile holds 32 features.
    pub w13: Matrix,
    /// Down.
    pub w2: Matrix,
    /// Output factors of gate, up and down.
    pub alphas: Region<f32>,
    /// Bytes from one expert to the next.
    pub stride: u64,
}

impl ExpertSlice {
    /// For a layer of these sizes.
    pub fn new(kernels: Kernels, hidden: usize, inter: usize) -> Self {
        let mut walk = Walk::default();
        let w13 = Matrix::new(&mut walk, kernels, 2 * inter, hidden);
        let w2 = Matrix::new(&mut walk, kernels, hidden, inter);
        ExpertSlice { w13, w2, alphas: walk.region(3), stride: walk.size() }
    }
}

/// The storage of a linear.
#[derive(Debug)]
pub struct LinearStorage {
    /// The weight.
    pub weight: Matrix,
    /// Output factor of each row.
    pub row_alphas: Region<f32>,
    /// The bias, bf16; empty where there is none.
    pub bias: Region<u16>,
    /// Bytes in all.
    pub size: u64,
}

impl LinearStorage {
    /// For a linear of these sizes.
    pub fn new(kernels: Kernels, in_features: usize, out_features: usize) -> Self {
        let mut walk = Walk::default();
        let weight = Matrix::new(&mut walk, kernels, out_features, in_features);
        let (row_alphas, bias) = (walk.region(out_features), walk.region(out_features));
        LinearStorage { weight, row_alphas, bias, size: walk.size() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_costs_9_bits_a_weight_and_no_more_where_tiles_fit() {
        for kernels in [Kernels::Hopper, Kernels::Portable] {
            let slice = ExpertSlice::new(kernels, 7168, 3072);
            assert_eq!(slice.stride, (3 * 7168 * 3072 * 9 / 16) as u64 + 256, "{kernels:?}");
        }
        let odd = ExpertSlice::new(Kernels::Hopper, 144, 48);
        assert_eq!((odd.w13.m_tiles, odd.w13.slabs, odd.w2.m_tiles, odd.w2.slabs), (2, 3, 3, 1));
        let odd = ExpertSlice::new(Kernels::Portable, 144, 48);
        assert_eq!((odd.w13.codes.len, odd.w13.block_scale.len), (96 * 72, 128 * 12), "scales padded to 128 x 4");
        assert_eq!((odd.w2.codes.len, odd.w2.block_scale.len), (144 * 24, 256 * 4));
    }
}
