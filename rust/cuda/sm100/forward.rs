// SPDX-License-Identifier: Apache-2.0
//! The steps of a call on compute capability 10.x.

use super::kernels::{
    ARRANGE_ROWS, GEMM_BF16, GEMM_BF16_ROWS, GEMM_NVFP4, GEMM_NVFP4_ROWS, GEMM1_BF16, GEMM1_NVFP4, GEMM1_NVFP4_ROWS,
};
use super::tiles::linear_rows;
use crate::config::{LayerConfig, Mode, ScalePolicy};
use crate::cuda::forward::LayerCall;
use crate::cuda::kernels::{Kernel, params};
use crate::cuda::launch::Launch;
use crate::cuda::linear_call::LinearCall;
use crate::cuda::plan::Operand;
use crate::cuda::storage::Matrix;
use crate::error::Result;

/// Does GEMM1 itself quantise what it leaves? A dynamic scale needs all of a row first.
pub fn is_fused(config: &LayerConfig) -> bool {
    config.mode == Mode::Nvfp4 && config.scale_policy == ScalePolicy::Static
}

fn has_gate(config: &LayerConfig) -> bool {
    config.activation.projections() == 2
}

fn gemm1_kernel(config: &LayerConfig) -> Kernel {
    match (config.mode, has_gate(config)) {
        (Mode::Nvfp4, true) if is_fused(config) => GEMM1_NVFP4,
        (Mode::Nvfp4, false) if is_fused(config) => GEMM_NVFP4,
        (Mode::Nvfp4, true) => GEMM1_NVFP4_ROWS,
        (Mode::Nvfp4, false) => GEMM_NVFP4_ROWS,
        (Mode::Bf16 | Mode::Fp8, true) => GEMM1_BF16,
        (Mode::Bf16 | Mode::Fp8, false) => GEMM_BF16,
    }
}

fn rows_kernel(mode: Mode) -> Kernel {
    if mode == Mode::Nvfp4 { GEMM_NVFP4_ROWS } else { GEMM_BF16_ROWS }
}

/// An operand in lines as a GEMM's input.
fn input(operand: &Operand, base: *mut u8, mode: Mode, cols: usize) -> params::GemmSm100Params {
    let lines = params::GemmSm100Params {
        rows: operand.rows.pointer(base).cast_const().cast(),
        num_rows: operand.line_rows as i64,
        k: cols as i32,
        top_k: 1,
        ..Default::default()
    };
    match mode {
        Mode::Nvfp4 => params::GemmSm100Params {
            block_scale: operand.block_scale.pointer(base),
            row_scale: operand.global_scale.pointer(base),
            row_scale_stride: 1,
            ..lines
        },
        Mode::Bf16 | Mode::Fp8 => lines,
    }
}

/// From x to h in lines: quantise or arrange x; GEMM1 with the activation; where the scale of h is dynamic, quantise h.
///
/// # Safety
/// The pointers of the call are device memory as the header states, and the device is entered.
pub unsafe fn gemm1(call: &LayerCall, chunk: usize) -> Result<()> {
    let (plan, config, base) = (call.plan, call.config, call.base);
    let (matrix, gated) = (&call.layer.slice.w13, has_gate(config));
    let x = input(&plan.x, base, config.mode, config.hidden_size);
    let mut params = params::GemmSm100Params {
        out: plan.h.rows.pointer(base).cast(),
        out_block_scale: plan.h.block_scale.pointer(base),
        out_scale: plan.h.global_scale.pointer(base), // as the quantiser of x found it
        status: call.layer.device.status(),
        row_to_slot: call.row_to_slot(chunk),
        out_row_stride: config.intermediate_size as i64,
        features: config.intermediate_size as i32,
        activation: call.activation(),
        bias: call.bias(&call.layer.slice.w13_bias),
        pad_rows: 1,
        ..weights(call, chunk, matrix, 0, x)
    };
    if gated {
        params.list.m_tiles = matrix.m_tiles.div_ceil(2) as i32; // a tile of gate and one of up
    }
    let quantises_h = config.mode == Mode::Nvfp4 && !is_fused(config);
    if quantises_h {
        params.out = plan.h_rows.pointer(base).cast();
    }
    // SAFETY: regions of the workspace, prepared weights; the caller vouches for x.
    unsafe {
        match config.mode {
            Mode::Nvfp4 => call.quantize_x(chunk)?,
            Mode::Bf16 | Mode::Fp8 => arrange_x(call, chunk)?,
        }
        launch_gemm(call, gemm1_kernel(config), &mut params)?;
        if quantises_h { call.quantize_h(chunk) } else { Ok(()) }
    }
}

