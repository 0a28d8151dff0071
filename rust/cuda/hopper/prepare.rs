// SPDX-License-Identifier: Apache-2.0
//! What Hopper's mode fp8 asks of a layer's weights.

use super::kernels::{MATRIX_SCALES, MEASURE_ROUNDING};
use crate::call::{LayerWeights, Stream};
use crate::config::{LayerConfig, WeightForm};
use crate::cuda::device::Device;
use crate::cuda::kernels::{THREADS, params};
use crate::cuda::launch::BLOCKS_PER_SM;
use crate::cuda::prepare::CountedScales;
use crate::error::Result;
use crate::format::BLOCK_SIZE;
use crate::shape::RowOrder;
use std::sync::Arc;

/// Enqueue the counting of what mode fp8 asks of the block scales: kernels leave a power of two out of each projection. And of
/// what rounding does to the weights, where they are rounded.
///
/// # Safety
/// The weights are device memory as the header states. The device is entered.
pub unsafe fn count_scales(
    device: &Arc<Device>,
    config: &LayerConfig,
    weights: &LayerWeights,
    stream: Stream,
) -> Result<CountedScales> {
    let shape = config.shape();
    let mut counted = CountedScales::new(device, shape, params::FP8_LARGEST_EXPONENT as i32, stream)?;
    let scales = shape.projection_block_scales();
    let w13_row = if weights.row_order == RowOrder::Interleaved { shape.hidden / BLOCK_SIZE } else { 0 };
    let sources = [
        (weights.w13_block_scale.pointer, counted.w13(), shape.projections, w13_row, shape.hidden),
        (weights.w2_block_scale.pointer, counted.w2(), 1, 0, shape.inter),
    ];
    for (block_scale, matrices, of_an_expert, row_scales, cols) in sources {
        let (scales_each, row_scales) = (scales as i64, row_scales as i64);
        let paired_row = if config.weight_form() == WeightForm::Fp8Pairs { (cols / BLOCK_SIZE) as i64 } else { 0 };
        let params = params::MatrixScalesParams { block_scale, matrices, scales_each, row_scales, paired_row };
        let blocks = scales.div_ceil(THREADS as usize * 8).min(BLOCKS_PER_SM as usize * 4) as u32;
        // SAFETY: the caller vouches for the scales; `counted` has room for every projection.
        unsafe {
            device.launch(MATRIX_SCALES.over([blocks, shape.experts as u32, of_an_expert as u32]), stream, &params)
        }?;
    }
    if config.rounds_weights() {
        // SAFETY: the caller's promise is the same.
        unsafe { measure_rounding(device, config, weights, &mut counted, stream) }?;
    }
    Ok(counted)
}

/// Enqueue the measuring of what rounding does to every matrix, whose largest block scale has been found.
///
/// # Safety
/// As [`count_scales`].
unsafe fn measure_rounding(
    device: &Arc<Device>,
    config: &LayerConfig,
    weights: &LayerWeights,
    counted: &mut CountedScales,
    stream: Stream,
) -> Result<()> {
    let (shape, [w13_sums, w2_sums]) = (config.shape(), counted.measured(device, stream)?);
    let blocks = shape.projection_block_scales();
    let w13_row = if weights.row_order == RowOrder::Interleaved { shape.hidden / BLOCK_SIZE } else { 0 };
    let sources = [
        (weights.w13, weights.w13_block_scale, counted.w13(), w13_sums, shape.projections, w13_row),
        (weights.w2, weights.w2_block_scale, counted.w2(), w2_sums, 1, 0),
    ];
    for (codes, block_scale, matrices, sums, of_an_expert, row_blocks) in sources {
        let params = params::RoundingParams {
            codes: codes.pointer,
            block_scale: block_scale.pointer,
            matrices,
            sums: sums.cast(),
            matrix_blocks: blocks as i64,
            row_blocks: row_blocks as i64,
        };
        // Enough for every multiprocessor where experts are few; each ends in atomic additions to its matrix.
        let grid = [blocks.div_ceil(THREADS as usize).min(64) as u32, shape.experts as u32, of_an_expert as u32];
        // SAFETY: the caller vouches for the weights; `counted` has sums for every projection.
        unsafe { device.launch(MEASURE_ROUNDING.over(grid), stream, &params) }?;
    }
    Ok(())
}
