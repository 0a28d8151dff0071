// SPDX-License-Identifier: Apache-2.0
//! A call of few tokens in one launch (`kernels/hopper/few.cuh`).

use super::forward::{gemm1_kind, gemm1_params, gemm2_params};
use super::kernels::{FEW, GemmKind};
use crate::config::Mode;
use crate::cuda::forward::LayerCall;
use crate::cuda::kernels::params;
use crate::error::Result;

/// CTAs that share a weight tile of GEMM2. None where its tiles, one or half a one a CTA, leave more than a fifth of the
/// multiprocessors without work: four launches deal an expert's tiles to all of them.
fn ranks(m_tiles: u32, num_sms: u32, pairs_at_once: u32) -> Option<u32> {
    let pairs_fill = 2 * pairs_at_once == num_sms;
    let fits = |ranks: &u32| ranks * m_tiles <= num_sms && (*ranks == 1 || pairs_fill);
    [2, 1].into_iter().find(fits).filter(|ranks| 5 * ranks * m_tiles >= 4 * num_sms)
}

/// Does the kernel compute this call? Its tiles are those of the smallest size, so that bits are the same. A shared output may
/// come late, and only combine waits for it.
fn is_few(call: &LayerCall) -> bool {
    let (tokens, config) = (call.args.num_tokens, call.config);
    tokens <= params::FEW_TOKENS as usize
        && tokens * config.top_k <= params::FEW_SLOTS as usize
        && call.plan.tile_rows == params::FEW_TOKENS
        && gemm1_kind(config) == GemmKind::Gemm1
        && config.mode == Mode::Bf16
        && call.args.shared.rows.is_null()
}

/// Enqueue all of a call of few tokens; false where it is none.
///
/// # Safety
/// The pointers of the call are device memory as the header states, and the device is entered.
pub unsafe fn whole_call(call: &LayerCall) -> Result<bool> {
    if !is_few(call) {
        return Ok(false);
    }
    let (device, m_tiles) = (&call.layer.device, call.layer.slice.w2.m_tiles as u32);
    let Some(ranks) = ranks(m_tiles, device.num_sms, device.pairs_at_once) else { return Ok(false) };
    let params = params::FewParams {
        route: call.route_params(),
        gemm1: gemm1_params(call, 0),
        gemm2: gemm2_params(call, 0).1,
        combine: call.combine_params(0),
        arrivals: device.arrivals(),
        wait: device.wait_bound(FEW),
    };
    // A CTA on every multiprocessor, with all of its shared memory: no two of these launches run at once.
    let launch = FEW.over([device.num_sms, 1, 1]).sharing(params::GEMM_SM90_SHARED_BYTES).in_clusters(ranks);
    // SAFETY: regions of the workspace, prepared weights; the caller vouches for the rest.
    unsafe { call.launch(launch, &params) }?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctas_of_a_weight_tile_run_at_once_and_are_most_of_them() {
        assert_eq!([7168, 4096].map(|hidden| ranks(hidden / 64, 132, 66)), [Some(1), Some(2)], "Pro and Flash");
        assert_eq!([106, 105].map(|m_tiles| ranks(m_tiles, 132, 66)), [Some(1), None]);
        assert_eq!([132, 133].map(|m_tiles| ranks(m_tiles, 132, 66)), [Some(1), None]);
        assert_eq!([66, 53, 52].map(|m_tiles| ranks(m_tiles, 132, 66)), [Some(2), Some(2), None]);
        assert_eq!(ranks(64, 132, 65), None, "two multiprocessors would be left to another such launch");
    }
}