/// bf16 rows of a chunk into lines.
unsafe fn arrange_x(call: &LayerCall, chunk: usize) -> Result<()> {
    let input = call.quantizer_x(chunk);
    let params = params::ArrangeSm100Params {
        source: input.source,
        x: input.x,
        x_row_stride: input.x_row_stride,
        num_cols: call.config.hidden_size as i32,
        ..arranged(&call.plan.x, call.base)
    };
    // SAFETY: regions of the workspace; the caller vouches for x.
    unsafe { call.launch(call.by_x_rows(ARRANGE_ROWS, chunk), &params) }
}

fn arranged(operand: &Operand, base: *mut u8) -> params::ArrangeSm100Params {
    params::ArrangeSm100Params {
        out: operand.rows.pointer(base).cast(),
        num_rows: operand.line_rows as i64,
        ..Default::default()
    }
}

/// GEMM2.
///
/// # Safety
/// As [`gemm1`], after it.
pub unsafe fn gemm2(call: &LayerCall, chunk: usize) -> Result<()> {
    let (plan, config, base) = (call.plan, call.config, call.base);
    let mut h = input(&plan.h, base, config.mode, config.intermediate_size);
    if is_fused(config) {
        h.row_scale_stride = 0; // GEMM1's
    }
    let mut params = params::GemmSm100Params {
        out: plan.y(base),
        out_row_stride: config.hidden_size as i64,
        features: config.hidden_size as i32,
        activation: params::Activation { kind: params::ACTIVATION_NONE as i32, ..Default::default() },
        bias: call.bias(&call.layer.slice.w2_bias),
        ..weights(call, chunk, &call.layer.slice.w2, config.activation.projections(), h)
    };
    // SAFETY: regions of the workspace, prepared weights.
    unsafe { launch_gemm(call, rows_kernel(config.mode), &mut params) }
}

/// `input` times a matrix; `alpha` is the first of its output factors.
fn weights(
    call: &LayerCall,
    chunk: usize,
    matrix: &Matrix,
    alpha: usize,
    input: params::GemmSm100Params,
) -> params::GemmSm100Params {
    let (slice, storage) = (&call.layer.slice, call.layer.weights.storage());
    params::GemmSm100Params {
        list: call.tile_list(chunk, matrix),
        tiles: matrix.codes.pointer(storage),
        alphas: slice.alphas.pointer(storage).wrapping_add(alpha),
        expert_stride: slice.stride,
        top_k: call.config.top_k as i32,
        ..input
    }
}

unsafe fn launch_gemm(call: &LayerCall, kernel: Kernel, params: &mut params::GemmSm100Params) -> Result<()> {
    let device = &call.layer.device;
    params.bound = device.wait_bound(kernel);
    let launch = gemm_launch(kernel, call.worst_tiles(&params.list), device.num_sms);
    // SAFETY: the caller vouches for the pointers of `params`.
    unsafe { call.launch(launch, params) }
}

/// Up to so many tiles: one block a multiprocessor, each of which strides over those that there are.
fn gemm_launch(kernel: Kernel, tiles: usize, num_sms: u32) -> Launch {
    let blocks = tiles.clamp(1, num_sms as usize) as u32;
    kernel.over([blocks, 1, 1]).sharing(params::GEMM_SM100_SHARED_BYTES)
}

/// A linear's GEMM; in mode bf16 x is arranged before it, in mode nvfp4 it has been quantised.
///
/// # Safety
/// As [`gemm1`].
pub unsafe fn linear(call: &LinearCall) -> Result<()> {
    let (linear, config, args, base) = (call.linear, call.config, call.args, call.base);
    let (matrix, device) = (&linear.layout.weight, &linear.device);
    let rows = linear_rows(config.tile_rows, config.mode, args.num_tokens, matrix.m_tiles, device.num_sms);
    let (list, tiles) = call.tiles(rows);
    let kernel = rows_kernel(config.mode);
    let params = params::GemmSm100Params {
        list,
        tiles: matrix.codes.pointer(linear.weights.storage()),
        alphas: linear.layout.row_alphas.pointer(linear.weights.storage()),
        alpha_by_row: 1,
        out: args.out.cast(),
        bias: linear.bias(),
        out_row_stride: args.out_row_stride as i64,
        features: config.out_features as i32,
        activation: params::Activation { kind: params::ACTIVATION_NONE as i32, ..Default::default() },
        bound: device.wait_bound(kernel),
        ..input(&call.plan.x, base, config.mode, config.in_features)
    };
    // SAFETY: regions of the workspace, the prepared weight; the caller vouches for x and out.
    unsafe {
        if config.mode != Mode::Nvfp4 {
            let arrange = params::ArrangeSm100Params {
                source: call.source(),
                x: args.x.cast(),
                x_row_stride: args.x_row_stride as i64,
                num_cols: config.in_features as i32,
                ..arranged(&call.plan.x, base)
            };
            device.launch(device.by_rows(ARRANGE_ROWS, args.num_tokens), call.stream, &arrange)?;
        }
        device.launch(gemm_launch(kernel, tiles, device.num_sms), call.stream, &params)
    }
}
