// SPDX-License-Identifier: Apache-2.0
//! One call of a linear: what it works on, and the steps that all families share.

use super::kernels::{AMAX_ROWS, params};
use super::plan::LinearPlan;
use super::prepared::{PreparedLinear, State};
use crate::call::{LinearArgs, Stream};
use crate::config::{LinearConfig, Mode, ScalePolicy};
use crate::error::Result;

/// One forward: what it computes, and the workspace at `base`.
#[allow(missing_docs)]
pub struct LinearCall<'a> {
    pub linear: &'a PreparedLinear,
    pub config: &'a LinearConfig,
    pub args: &'a LinearArgs,
    pub stream: Stream,
    pub plan: &'a LinearPlan,
    pub base: *mut u8,
}

impl LinearCall<'_> {
    /// The caller's rows.
    pub fn source(&self) -> params::RowSource {
        params::RowSource { num_rows: self.args.num_tokens as i32, top_k: 1, ..Default::default() }
    }

    /// The GEMM of a weight in tiles: rows as they are, or as [`Self::quantize_x`] left them.
    pub fn tile_params(&self, list: params::TileList) -> params::GemmParams {
        let (linear, config, args, plan) = (self.linear, self.config, self.args, self.plan);
        let (matrix, storage, quantised) =
            (&linear.layout.weight, linear.weights.storage(), config.mode == Mode::Nvfp4);
        params::GemmParams {
            list,
            tiles: matrix.codes.pointer(storage),
            alphas: linear.layout.row_alphas.pointer(storage),
            x: if quantised { plan.x.rows.pointer(self.base).cast_const().cast() } else { args.x.cast() },
            x_row_stride: if quantised { config.in_features } else { args.x_row_stride } as i64,
            row_scale: if quantised { plan.x.global_scale.pointer(self.base) } else { std::ptr::null_mut() },
            out: args.out.cast(),
            bias: linear.bias(),
            out_row_stride: args.out_row_stride as i64,
            top_k: 1,
            k_valid: matrix.cols as i32,
            num_slabs: matrix.slabs as i32,
            features: config.out_features as i32,
            tiles_known: 1,
            ..Default::default()
        }
    }

    /// Calibration: the largest input.
    ///
    /// # Safety
    /// x is device memory as the header states, and the device is entered.
    pub unsafe fn observe(&self) -> Result<()> {
        let device = &self.linear.device;
        let params = params::AmaxParams {
            source: self.source(),
            x: self.args.x.cast(),
            x_row_stride: self.args.x_row_stride as i64,
            amax: State::amax_at(self.linear.state.pointer(), 0),
            num_cols: self.config.in_features as i32,
            reserved: 0,
        };
        // SAFETY: the linear's own state; the caller vouches for x.
        unsafe { device.launch(device.by_rows(AMAX_ROWS, self.args.num_tokens), self.stream, &params) }
    }

    /// x in NVFP4, as the GEMM reads it.
    ///
    /// # Safety
    /// As [`LinearCall::observe`].
    pub unsafe fn quantize_x(&self) -> Result<()> {
        let device = &self.linear.device;
        let state: *mut State = self.linear.state.pointer();
        let is_static = self.config.scale_policy == ScalePolicy::Static;
        let params = params::QuantizeParams {
            input: params::QuantizerInput {
                source: self.source(),
                status: device.status(),
                x: self.args.x.cast(),
                x_row_stride: self.args.x_row_stride as i64,
                ..Default::default()
            },
            static_scale: if is_static { State::input_scale_at(state, 0) } else { std::ptr::null() },
            num_cols: self.config.in_features as i32,
            ..self.plan.x.as_output(self.base)
        };
        // SAFETY: regions of the workspace; the caller vouches for x.
        unsafe { device.launch(device.by_rows(self.plan.x.quantizer(), self.args.num_tokens), self.stream, &params) }
    }

    /// All rows and all weight tiles, and how many tiles of `rows` rows that makes at most.
    pub fn tiles(&self, rows: u32) -> (params::TileList, usize) {
        let m_tiles = self.linear.layout.weight.m_tiles;
        let list = params::TileList {
            num_rows: self.args.num_tokens as i32,
            m_tiles: m_tiles as i32,
            tile_rows: rows as i32,
            ..Default::default()
        };
        (list, self.args.num_tokens.div_ceil(rows as usize) * m_tiles)
    }
}
