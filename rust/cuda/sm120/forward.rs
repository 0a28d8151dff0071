// SPDX-License-Identifier: Apache-2.0
//! Compute capability 12.x: the steps of a call.

use super::kernels::{GemmKind, gemm};
use super::tiles::{linear_rows, threads};
use crate::config::{LayerConfig, Mode, ScalePolicy};
use crate::cuda::forward::LayerCall;
use crate::cuda::kernels::{QUANTIZE_ROWS, params};
use crate::cuda::launch::Launch;
use crate::cuda::linear_call::LinearCall;
use crate::cuda::storage::Matrix;
use crate::error::Result;

/// Does GEMM1 quantise h by itself? It sees a block of 16, not a row, so the scale must be known; and it must have a gate.
pub fn requantizes(config: &LayerConfig) -> bool {
    config.mode == Mode::Nvfp4 && config.scale_policy == ScalePolicy::Static && config.activation.projections() == 2
}

/// GEMM1 with the activation. In mode nvfp4 before it x is quantised, and h in it or after it.
///
/// # Safety
/// The pointers of the call are device memory as the header states, and the device is entered.
pub unsafe fn gemm1(call: &LayerCall, chunk: usize) -> Result<()> {
    let (plan, args, config, base) = (call.plan, call.args, call.config, call.base);
    let (matrix, inter, quantised) = (&call.layer.slice.w13, config.intermediate_size, config.mode == Mode::Nvfp4);
    let (x, x_row_stride) = match quantised {
        true => (plan.x.rows.pointer(base).cast_const().cast(), config.hidden_size),
        false => (args.x.cast(), args.x_row_stride),
    };
    let gemm = params::GemmParams {
        list: call.tile_list(chunk, matrix),
        x,
        x_row_stride: x_row_stride as i64,
        row_scale: if quantised { plan.x.global_scale.pointer(base) } else { std::ptr::null_mut() },
        row_to_slot: if quantised && plan.x_by_row { std::ptr::null() } else { call.row_to_slot(chunk) },
        out: if quantised { plan.h_rows.pointer(base).cast() } else { plan.h.rows.pointer(base).cast() },
        out_row_stride: inter as i64,
        features: inter as i32,
        activation: call.activation(),
        bias: call.bias(&call.layer.slice.w13_bias),
        tiles_known: (chunk > 0 || quantised).into(),
        ..weights(call, matrix, 0)
    };
    let mut params = params::GemmSm120Params { gemm, ..Default::default() };
    if quantised {
        params.x_block_scale = plan.x.block_scale.pointer(base);
    }
    if requantizes(config) {
        params.h = quantize_params(call, chunk);
        params.h.static_scale = plan.h.global_scale.pointer(base); // as the quantiser of x found it
    }
    let kind = if config.activation.projections() == 2 { GemmKind::Gemm1 } else { GemmKind::Gemm2 };
    // SAFETY: regions of the workspace, prepared weights; the caller vouches for x.
    unsafe {
        if quantised {
            call.quantize_x(chunk)?;
        }
        launch_gemm(call, kind, &params)?;
        if quantised && !requantizes(config) {
            let by_rows = call.layer.device.by_rows(QUANTIZE_ROWS, plan.rows);
            call.launch(by_rows, &quantize_params(call, chunk))?;
        }
    }
    Ok(())
}

/// What quantises h, in a kernel of its own or in GEMM1.
fn quantize_params(call: &LayerCall, chunk: usize) -> params::QuantizeParams {
    let (plan, inter) = (call.plan, call.config.intermediate_size);
    params::QuantizeParams {
        input: params::QuantizerInput {
            source: call.h_rows(chunk),
            status: call.layer.device.status(),
            row_to_token_slot: call.row_to_slot(chunk),
            x: plan.h_rows.pointer(call.base).cast_const().cast(),
            x_row_stride: inter as i64,
        },
        static_scale: call.static_scale(1),
        num_cols: inter as i32,
        ..plan.h.as_output(call.base)
    }
}

