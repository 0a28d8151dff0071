// SPDX-License-Identifier: Apache-2.0
//! NVFP4, exactly: the law that every kernel matches bit for bit.
//!
//! A tensor is rows of e2m1 codes, two in a byte; an e4m3 scale for every [`BLOCK_SIZE`] neighbours along the
//! reduction dimension; and one f32 global scale: `value = e2m1 * block_scale * global_scale`. Every product
//! `e2m1 * block_scale` has at most 6 significant bits, so it is exact in bf16.

mod block;
mod e2m1;
mod e4m3;
mod mxfp4;
mod rounding;
mod rounding_sums;
mod row;
mod scale_layout;
mod scale_pairs;
mod scale_span;
mod weight_scales;

pub use block::{
    BlockReport, MIN_GLOBAL_SCALE, QuantScale, check_global_scale, dequantize_row, dynamic_global_scale, finite_amax,
    input_scale_from_amax, quantize_block, quantize_row,
};
pub use e2m1::{E2M1_MAX, E2M1_VALUES, e2m1_decode, e2m1_encode};
pub use e4m3::{E4M3_MAX, E4M3_NAN, e4m3_decode, e4m3_encode, is_power_of_two};
pub use mxfp4::{MX_BLOCK_SIZE, MxSpan, any_nonzero, cast_mxfp4};
pub use rounding::{RoundedWeights, Rounding};
pub use rounding_sums::{BINADES, MatrixOf, RoundedMatrix, RoundingSums, WeightError};
pub use row::{fp8_row_scale, quantize_row_fp8};
pub use scale_layout::{SfLayout, sf_offset_128x4, sf_size_128x4};
pub use scale_pairs::{ScaleRow, check_scale_pairs};
pub use scale_span::{MAX_SCALE_SPAN, Part, ScaleSpan, check_scale_spans, parts_of};
pub use weight_scales::{check_block_scales, check_weight_global_scales};

/// Values that share one block scale.
pub const BLOCK_SIZE: usize = 16;
