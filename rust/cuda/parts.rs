//! What mode fp8 asks of a layer's block scales: counted on the device, judged by the same rule as the CPU's.

use super::Stream;
use super::device::{Buffer, Device, Shape};
use super::kernels::{Kernel, params};
use super::{BLOCKS_PER_SM, THREADS};
use crate::error::Result;
use crate::format::{ScaleSpan, check_scale_spans};
use crate::layer::LayerWeights;
use std::sync::Arc;

/// Of no scales yet. The device counts from here.
const NONE: params::MatrixScales = params::MatrixScales { not_powers: 0, smallest: 0x7f, largest: 0 };

/// Each expert's gate, up and down: three parts with an output factor each.
#[derive(Debug)]
pub struct LayerParts {
    counted: Buffer,
    num_experts: usize,
    part_scales: usize,
}

impl LayerParts {
    /// Enqueue the counting.
    ///
    /// # Safety
    /// The block scales are device memory as the header states. The device is entered.
    pub unsafe fn count(
        device: &Arc<Device>,
        weights: &LayerWeights,
        num_experts: usize,
        stream: Stream,
    ) -> Result<LayerParts> {
        let counted = device.allocate(3 * num_experts * size_of::<params::MatrixScales>())?;
        let parts = LayerParts { counted, num_experts, part_scales: weights.w2_block_scale.len / num_experts };
        // SAFETY: memory of that size.
        unsafe { device.write_all(parts.w13().cast_mut(), &vec![NONE; 3 * num_experts], stream) }?;
        let sources = [
            (weights.w13_block_scale.pointer, parts.w13(), 2 * num_experts),
            (weights.w2_block_scale.pointer, parts.w2(), num_experts),
        ];
        for (block_scale, into, num_parts) in sources {
            let params = params::MatrixScalesParams {
                block_scale,
                matrices: into.cast_mut(),
                scales_each: parts.part_scales as i64,
            };
            let blocks = parts.part_scales.div_ceil(THREADS as usize * 8).min(BLOCKS_PER_SM as usize * 4) as u32;
            let shape = Shape::new([blocks, num_parts as u32, 1], THREADS, 0);
            // SAFETY: by contract.
            unsafe { device.launch(Kernel::PartScales, shape, stream, &params) }?;
        }
        Ok(parts)
    }

    /// Of w13, [num_experts, 2], in the checkpoint's order.
    pub fn w13(&self) -> *const params::MatrixScales {
        self.counted.pointer()
    }

    /// Of w2, [num_experts].
    pub fn w2(&self) -> *const params::MatrixScales {
        self.w13().wrapping_add(2 * self.num_experts)
    }

    /// Wait for the counting; refuse weights that are not exact in e4m3.
    pub fn check(&self, device: &Device, up_first: bool, stream: Stream) -> Result<()> {
        let mut counted = vec![NONE; 3 * self.num_experts];
        // SAFETY: memory of that size, which the kernel has filled.
        unsafe { device.read_all(self.w13(), &mut counted, stream) }?;
        let (w13, w2) = counted.split_at(2 * self.num_experts);
        let experts = w13.chunks(2).zip(w2).map(|(w13, w2)| [&w13[0], &w13[1], w2].map(|counted| self.span(counted)));
        check_scale_spans(experts, up_first)
    }

    fn span(&self, counted: &params::MatrixScales) -> ScaleSpan {
        let ends: &[u8] = if counted.largest == 0 { &[] } else { &[counted.smallest as u8, counted.largest as u8] };
        ScaleSpan { num_scales: self.part_scales as u64, not_powers: counted.not_powers.into(), ..ScaleSpan::of(ends) }
    }
}