/// GEMM2.
///
/// # Safety
/// As [`gemm1`], after it.
pub unsafe fn gemm2(call: &LayerCall, chunk: usize) -> Result<()> {
    let (plan, config, base) = (call.plan, call.config, call.base);
    let (matrix, quantised) = (&call.layer.slice.w2, config.mode == Mode::Nvfp4);
    let gemm = params::GemmParams {
        list: call.tile_list(chunk, matrix),
        x: plan.h.rows.pointer(base).cast_const().cast(),
        x_row_stride: config.intermediate_size as i64,
        row_scale: if quantised { plan.h.global_scale.pointer(base) } else { std::ptr::null_mut() },
        out: plan.y(base),
        out_row_stride: config.hidden_size as i64,
        features: config.hidden_size as i32,
        activation: params::Activation { kind: params::ACTIVATION_NONE as i32, ..Default::default() },
        bias: call.bias(&call.layer.slice.w2_bias),
        tiles_known: 1,
        ..weights(call, matrix, config.activation.projections())
    };
    let x_block_scale = if quantised { plan.h.block_scale.pointer(base) } else { std::ptr::null_mut() };
    // SAFETY: regions of the workspace, prepared weights.
    unsafe {
        launch_gemm(call, GemmKind::Gemm2, &params::GemmSm120Params { gemm, x_block_scale, ..Default::default() })
    }
}

/// A matrix, and the first of its output factors.
fn weights(call: &LayerCall, matrix: &Matrix, alpha: usize) -> params::GemmParams {
    let (slice, storage) = (&call.layer.slice, call.layer.weights.storage());
    params::GemmParams {
        tiles: matrix.codes.pointer(storage),
        expert_stride: slice.stride,
        alphas: slice.alphas.pointer(storage).wrapping_add(alpha),
        top_k: call.config.top_k as i32,
        k_valid: matrix.cols as i32,
        num_slabs: matrix.slabs as i32,
        ..Default::default()
    }
}

unsafe fn launch_gemm(call: &LayerCall, kind: GemmKind, params: &params::GemmSm120Params) -> Result<()> {
    let (rows, tiles) = (call.plan.tile_rows, call.worst_tiles(&params.gemm.list));
    let device = &call.layer.device;
    let launch = gemm_launch(kind, call.config.mode, rows, tiles, device.num_sms);
    let params = params::GemmSm120Params { wait: device.wait_bound(launch.kernel), ..*params };
    // SAFETY: the caller vouches for the pointers of `params`.
    unsafe { call.launch(launch, &params) }
}

/// The kernel of a GEMM with this row-tile size, and its launch for up to `tiles` tiles. A CTA has two weight tiles, but in the
/// last round one.
fn gemm_launch(kind: GemmKind, mode: Mode, rows: u32, tiles: usize, num_sms: u32) -> Launch {
    let blocks = tiles.clamp(1, num_sms as usize) as u32;
    gemm(kind, mode, rows).over([blocks, 1, 1]).with_threads(threads(rows)).sharing(params::GEMM_SM120_SHARED_BYTES)
}

/// A linear's GEMM.
///
/// # Safety
/// As [`gemm1`].
pub unsafe fn linear(call: &LinearCall) -> Result<()> {
    let (linear, config, args, plan) = (call.linear, call.config, call.args, call.plan);
    let (matrix, quantised) = (&linear.layout.weight, config.mode == Mode::Nvfp4);
    let num_sms = linear.device.num_sms;
    let rows = config.tile_rows.unwrap_or_else(|| linear_rows(args.num_tokens, matrix.m_tiles, num_sms));
    let (list, tiles) = call.tiles(rows);
    let gemm = params::GemmParams {
        list,
        tiles: matrix.codes.pointer(linear.weights.storage()),
        alphas: linear.layout.row_alphas.pointer(linear.weights.storage()),
        x: if quantised { plan.x.rows.pointer(call.base).cast_const().cast() } else { args.x.cast() },
        x_row_stride: if quantised { config.in_features } else { args.x_row_stride } as i64,
        row_scale: if quantised { plan.x.global_scale.pointer(call.base) } else { std::ptr::null_mut() },
        out: args.out.cast(),
        bias: linear.bias(),
        out_row_stride: args.out_row_stride as i64,
        top_k: 1,
        k_valid: matrix.cols as i32,
        num_slabs: matrix.slabs as i32,
        features: config.out_features as i32,
        tiles_known: 1,
        ..Default::default()
    };
    let x_block_scale = if quantised { plan.x.block_scale.pointer(call.base) } else { std::ptr::null_mut() };
    let launch = gemm_launch(GemmKind::Linear, config.mode, rows, tiles, num_sms);
    let wait = linear.device.wait_bound(launch.kernel);
    let params = params::GemmSm120Params { gemm, x_block_scale, wait, ..Default::default() };
    // SAFETY: regions of the workspace, the prepared weight; the caller vouches for x and out.
    unsafe { linear.device.launch(launch, call.stream, &params) }
}
