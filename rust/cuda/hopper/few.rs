// SPDX-License-Identifier: Apache-2.0
//! A call of few tokens in two launches: GEMM1 that routes, and GEMM2 that combines (`kernels/hopper/few.cuh`).

use super::forward::{gemm1_kind, gemm1_params, gemm2_params};
use super::kernels::few;
use crate::config::Mode;
use crate::cuda::forward::LayerCall;
use crate::cuda::kernels::{Kernel, params};
use crate::error::Result;

/// CTAs that share the experts of a weight tile, at most.
const MOST_RANKS: u32 = 4;

/// CTAs that share the experts of a weight tile, so that as many as run at once have work. None where weight tiles alone are
/// more than that.
fn ranks(m_tiles: u32, num_sms: u32) -> Option<u32> {
    (num_sms / m_tiles).min(MOST_RANKS).checked_ilog2().map(|power| 1 << power)
}

/// The kernels of a call of few tokens, where there are any.
fn kernels(call: &LayerCall) -> Option<[Kernel; 2]> {
    let (tokens, config) = (call.args.num_tokens, call.config);
    let is_few = tokens <= params::FEW_TOKENS as usize && tokens * config.top_k <= params::FEW_SLOTS as usize;
    (is_few && config.mode != Mode::Nvfp4 && config.tile_rows.is_none()).then(|| few(gemm1_kind(config)))?
}

/// Enqueue all of a call of few tokens; false where it is none.
///
/// # Safety
/// The pointers of the call are device memory as the header states, and the device is entered.
pub unsafe fn whole_call(call: &LayerCall) -> Result<bool> {
    let num_sms = call.layer.device.num_sms;
    let m_tiles = call.layer.slice.w2.m_tiles as u32;
    let (Some(ranks), Some([gemm1, gemm2])) = (ranks(m_tiles, num_sms), kernels(call)) else { return Ok(false) };
    let (first, second) = params_of(call);
    let tiles = call.worst_tiles(&first.gemm.list).clamp(1, num_sms as usize) as u32;
    let (shared, clusters) = (params::GEMM_SM90_SHARED_BYTES, [m_tiles, ranks, 1]);
    // SAFETY: regions of the workspace, prepared weights; the caller vouches for the rest.
    unsafe {
        call.launch(gemm1.over([tiles, 1, 1]).sharing(shared), &first)?;
        call.launch(gemm2.over(clusters).sharing(shared).in_clusters(ranks), &second)?;
    }
    Ok(true)
}

/// Of both kernels. Rows are bf16: those of mode fp8 are quantised as they are read.
fn params_of(call: &LayerCall) -> (params::FewParams, params::FewParams) {
    let (plan, slice) = (call.plan, &call.layer.slice);
    let gemm1 = params::GemmParams {
        k_valid: slice.w13.cols as i32,
        tiles_known: (call.config.mode == Mode::Fp8).into(),
        ..gemm1_params(call, 0)
    };
    let gemm2 = params::GemmParams {
        k_valid: slice.w2.cols as i32,
        x_row_stride: plan.h_stride as i64,
        row_scale: std::ptr::null(),
        ..gemm2_params(call, 0).1
    };
    let first = params::FewParams { route: call.route_params(), gemm: gemm1, ..Default::default() };
    (first, params::FewParams { gemm: gemm2, combine: call.combine_params(0), ..first })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctas_of_a_weight_tile_run_at_once() {
        assert_eq!([7168, 4096, 2048, 1024].map(|hidden| ranks(hidden / 64, 132)), [1, 2, 4, 4].map(Some));
        assert_eq!([132 * 64, 133 * 64].map(|hidden| ranks(hidden / 64, 132)), [Some(1), None]);
    }
}
