// SPDX-License-Identifier: Apache-2.0
//! The portable kernels (`kernels/portable/`): any GPU from compute capability 8.0 on, in Blackwell's layouts. Correct, not
//! fast: an oracle on the device.
//!
//! In mode nvfp4 rows are gathered and packed, each expert's padded to 128, block scales swizzled; GEMM1, then the activation
//! and requantising by a kernel of their own; GEMM2.

mod forward;
mod kernels;

pub use kernels::KERNELS;
#[cfg(test)]
pub use kernels::SWIGLU_ROWS;

use kernels::{PREPARE_SWIZZLED, TILE};

use super::device::Device;
use super::family::Family;
use super::forward::LayerCall;
use super::kernels::{Row, THREADS, params};
use super::linear_call::LinearCall;
use super::plan::{Form, PlanRules};
use super::prepare::{CountedScales, Source};
use super::storage::Matrix;
use super::tiles::TileTable;
use crate::call::{LayerWeights, Stream};
use crate::config::{LayerConfig, Mode, ONE_ORDER, WeightForm};
use crate::error::{Error, Result};
use crate::format::{BLOCK_SIZE, sf_size_128x4};
use crate::workspace::Walk;
use std::sync::Arc;

/// Rows of an expert are padded to this in mode nvfp4's layouts, so that its block scales start a tile of their own.
const ALIGNED_ROWS: usize = 128;

/// Any GPU from compute capability 8.0 on.
#[derive(Debug)]
pub struct Portable;

impl Family for Portable {
    fn is_own(&self) -> bool {
        false
    }

    fn runs_on(&self, capability: (i32, i32)) -> bool {
        capability >= (8, 0)
    }

    fn kernels(&self) -> &'static [Row] {
        KERNELS
    }

    fn check_mode(&self, ordinal: i32, mode: Mode) -> Result<()> {
        match mode {
            Mode::Bf16 | Mode::Nvfp4 => Ok(()),
            Mode::Fp8 => Err(Error::Unsupported(format!(
                "mode is 3 (fp8) for the portable kernels of CUDA device {ordinal}; mode fp8 runs on the CPU and on Hopper's \
                 own kernels. Use bf16, which is exact for the weights."
            ))),
        }
    }

    /// Codes [rows, cols / 2], then block scales in tiles of 128 x 4; in w13 gate rows come first.
    fn matrix(&self, walk: &mut Walk, _: WeightForm, rows: usize, cols: usize) -> Matrix {
        let scales = sf_size_128x4(rows as u64, (cols / BLOCK_SIZE) as u64) as usize;
        let (codes, block_scale) = (walk.region(rows * cols / 2), walk.region(scales));
        Matrix { rows, cols, m_tiles: rows.div_ceil(TILE), slabs: cols.div_ceil(TILE), codes, block_scale }
    }

    fn missing_factor(&self, _: Mode) -> f32 {
        1.0
    }

    fn plan_rules(&self, config: &LayerConfig) -> PlanRules {
        let (x, h) = match config.mode {
            Mode::Nvfp4 => (Some(Form::Swizzled), Form::Swizzled),
            Mode::Bf16 | Mode::Fp8 => (None, Form::Bf16),
        };
        PlanRules {
            row_alignment: ALIGNED_ROWS,
            x,
            x_by_row: true,
            x_in_place_of_y: false,
            h,
            h_stride: config.intermediate_size,
            widest_first_at: None,
            gemm1_sums: true,
            h_rows: false,
            gemm1_quantizes: false,
        }
    }

    fn linear_x(&self, mode: Mode) -> Option<Form> {
        (mode == Mode::Nvfp4).then_some(Form::Swizzled)
    }

    fn tile_table(&self, config: &LayerConfig) -> Result<TileTable> {
        match config.tile_rows {
            None | Some(ONE_ORDER) => {}
            Some(rows) => self.check_tile_rows(rows)?,
        }
        Ok(TileTable::always(TILE as u32))
    }

    fn check_tile_rows(&self, rows: u32) -> Result<()> {
        if rows as usize == TILE {
            return Ok(());
        }
        let rule = format!("tiles of the portable kernels have {TILE} rows");
        Err(Error::argument("tile_rows", rows, rule, "Pass 0: the library chooses."))
    }

    /// A launch's first dimension is its block scales, padded to tiles of 128 x 4.
    fn most_rows(&self, cols: usize) -> usize {
        const MOST_BLOCKS: usize = i32::MAX as usize;
        let scales_of_a_row = (cols / BLOCK_SIZE).next_multiple_of(4);
        MOST_BLOCKS * THREADS as usize / scales_of_a_row / 128 * 128
    }

    unsafe fn count_scales(
        &self,
        _: &Arc<Device>,
        _: &LayerConfig,
        _: &LayerWeights,
        _: Stream,
    ) -> Result<Option<CountedScales>> {
        Ok(None)
    }

    unsafe fn prepare_matrix(
        &self,
        device: &Device,
        matrix: &Matrix,
        source: &Source,
        storage: *mut u8,
        stream: Stream,
    ) -> Result<()> {
        let params = params::PrepareSwizzledParams {
            source: source.of(matrix),
            out_codes: matrix.codes.pointer(storage),
            out_block_scale: matrix.block_scale.pointer(storage),
            row_order: source.row_order as i32,
            reserved: 0,
        };
        // A thread for each byte of the swizzled scales, padding included.
        let blocks = matrix.block_scale.len.div_ceil(THREADS as usize) as u32;
        // SAFETY: the caller vouches for both sides.
        unsafe { device.launch(PREPARE_SWIZZLED.over([blocks, source.num_experts as u32, 1]), stream, &params) }
    }

    unsafe fn gemm1(&self, call: &LayerCall, chunk: usize) -> Result<()> {
        // SAFETY: the caller's promise is the same.
        unsafe { forward::gemm1(call, chunk) }
    }

    unsafe fn gemm2(&self, call: &LayerCall, chunk: usize) -> Result<()> {
        // SAFETY: the caller's promise is the same.
        unsafe { forward::gemm2(call, chunk) }
    }

    unsafe fn linear(&self, call: &LinearCall) -> Result<()> {
        // SAFETY: the caller's promise is the same.
        unsafe { forward::linear(call) }
    }
}
