// SPDX-License-Identifier: Apache-2.0
//! Where prepared weights lie: for each local expert one slice of equal size, so that an expert can be moved by a copy.
//!
//! ```text
//! slice     = w13 | w2 | f32 {gate, up, down} output factors | bf16 biases of w13, gate first, and of w2, if there may be
//! Hopper,   tiles [m_tiles, slabs] of 64 rows x 64 columns, 2304 bytes (layout.cuh in kernels/hopper/ and in
//! sm120     kernels/sm120/); in w13 gate and up rows alternate by 8. Hopper, mode fp8: an even number of slabs, and 2176
//!           bytes where block scales are equal in pairs
//! sm100     tiles [m_tiles, slabs] of 128 rows x 256 columns, 18432 bytes (kernels/sm100/layout.cuh); in w13 tiles of gate and of
//!           up take turns
//! portable  codes [rows, cols / 2], then block scales in tiles of 128 x 4; in w13 gate rows come first
//! ```

use crate::format::BLOCK_SIZE;
use crate::shape::MoeShape;
use crate::workspace::{Region, Walk};

/// Rows and columns of a weight tile of families whose weights are tiles (`kernels/common/gemm.cuh`).
pub const TILE: usize = 64;
/// Bytes of such a tile: codes and block scales.
pub const TILE_BYTES: usize = TILE * TILE / 2 + TILE * TILE / BLOCK_SIZE;

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
    /// Where the codes lie in the slice, or tiles that hold the block scales too.
    pub codes: Region<u8>,
    /// Where the block scales lie; empty where tiles hold them.
    pub block_scale: Region<u8>,
}

impl Matrix {
    /// In tiles [m_tiles, slabs] of 64 x 64; in w13 gate and up rows alternate by 8, so that a tile holds 32 features.
    pub fn of_tiles(walk: &mut Walk, [rows, cols]: [usize; 2], slabs: usize, tile_bytes: usize) -> Self {
        let m_tiles = rows.div_ceil(TILE);
        let (codes, block_scale) = (walk.region(m_tiles * slabs * tile_bytes), walk.region(0));
        Matrix { rows, cols, m_tiles, slabs, codes, block_scale }
    }
}

/// One expert's slice of the storage.
#[derive(Debug)]
pub struct ExpertSlice {
    /// Gate and up.
    pub w13: Matrix,
    /// Down.
    pub w2: Matrix,
    /// Output factors of gate, up and down; without a gate of up and down.
    pub alphas: Region<f32>,
    /// Biases of w13, gate first; empty where there are none.
    pub w13_bias: Region<u16>,
    /// Biases of w2; empty where there are none.
    pub w2_bias: Region<u16>,
    /// Bytes from one expert to the next.
    pub stride: u64,
}

impl ExpertSlice {
    /// For a layer of these sizes; `matrix` lays the next matrix of so many rows and columns out.
    pub fn new(shape: MoeShape, has_bias: bool, matrix: impl Fn(&mut Walk, usize, usize) -> Matrix) -> Self {
        let mut walk = Walk::default();
        let w13 = matrix(&mut walk, shape.w13_rows(), shape.hidden);
        let w2 = matrix(&mut walk, shape.hidden, shape.inter);
        let alphas = walk.region(shape.projections + 1);
        let [w13_bias, w2_bias] =
            [shape.w13_rows(), shape.hidden].map(|rows| walk.region(if has_bias { rows } else { 0 }));
        ExpertSlice { w13, w2, alphas, w13_bias, w2_bias, stride: walk.size() }
    }
}

/// The storage of a linear.
#[derive(Debug)]
pub struct LinearStorage {
    /// The weight.
    pub weight: Matrix,
    /// Output factor of each row.
    pub row_alphas: Region<f32>,
    /// The bias, bf16; zeros where there is none.
    pub bias: Region<u16>,
    /// Bytes in all.
    pub size: u64,
}

impl LinearStorage {
    /// For a linear of these sizes; `matrix` lays its weight out.
    pub fn new(in_features: usize, out_features: usize, matrix: impl Fn(&mut Walk, usize, usize) -> Matrix) -> Self {
        let mut walk = Walk::default();
        let weight = matrix(&mut walk, out_features, in_features);
        let (row_alphas, bias) = (walk.region(out_features), walk.region(out_features));
        LinearStorage { weight, row_alphas, bias, size: walk.size() }
    }
}
