// SPDX-License-Identifier: Apache-2.0
//! Compute capability 12.x: the steps of a call.

use super::kernels::{GemmKind, gemm};
use super::tiles::{linear_rows, threads};
use crate::config::{LayerConfig, Mode, ScalePolicy};
use crate::cuda::forward::LayerCall;
use crate::cuda::kernels::params;
use crate::cuda::launch::Launch;
use crate::cuda::linear_call::LinearCall;
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
        ..call.tile_weights(matrix, 0)
    };
    let mut params = params::GemmSm120Params { gemm, ..Default::default() };
    if quantised {
        params.x_block_scale = plan.x.block_scale.pointer(base);
    }
    if requantizes(config) {
        params.h = call.quantize_h_params(chunk);
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
            call.quantize_h(chunk)?;
        }
    }
    Ok(())
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
        ..call.tile_weights(matrix, config.activation.projections())
    };
    let x_block_scale = if quantised { plan.h.block_scale.pointer(base) } else { std::ptr::null_mut() };
    // SAFETY: regions of the workspace, prepared weights.
    unsafe {
        launch_gemm(call, GemmKind::Gemm2, &params::GemmSm120Params { gemm, x_block_scale, ..Default::default() })
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
    let (linear, config, num_sms) = (call.linear, call.config, call.linear.device.num_sms);
    let m_tiles = linear.layout.weight.m_tiles;
    let rows = config.tile_rows.unwrap_or_else(|| linear_rows(call.args.num_tokens, m_tiles, num_sms));
    let (list, tiles) = call.tiles(rows);
    let gemm = call.tile_params(list);
    let x_block_scale =
        if config.mode == Mode::Nvfp4 { call.plan.x.block_scale.pointer(call.base) } else { std::ptr::null_mut() };
    let launch = gemm_launch(GemmKind::Linear, config.mode, rows, tiles, num_sms);
    let wait = linear.device.wait_bound(launch.kernel);
    let params = params::GemmSm120Params { gemm, x_block_scale, wait, ..Default::default() };
    // SAFETY: regions of the workspace, the prepared weight; the caller vouches for x and out.
    unsafe { linear.device.launch(launch, call.stream, &params) }
}
