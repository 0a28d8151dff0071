// SPDX-License-Identifier: Apache-2.0
//! The kernels of compute capability 10.x (`kernels/sm100/`): B200, B300. Weights as the tensor core's 128 rows, token rows
//! as its columns.
//!
//! In mode nvfp4 both are e2m1 with their block scales, as the tensor core multiplies them; where h has a static scale, GEMM1
//! leaves it quantised. In mode bf16 weights become bf16 in tensor memory, exactly. Rows lie in lines (`common/lines.cuh`).

mod forward;
mod kernels;
mod tiles;

pub use kernels::KERNELS;
#[cfg(test)]
pub use kernels::PREPARE_TILES;
#[cfg(not(test))]
use kernels::PREPARE_TILES;
pub use tiles::{LAYER_ROWS, LINEAR_ROWS};

use super::device::Device;
use super::family::Family;
use super::forward::LayerCall;
use super::kernels::{Row, params};
use super::linear_call::LinearCall;
use super::plan::{Form, PlanRules};
use super::prepare::{CountedScales, Source};
use super::storage::Matrix;
use super::tiles::TileTable;
use crate::call::{LayerWeights, Stream};
use crate::config::{LayerConfig, Mode, WeightForm};
use crate::error::{Error, Result};
use crate::shape::RowOrder;
use crate::workspace::Walk;
use std::sync::Arc;

/// Rows of a weight tile.
const TILE_ROWS: usize = params::SM100_TILE_ROWS as usize;

/// Compute capability 10.x.
#[derive(Debug)]
pub struct Sm100;

impl Family for Sm100 {
    fn is_own(&self) -> bool {
        true
    }

    fn runs_on(&self, (major, _): (i32, i32)) -> bool {
        major == 10
    }

    fn kernels(&self) -> &'static [Row] {
        KERNELS
    }

    fn check_mode(&self, ordinal: i32, mode: Mode) -> Result<()> {
        match mode {
            Mode::Bf16 | Mode::Nvfp4 => Ok(()),
            Mode::Fp8 => Err(Error::Unsupported(format!(
                "mode is 3 (fp8) on CUDA device {ordinal}, whose tensor cores multiply NVFP4 as it is; mode fp8 runs on the \
                 CPU and on Hopper. Use nvfp4, or bf16, which is exact for the weights."
            ))),
        }
    }

    /// Tiles [m_tiles, slabs] of 128 x 256, an even number of rows of them: with a gate, one of gate and one of up take
    /// turns.
    fn matrix(&self, walk: &mut Walk, _: WeightForm, rows: usize, cols: usize) -> Matrix {
        let (m_tiles, slabs) = (rows.div_ceil(TILE_ROWS), cols.div_ceil(params::SM100_TILE_COLS as usize));
        let codes = walk.region(m_tiles.next_multiple_of(2) * slabs * params::SM100_TILE_BYTES as usize);
        Matrix { rows, cols, m_tiles, slabs, codes, block_scale: walk.region(0) }
    }

    /// What dequantising to bf16 leaves out, the kernels put back.
    fn missing_factor(&self, _: Mode) -> f32 {
        1.0
    }

    fn plan_rules(&self, config: &LayerConfig) -> PlanRules {
        let form = match config.mode {
            Mode::Nvfp4 => Form::Lines,
            Mode::Bf16 | Mode::Fp8 => Form::Bf16Lines,
        };
        PlanRules {
            row_alignment: params::SM100_ROW_ALIGNMENT as usize,
            x: Some(form),
            x_by_row: true,
            x_in_place_of_y: true,
            h: form,
            h_stride: config.intermediate_size,
            h_rows: config.mode == Mode::Nvfp4 && !forward::is_fused(config),
            gemm1_quantizes: forward::is_fused(config),
            widest_first_at: None,
            gemm1_sums: false,
        }
    }

    fn linear_x(&self, mode: Mode) -> Option<Form> {
        Some(if mode == Mode::Nvfp4 { Form::Lines } else { Form::Bf16Lines })
    }

    fn tile_table(&self, config: &LayerConfig) -> Result<TileTable> {
        tiles::layer_table(config)
    }

    fn check_tile_rows(&self, rows: u32) -> Result<()> {
        tiles::check_linear_rows(rows)
    }

    /// A launch's second dimension is its tiles of rows.
    fn most_rows(&self, _: usize) -> usize {
        65_535 * TILE_ROWS
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
        let params = params::PrepareSm100Params {
            source: source.of(matrix),
            tiles: matrix.codes.pointer(storage),
            num_slabs: matrix.slabs as i32,
            row_order: source.row_order as i32,
        };
        let gated = source.row_order != RowOrder::Plain;
        let m_tiles = if gated { matrix.m_tiles.next_multiple_of(2) } else { matrix.m_tiles };
        let grid = [matrix.slabs as u32, m_tiles as u32, source.num_experts as u32];
        // SAFETY: the caller vouches for both sides.
        unsafe { device.launch(PREPARE_TILES.over(grid), stream, &params) }
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
