// SPDX-License-Identifier: Apache-2.0
//! Hopper's steps of a call.

use super::kernels::{GemmKind, QUANTIZE_ROWS_FP8, gemm};
use super::layout::fp8_row_bytes;
use super::tiles::{linear_rows, threads_of_cta, tiles_of_cta};
use crate::activation::ActivationKind;
use crate::config::{LayerConfig, Mode, WeightForm};
use crate::cuda::forward::LayerCall;
use crate::cuda::kernels::params;
use crate::cuda::launch::Launch;
use crate::cuda::linear_call::LinearCall;
use crate::cuda::storage::Matrix;
use crate::error::Result;

/// The kernels of GEMM1: SwiGLU's; those of any other activation of gate and up, or with biases; or, without a gate, those
/// of GEMM2 with an end of any kind, whose rows are plain as well.
pub fn gemm1_kind(config: &LayerConfig) -> GemmKind {
    let is_plain = config.activation.projections() == 1;
    let is_swiglu = config.activation.kind == ActivationKind::Swiglu && !config.has_bias;
    if config.weight_form() == WeightForm::Fp8 {
        return match (is_plain, is_swiglu) {
            (true, _) => GemmKind::Gemm2AnyRounded,
            (false, true) => GemmKind::Gemm1Rounded,
            (false, false) => GemmKind::Gemm1AnyRounded,
        };
    }
    match (config.mode == Mode::Fp8, is_plain, is_swiglu) {
        (false, true, _) => GemmKind::Gemm2Any,
        (true, true, _) => GemmKind::Gemm2AnyFp8,
        (false, _, true) => GemmKind::Gemm1,
        (true, _, true) => GemmKind::Gemm1Fp8,
        (false, _, false) => GemmKind::Gemm1Any,
        (true, _, false) => GemmKind::Gemm1AnyFp8,
    }
}

/// GEMM1 of the caller's x.
pub fn gemm1_params(call: &LayerCall, chunk: usize) -> params::GemmParams {
    let (plan, args, config, base) = (call.plan, call.args, call.config, call.base);
    let matrix = &call.layer.slice.w13;
    params::GemmParams {
        list: call.tile_list(chunk, matrix),
        x: args.x.cast(),
        x_row_stride: args.x_row_stride as i64,
        row_to_slot: call.row_to_slot(chunk),
        out: plan.h.rows.pointer(base).cast(),
        out_row_stride: plan.h_stride as i64,
        features: config.intermediate_size as i32,
        activation: call.activation(),
        bias: call.bias(&call.layer.slice.w13_bias),
        tiles_known: (chunk > 0).into(),
        ..weights(call, matrix, 0)
    }
}

/// GEMM1 with the activation. In modes nvfp4 and fp8 before it x is quantised, and after it h, in place.
///
/// # Safety
/// The pointers of the call are device memory as the header states, and the device is entered.
pub unsafe fn gemm1(call: &LayerCall, chunk: usize) -> Result<()> {
    let (plan, config, base) = (call.plan, call.config, call.base);
    let (kind, mut params) = (gemm1_kind(config), gemm1_params(call, chunk));
    if config.mode != Mode::Bf16 {
        params.tiles_known = 1;
        params.x = plan.x.rows.pointer(base).cast_const().cast();
        params.x_row_stride = padded_cols(config, config.hidden_size) as i64;
        params.row_scale = plan.x.global_scale.pointer(base);
        if plan.x_by_row {
            params.row_to_slot = std::ptr::null();
        }
    }
    // SAFETY: regions of the workspace, prepared weights; the caller vouches for x.
    unsafe {
        match config.mode {
            Mode::Bf16 => launch_gemm(call, kind, &params),
            Mode::Nvfp4 => {
                call.quantize_x(chunk)?;
                launch_gemm(call, kind, &params)?;
                call.quantize_h(chunk)
            }
            Mode::Fp8 => {
                quantize_x_fp8(call, chunk)?;
                launch_gemm(call, kind, &params)?;
                quantize_h_fp8(call, chunk)
            }
        }
    }
}

/// e4m3 of x.
unsafe fn quantize_x_fp8(call: &LayerCall, chunk: usize) -> Result<()> {
    let (x, hidden) = (&call.plan.x, call.config.hidden_size);
    let params = params::QuantizeFp8Params {
        input: call.quantizer_x(chunk),
        out: x.rows.pointer(call.base),
        out_row_stride: fp8_row_bytes(hidden) as i64,
        row_scale: x.global_scale.pointer(call.base),
        num_cols: hidden as i32,
        ..Default::default()
    };
    // SAFETY: regions of the workspace; the caller vouches for x.
    unsafe { call.launch(call.by_x_rows(QUANTIZE_ROWS_FP8, chunk), &params) }
}

