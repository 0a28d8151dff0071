// SPDX-License-Identifier: Apache-2.0
//! What Hopper's mode fp8 asks of a layer's weights.

use super::kernels::MATRIX_SCALES;
use crate::call::{LayerWeights, Stream};
use crate::cuda::device::Device;
use crate::cuda::kernels::{THREADS, params};
use crate::cuda::launch::BLOCKS_PER_SM;
use crate::cuda::prepare::CountedScales;
use crate::error::Result;
use crate::format::BLOCK_SIZE;
use crate::shape::{MoeShape, RowOrder};
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
    let w13_row = if weights.row_order == RowOrder::Interleaved { shape.hidden / BLOCK_SIZE } else { 0 };
    let sources = [
        (weights.w13_block_scale.pointer, counted.w13(), shape.projections, w13_row),
        (weights.w2_block_scale.pointer, counted.w2(), 1, 0),
    ];
    for (block_scale, matrices, of_an_expert, row_scales) in sources {
        let (scales_each, row_scales) = (scales as i64, row_scales as i64);
        let params = params::MatrixScalesParams { block_scale, matrices, scales_each, row_scales };
        let blocks = scales.div_ceil(THREADS as usize * 8).min(BLOCKS_PER_SM as usize * 4) as u32;
        // SAFETY: the caller vouches for the scales; `counted` has room for every projection.
        unsafe {
            device.launch(MATRIX_SCALES.over([blocks, shape.experts as u32, of_an_expert as u32]), stream, &params)
        }?;
    }
    Ok(counted)
}
