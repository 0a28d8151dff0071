// SPDX-License-Identifier: Apache-2.0
//! Bringing a layer's weights into Hopper's tiles.

use super::kernels::{MATRIX_SCALES, PREPARE_TILES};
use crate::call::{LayerWeights, Stream};
use crate::cuda::device::Device;
use crate::cuda::kernels::{THREADS, params};
use crate::cuda::launch::BLOCKS_PER_SM;
use crate::cuda::prepare::{CountedScales, Source};
use crate::cuda::storage::Matrix;
use crate::error::Result;
use crate::shape::MoeShape;
use std::sync::Arc;

/// Enqueue the counting of what mode fp8 asks of the block scales: kernels leave a power of two out of each projection.
///
/// # Safety
/// The block scales are device memory as the header states. The device is entered.
pub unsafe fn count_scales(
    device: &Arc<Device>,
    shape: MoeShape,
    weights: &LayerWeights,
    stream: Stream,
) -> Result<CountedScales> {
    let counted = CountedScales::new(device, shape, params::FP8_LARGEST_EXPONENT as i32, stream)?;
    let scales = shape.projection_block_scales();
    let sources = [
        (weights.w13_block_scale.pointer, counted.w13(), shape.projections),
        (weights.w2_block_scale.pointer, counted.w2(), 1),
    ];
    for (block_scale, matrices, of_an_expert) in sources {
        let params = params::MatrixScalesParams { block_scale, matrices, scales_each: scales as i64 };
        let blocks = scales.div_ceil(THREADS as usize * 8).min(BLOCKS_PER_SM as usize * 4) as u32;
        // SAFETY: the caller vouches for the scales; `counted` has room for every projection.
        unsafe {
            device.launch(MATRIX_SCALES.over([blocks, shape.experts as u32, of_an_expert as u32]), stream, &params)
        }?;
    }
    Ok(counted)
}

/// Enqueue the repacking of one matrix of all experts.
///
/// # Safety
/// The pointers of `source` and the storage are device memory of the sizes that `matrix` has.
pub unsafe fn prepare_tiles(
    device: &Device,
    matrix: &Matrix,
    source: &Source,
    storage: *mut u8,
    stream: Stream,
) -> Result<()> {
    let experts = source.num_experts as u32;
    let params = params::PrepareParams {
        source: source.of(matrix),
        tiles: matrix.codes.pointer(storage),
        scales: source.counted,
        num_slabs: matrix.slabs as i32,
        gated: source.gated.into(),
        up_first: source.up_first.into(),
        reserved: 0,
    };
    let runs = matrix.slabs.div_ceil(params::PREPARE_RUN_SLABS as usize) as u32;
    // SAFETY: the caller vouches for both sides.
    unsafe { device.launch(PREPARE_TILES.over([runs, matrix.m_tiles as u32, experts]), stream, &params) }
}
