// SPDX-License-Identifier: Apache-2.0
//! Sizes of a layer, and of what its buffers and tensors have by them.

use crate::shape::MoeShape;
use serde::Serialize;

/// The three matrices of an expert, in the order in which the reader keeps their scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Projection {
    /// `[I, H]`
    Gate,
    /// `[I, H]`
    Up,
    /// `[H, I]`
    Down,
}

impl Projection {
    /// All three.
    pub const ALL: [Projection; 3] = [Projection::Gate, Projection::Up, Projection::Down];

    /// Those of an expert: without a gate, the last two.
    pub const fn of_expert(gated: bool) -> &'static [Projection] {
        if gated { &Projection::ALL } else { &[Projection::Up, Projection::Down] }
    }
}

/// Sizes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Dims {
    /// E
    pub num_experts: usize,
    /// H, a multiple of 16
    pub hidden_size: usize,
    /// I, a multiple of 16
    pub intermediate_size: usize,
    /// Is there a gate?
    pub gated: bool,
}

impl Dims {
    /// Lengths of the tensors of so many experts, gate and up together.
    fn shape(self, experts: usize) -> MoeShape {
        let projections = if self.gated { 2 } else { 1 };
        MoeShape { experts, hidden: self.hidden_size, inter: self.intermediate_size, projections }
    }

    /// Packed bytes of one of gate, up and down.
    pub(super) fn codes_len(self) -> usize {
        self.shape(1).w2()
    }

    /// Block scales of one of gate, up and down.
    pub(super) fn block_scales_len(self) -> usize {
        self.shape(1).projection_block_scales()
    }

    /// Elements of each buffer that takes `num_experts` experts, which must be no more than there are.
    pub fn buffer_lens(self, num_experts: usize) -> BufferLens {
        let shape = self.shape(num_experts);
        BufferLens {
            w13: shape.w13(),
            w13_block_scale: shape.w13_block_scale(),
            w13_global_scale: shape.w13_global_scale(),
            w2: shape.w2(),
            w2_block_scale: shape.w2_block_scale(),
            w2_global_scale: shape.w2_global_scale(),
            w13_bias: 2 * shape.w13_bias(),
            w2_bias: 2 * shape.w2_bias(),
        }
    }

    /// Bytes of the whole layer's codes and scales.
    pub fn bytes(self) -> u64 {
        let matrices = Projection::of_expert(self.gated).len() as u64;
        matrices * self.num_experts as u64 * (self.codes_len() + self.block_scales_len() + size_of::<f32>()) as u64
    }

    /// The same in MXFP4: half as many scales, and none beside.
    pub fn bytes_mxfp4(self) -> u64 {
        let matrices = Projection::of_expert(self.gated).len() as u64;
        matrices * self.num_experts as u64 * (self.codes_len() + self.block_scales_len() / 2) as u64
    }

    /// `[rows, cols]` of a projection.
    pub(super) fn matrix(self, projection: Projection) -> [u64; 2] {
        let (hidden, intermediate) = (self.hidden_size as u64, self.intermediate_size as u64);
        match projection {
            Projection::Gate | Projection::Up => [intermediate, hidden],
            Projection::Down => [hidden, intermediate],
        }
    }
}

/// Elements of each of [`LayerBuffers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct BufferLens {
    pub w13: usize,
    pub w13_block_scale: usize,
    pub w13_global_scale: usize,
    pub w2: usize,
    pub w2_block_scale: usize,
    pub w2_global_scale: usize,
    /// Bytes, as are those of w2; 0 where the layer has no biases.
    pub w13_bias: usize,
    pub w2_bias: usize,
}

/// Where [`Layer::read`](super::Layer::read) puts a range of n experts; shapes as `nvfp4_moe_layer_weights` has them,
/// gate rows first. Without a gate there are I rows instead of 2I.
#[derive(Debug)]
pub struct LayerBuffers<'a> {
    /// e2m1x2 `[n, 2I, H/2]`
    pub w13: &'a mut [u8],
    /// e4m3 `[n, 2I, H/16]`
    pub w13_block_scale: &'a mut [u8],
    /// `[n, 2]`: gate, up; decodes
    pub w13_global_scale: &'a mut [f32],
    /// e2m1x2 `[n, H, I/2]`
    pub w2: &'a mut [u8],
    /// e4m3 `[n, H, I/16]`
    pub w2_block_scale: &'a mut [u8],
    /// `[n]`; decodes
    pub w2_global_scale: &'a mut [f32],
    /// bf16 `[n, 2I]` as bytes; empty where the layer has no biases
    pub w13_bias: &'a mut [u8],
    /// bf16 `[n, H]` as bytes
    pub w2_bias: &'a mut [u8],
}

impl LayerBuffers<'_> {
    pub(super) fn lens(&self) -> BufferLens {
        BufferLens {
            w13: self.w13.len(),
            w13_block_scale: self.w13_block_scale.len(),
            w13_global_scale: self.w13_global_scale.len(),
            w2: self.w2.len(),
            w2_block_scale: self.w2_block_scale.len(),
            w2_global_scale: self.w2_global_scale.len(),
            w13_bias: self.w13_bias.len(),
            w2_bias: self.w2_bias.len(),
        }
    }
}
