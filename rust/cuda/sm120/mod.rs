// SPDX-License-Identifier: Apache-2.0
//! Kernels of compute capability 12.x (`kernels/sm120/`: RTX 50, RTX PRO, GB10): weights as the 16-row operand of the
//! block-scaled `mma.sync`, the activation in GEMM1's epilogue.
//!
//! In mode nvfp4 x and h are packed, with block scales in tiles of 128 x 4, and multiplied as they are. In mode bf16 weights are
//! dequantised in registers, exactly. Verified by a stand-in for the instruction on Hopper and by proofs of the layouts; not
//! yet run on such a GPU by its authors.

mod forward;
mod kernels;
mod tiles;

#[cfg(test)]
pub use kernels::PREPARE_TILES;
pub use kernels::{GEMM_ROWS, KERNELS};
pub use tiles::threads;

use super::device::Device;
use super::family::Family;
use super::forward::LayerCall;
use super::kernels::Row;
use super::linear_call::LinearCall;
use super::plan::{Form, PlanRules};
use super::prepare::{CountedScales, Source, prepare_tiles};
use super::storage::{Matrix, TILE, TILE_BYTES};
use super::tiles::{TileTable, check_rows};
use crate::call::{LayerWeights, Stream};
use crate::config::{LayerConfig, Mode, WeightForm};
use crate::error::{Error, Result};
use crate::workspace::Walk;
use std::sync::Arc;

/// Compute capability 12.x.
#[derive(Debug)]
pub struct Sm120;

impl Family for Sm120 {
    fn is_own(&self) -> bool {
        true
    }

    fn runs_on(&self, capability: (i32, i32)) -> bool {
        capability.0 == 12
    }

    fn kernels(&self) -> &'static [Row] {
        KERNELS
    }

    fn check_mode(&self, ordinal: i32, mode: Mode) -> Result<()> {
        match mode {
            Mode::Bf16 | Mode::Nvfp4 => Ok(()),
            Mode::Fp8 => Err(Error::Unsupported(format!(
                "mode is 3 (fp8) for CUDA device {ordinal} of compute capability 12.x; its kernels have none. Use nvfp4, which \
                 multiplies in 4 bits there, or bf16, which is exact for the weights."
            ))),
        }
    }

    fn matrix(&self, walk: &mut Walk, _: WeightForm, rows: usize, cols: usize) -> Matrix {
        Matrix::of_tiles(walk, [rows, cols], cols.div_ceil(TILE), TILE_BYTES)
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
            row_alignment: 1,
            x,
            x_by_row: false,
            x_in_place_of_y: true,
            h,
            h_stride: config.intermediate_size,
            widest_first_at: None,
            gemm1_sums: false,
            h_rows: config.mode == Mode::Nvfp4 && !forward::requantizes(config),
            gemm1_quantizes: forward::requantizes(config),
        }
    }

    fn linear_x(&self, mode: Mode) -> Option<Form> {
        (mode == Mode::Nvfp4).then_some(Form::Swizzled)
    }

    fn tile_table(&self, config: &LayerConfig) -> Result<TileTable> {
        tiles::layer_table(config)
    }

    fn check_tile_rows(&self, rows: u32) -> Result<()> {
        check_rows(rows, &GEMM_ROWS)
    }

    /// A launch's second dimension is its tiles of rows.
    fn most_rows(&self, _: usize) -> usize {
        65_535 * TILE
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
        // SAFETY: the caller's promise is the same.
        unsafe { prepare_tiles(device, kernels::PREPARE_TILES, matrix, source, storage, stream) }
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
