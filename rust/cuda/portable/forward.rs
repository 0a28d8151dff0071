// SPDX-License-Identifier: Apache-2.0
//! The portable steps of a call.

use super::kernels::{GEMM_BF16, GEMM_NVFP4, SWIGLU_ROWS, TILE};
use crate::config::Mode;
use crate::cuda::forward::LayerCall;
use crate::cuda::kernels::{Kernel, params};
use crate::cuda::launch::{BLOCKS_PER_SM, Launch};
use crate::cuda::linear_call::LinearCall;
use crate::cuda::plan::Operand;
use crate::cuda::storage::Matrix;
use crate::error::Result;

/// The GEMM that reads its input in this mode.
fn gemm(mode: Mode) -> Kernel {
    if mode == Mode::Nvfp4 { GEMM_NVFP4 } else { GEMM_BF16 }
}

/// Its launch over up to so many tiles; blocks stride over those that there are.
fn gemm_launch(mode: Mode, tiles: usize, num_sms: u32) -> Launch {
    gemm(mode).over([tiles.clamp(1, (num_sms * BLOCKS_PER_SM) as usize) as u32, 1, 1])
}

/// An operand as a GEMM's input; rows are `cols` long.
fn input(operand: &Operand, base: *mut u8, mode: Mode, cols: usize) -> params::PortableGemmParams {
    let rows = params::PortableGemmParams {
        x: operand.rows.pointer(base).cast_const().cast(),
        x_row_stride: cols as i64,
        k: cols as i32,
        top_k: 1,
        ..Default::default()
    };
    match mode {
        Mode::Nvfp4 => params::PortableGemmParams {
            x_block_scale: operand.block_scale.pointer(base),
            x_global_scale: operand.global_scale.pointer(base),
            ..rows
        },
        Mode::Bf16 | Mode::Fp8 => rows,
    }
}

/// GEMM1's sums, then h.
///
/// # Safety
/// The pointers of the call are device memory as the header states, and the device is entered.
pub unsafe fn gemm1(call: &LayerCall, chunk: usize) -> Result<()> {
    let (plan, args, config, base) = (call.plan, call.args, call.config, call.base);
    let (matrix, inter) = (&call.layer.slice.w13, config.intermediate_size);
    let mut x = input(&plan.x, base, config.mode, config.hidden_size);
    // SAFETY: regions of the workspace, prepared weights; the caller vouches for x.
    unsafe {
        if config.mode == Mode::Nvfp4 {
            call.quantize_x(chunk)?;
        } else {
            x.x = args.x.cast();
            x.x_row_stride = args.x_row_stride as i64;
            x.row_to_slot = call.row_to_slot(chunk);
            x.top_k = config.top_k as i32;
        }
        let params = params::PortableGemmParams {
            list: call.tile_list(chunk, matrix),
            sums: plan.gemm_out.pointer(base),
            out_row_stride: matrix.rows as i64,
            alpha_features: inter as i32,
            ..weights(call, matrix, 0, x)
        };
        launch_gemm(call, &params)?;
        activate(call, chunk)
    }
}

/// The activation, and in mode nvfp4 requantise.
unsafe fn activate(call: &LayerCall, chunk: usize) -> Result<()> {
    let (plan, config, base) = (call.plan, call.config, call.base);
    let (out, h) = match config.mode {
        Mode::Nvfp4 => (plan.h.as_output(base), std::ptr::null_mut()),
        Mode::Bf16 | Mode::Fp8 => (params::QuantizeParams::default(), plan.h.rows.pointer(base).cast()),
    };
    let params = params::ActivationParams {
        out: params::QuantizeParams {
            input: params::QuantizerInput {
                source: params::RowSource { row_to_slot: call.row_to_slot(chunk), ..call.h_rows(chunk) },
                status: call.layer.device.status(),
                ..Default::default()
            },
            static_scale: call.static_scale(1),
            num_cols: config.intermediate_size as i32,
            ..out
        },
        h,
        gate_up: plan.gemm_out.pointer(base),
        activation: call.activation(),
        ..Default::default()
    };
    // SAFETY: regions of the workspace.
    unsafe { call.launch(call.layer.device.by_rows(SWIGLU_ROWS, plan.rows), &params) }
}

/// GEMM2.
///
/// # Safety
/// As [`gemm1`], after it.
pub unsafe fn gemm2(call: &LayerCall, chunk: usize) -> Result<()> {
    let (plan, config, matrix) = (call.plan, call.config, &call.layer.slice.w2);
    let h = input(&plan.h, call.base, config.mode, config.intermediate_size);
    let params = params::PortableGemmParams {
        list: call.tile_list(chunk, matrix),
        out: plan.y(call.base),
        out_row_stride: config.hidden_size as i64,
        alpha_features: config.hidden_size as i32,
        ..weights(call, matrix, config.activation.projections(), h)
    };
    // SAFETY: regions of the workspace, prepared weights.
    unsafe { launch_gemm(call, &params) }
}

/// `input` times a matrix; `alpha` is the first of its output factors.
fn weights(
    call: &LayerCall,
    matrix: &Matrix,
    alpha: usize,
    input: params::PortableGemmParams,
) -> params::PortableGemmParams {
    let (slice, storage) = (&call.layer.slice, call.layer.weights.storage());
    params::PortableGemmParams {
        codes: matrix.codes.pointer(storage),
        block_scale: matrix.block_scale.pointer(storage),
        alphas: slice.alphas.pointer(storage).wrapping_add(alpha),
        expert_stride: slice.stride,
        features: matrix.rows as i32,
        ..input
    }
}

unsafe fn launch_gemm(call: &LayerCall, params: &params::PortableGemmParams) -> Result<()> {
    let launch = gemm_launch(call.config.mode, call.worst_tiles(&params.list), call.layer.device.num_sms);
    // SAFETY: the caller vouches for the pointers of `params`.
    unsafe { call.launch(launch, params) }
}

/// A linear's GEMM.
///
/// # Safety
/// As [`gemm1`].
pub unsafe fn linear(call: &LinearCall) -> Result<()> {
    let (linear, config, args) = (call.linear, call.config, call.args);
    let (list, tiles) = call.tiles(TILE as u32);
    let mut x = input(&call.plan.x, call.base, config.mode, config.in_features);
    if config.mode != Mode::Nvfp4 {
        x.x = args.x.cast();
        x.x_row_stride = args.x_row_stride as i64;
    }
    let params = params::PortableGemmParams {
        list,
        codes: linear.layout.weight.codes.pointer(linear.weights.storage()),
        block_scale: linear.layout.weight.block_scale.pointer(linear.weights.storage()),
        alphas: linear.layout.row_alphas.pointer(linear.weights.storage()),
        out: args.out.cast(),
        bias: linear.bias(),
        out_row_stride: args.out_row_stride as i64,
        features: config.out_features as i32,
        alpha_features: 1,
        ..x
    };
    let launch = gemm_launch(config.mode, tiles, linear.device.num_sms);
    // SAFETY: regions of the workspace, the prepared weight; the caller vouches for x and out.
    unsafe { linear.device.launch(launch, call.stream, &params) }
}
