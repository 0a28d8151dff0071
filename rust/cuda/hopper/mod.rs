// SPDX-License-Identifier: Apache-2.0
//! Hopper's own kernels (`kernels/hopper/`): weights dequantised in registers beside the tensor cores, the activation in
//! GEMM1's epilogue.
//!
//! In mode nvfp4 x and h are quantised and decoded again to bf16, exactly, but for each row's scale; h in place. In mode fp8
//! both become e4m3, and each row of h takes the first half of its own place.

mod few;
mod forward;
mod kernels;
mod layout;
mod prepare;
mod tiles;

pub use kernels::{FP8_ROWS, GEMM_ROWS, KERNELS};
use layout::PAIRED_TILE_BYTES;
pub use layout::fp8_row_bytes;
pub use tiles::{rounds, threads_of_cta, tiles_of_cta};

#[cfg(test)]
pub use kernels::PREPARE_TILES;

use super::device::Device;
use super::family::Family;
use super::forward::LayerCall;
use super::kernels::{Row, params};
use super::linear_call::LinearCall;
use super::plan::{Form, PlanRules};
use super::prepare::{CountedScales, Source, prepare_tiles};
use super::storage::{Matrix, TILE, TILE_BYTES};
use super::tiles::{TileTable, check_rows};
use crate::call::{LayerWeights, Stream};
use crate::config::{LayerConfig, Mode, WeightForm};
use crate::error::Result;
use crate::workspace::Walk;
use std::sync::Arc;

/// Compute capability 9.0.
#[derive(Debug)]
pub struct Hopper;

impl Family for Hopper {
    fn is_own(&self) -> bool {
        true
    }

    fn runs_on(&self, capability: (i32, i32)) -> bool {
        capability == (9, 0)
    }

    fn kernels(&self) -> &'static [Row] {
        KERNELS
    }

    fn check_mode(&self, _: i32, mode: Mode) -> Result<()> {
        match mode {
            Mode::Bf16 | Mode::Nvfp4 | Mode::Fp8 => Ok(()),
        }
    }

    fn matrix(&self, walk: &mut Walk, form: WeightForm, rows: usize, cols: usize) -> Matrix {
        let (columns, tile_bytes) = match form {
            WeightForm::Exact => (cols, TILE_BYTES),
            WeightForm::Fp8 => (fp8_row_bytes(cols), TILE_BYTES),
            WeightForm::Fp8Pairs => (fp8_row_bytes(cols), PAIRED_TILE_BYTES),
        };
        Matrix::of_tiles(walk, [rows, cols], columns.div_ceil(TILE), tile_bytes)
    }

    /// Dequantising to bf16 in registers leaves out 2^8. What it leaves out in mode fp8 is each projection's own.
    fn missing_factor(&self, mode: Mode) -> f32 {
        match mode {
            Mode::Bf16 | Mode::Nvfp4 => 256.0,
            Mode::Fp8 => 1.0,
        }
    }

    fn plan_rules(&self, config: &LayerConfig) -> PlanRules {
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let (x, h, h_stride) = match config.mode {
            Mode::Bf16 => (None, Form::Bf16, inter),
            Mode::Nvfp4 => (Some(Form::Decoded), Form::Decoded, inter),
            Mode::Fp8 => {
                let x = Form::Fp8 { row_bytes: fp8_row_bytes(hidden) };
                (Some(x), Form::Decoded, inter.max(fp8_row_bytes(inter) / 2))
            }
        };
        PlanRules {
            row_alignment: 1,
            x,
            x_by_row: false,
            x_in_place_of_y: true,
            h,
            h_stride,
            widest_first_at: Some(params::GEMM_SM90_WIDEST_ROWS),
            gemm1_sums: false,
            h_rows: false,
            gemm1_quantizes: false,
        }
    }

    fn linear_x(&self, mode: Mode) -> Option<Form> {
        (mode == Mode::Nvfp4).then_some(Form::Decoded)
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
        device: &Arc<Device>,
        config: &LayerConfig,
        weights: &LayerWeights,
        stream: Stream,
    ) -> Result<Option<CountedScales>> {
        match config.mode {
            Mode::Bf16 | Mode::Nvfp4 => Ok(None),
            // SAFETY: the caller's promise is the same.
            Mode::Fp8 => unsafe { prepare::count_scales(device, config, weights, stream) }.map(Some),
        }
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

    unsafe fn whole_call(&self, call: &LayerCall) -> Result<bool> {
        // SAFETY: the caller's promise is the same.
        unsafe { few::whole_call(call) }
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