/// e4m3 of h: a row is written over its own bf16.
unsafe fn quantize_h_fp8(call: &LayerCall, chunk: usize) -> Result<()> {
    let h = &call.plan.h;
    let params = params::QuantizeFp8Params {
        input: call.quantizer_h(chunk),
        out: h.rows.pointer(call.base),
        out_row_stride: 2 * call.plan.h_stride as i64,
        row_scale: h.global_scale.pointer(call.base),
        num_cols: call.config.intermediate_size as i32,
        ..Default::default()
    };
    // SAFETY: regions of the workspace.
    unsafe { call.launch(call.by_rows(QUANTIZE_ROWS_FP8, chunk), &params) }
}

/// GEMM2 of h, its kernel and its parameters.
pub fn gemm2_params(call: &LayerCall, chunk: usize) -> (GemmKind, params::GemmParams) {
    let (plan, config, base) = (call.plan, call.config, call.base);
    // In bytes in mode fp8, whose rows lie in the places of bf16 ones.
    let (kind, stride) = match (config.weight_form(), config.has_bias) {
        (WeightForm::Fp8, false) => (GemmKind::Gemm2Rounded, 2 * plan.h_stride),
        (WeightForm::Fp8, true) => (GemmKind::Gemm2AnyRounded, 2 * plan.h_stride),
        (WeightForm::Fp8Pairs, false) => (GemmKind::Gemm2Fp8, 2 * plan.h_stride),
        (WeightForm::Fp8Pairs, true) => (GemmKind::Gemm2AnyFp8, 2 * plan.h_stride),
        (WeightForm::Exact, false) => (GemmKind::Gemm2, plan.h_stride),
        (WeightForm::Exact, true) => (GemmKind::Gemm2Any, plan.h_stride),
    };
    let quantised = config.mode != Mode::Bf16;
    let matrix = &call.layer.slice.w2;
    let params = params::GemmParams {
        list: call.tile_list(chunk, matrix),
        x: plan.h.rows.pointer(base).cast_const().cast(),
        x_row_stride: stride as i64,
        row_scale: if quantised { plan.h.global_scale.pointer(base) } else { std::ptr::null() },
        out: plan.y(base),
        out_row_stride: config.hidden_size as i64,
        features: config.hidden_size as i32,
        activation: params::Activation { kind: params::ACTIVATION_NONE as i32, ..Default::default() },
        bias: call.bias(&call.layer.slice.w2_bias),
        tiles_known: 1,
        ..weights(call, matrix, config.activation.projections())
    };
    (kind, params)
}

/// GEMM2.
///
/// # Safety
/// As [`gemm1`], after it.
pub unsafe fn gemm2(call: &LayerCall, chunk: usize) -> Result<()> {
    let (kind, params) = gemm2_params(call, chunk);
    // SAFETY: regions of the workspace, prepared weights.
    unsafe { launch_gemm(call, kind, &params) }
}

/// Columns of a row as a GEMM reads it: e4m3 is padded with zeros.
fn padded_cols(config: &LayerConfig, cols: usize) -> usize {
    if config.mode == Mode::Fp8 { fp8_row_bytes(cols) } else { cols }
}

/// A matrix, and the first of its output factors.
fn weights(call: &LayerCall, matrix: &Matrix, alpha: usize) -> params::GemmParams {
    params::GemmParams { k_valid: padded_cols(call.config, matrix.cols) as i32, ..call.tile_weights(matrix, alpha) }
}

unsafe fn launch_gemm(call: &LayerCall, kind: GemmKind, params: &params::GemmParams) -> Result<()> {
    let launch = gemm_launch(kind, call.plan.tile_rows, call.worst_tiles(&params.list), call.layer.device.num_sms);
    // SAFETY: the caller vouches for the pointers of `params`.
    unsafe { call.launch(launch, params) }
}

/// The kernel of a GEMM with this row-tile size, and its launch for up to `tiles` tiles.
fn gemm_launch(kind: GemmKind, tile_rows: u32, tiles: usize, num_sms: u32) -> Launch {
    let (column_bytes, is_linear) = (kind.column_bytes(), kind == GemmKind::Linear);
    let weight_tiles = tiles_of_cta(tile_rows, column_bytes, is_linear);
    let most = tiles * weight_tiles.min(2); // halves, in the last round
    let blocks = most.clamp(1, num_sms as usize) as u32;
    gemm(kind, tile_rows)
        .over([blocks, 1, 1])
        .with_threads(threads_of_cta(tile_rows, column_bytes, is_linear))
        .sharing(params::GEMM_SM90_SHARED_BYTES)
}

/// A linear's GEMM.
///
/// # Safety
/// As [`gemm1`].
pub unsafe fn linear(call: &LinearCall) -> Result<()> {
    let (linear, num_sms, m_tiles) = (call.linear, call.linear.device.num_sms, call.linear.layout.weight.m_tiles);
    let rows = call.config.tile_rows.unwrap_or_else(|| linear_rows(call.args.num_tokens, m_tiles, num_sms));
    let (list, tiles) = call.tiles(rows);
    let params = call.tile_params(list);
    // SAFETY: regions of the workspace, the prepared weight; the caller vouches for x and out.
    unsafe { linear.device.launch(gemm_launch(GemmKind::Linear, rows, tiles, num_sms), call.stream, &params) }
}
