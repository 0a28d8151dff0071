//! The NVFP4 linear on the CPU.

use super::gemm::{WeightMatrix, for_each_task, for_each_tile, tokens_at_a_time};
use super::isa;
use super::operands::{Operands, RowTransform};
use super::plan::{CHUNK_TOKENS, LinearPlan};
use super::shared::Shared;
use super::shared_workspace::with_workspace;
use crate::config::LinearConfig;
use crate::error::Result;
use crate::linear::{LinearArgs, LinearWeights};
use crate::threads;
use half::bf16;
use std::ops::Range;

/// What one call works on.
pub struct LinearCall<'a> {
    /// The linear.
    pub config: &'a LinearConfig,
    /// Its weights.
    pub weights: &'a LinearWeights,
    /// Decoding global scale of the input in mode nvfp4 with static scales.
    pub input_scale: f32,
    /// The call's tensors.
    pub args: &'a LinearArgs,
}

/// Compute the linear; returns the largest finite |input| if `observe`.
///
/// # Safety
/// All pointers are host memory, valid as the header states.
pub unsafe fn linear_forward(call: &LinearCall, observe: bool) -> Result<f32> {
    let args = call.args;
    if args.num_tokens == 0 {
        return Ok(-1.0);
    }
    let plan = LinearPlan::new(call.config, isa::best(), args.num_tokens);
    with_workspace(args.workspace, args.workspace_size, plan.workspace_size, |base| {
        let base = Shared(base);
        threads::run(|| {
            (0..args.num_tokens).step_by(CHUNK_TOKENS).fold(-1.0f32, |amax, first| {
                let tokens = first..(first + CHUNK_TOKENS).min(args.num_tokens);
                // SAFETY: the workspace has the plan's size; chunks run one after another.
                amax.max(unsafe { call.chunk(&plan, base, tokens, observe) })
            })
        })
    })?
}

impl LinearCall<'_> {
    unsafe fn chunk(&self, plan: &LinearPlan, base: Shared<u8>, tokens: Range<usize>, observe: bool) -> f32 {
        let (config, args, isa) = (self.config, self.args, isa::best());
        let x = Operands::new(isa, config.in_features, plan.x.pointer(base.0), plan.x_global_scale.pointer(base.0));
        // SAFETY: rows of x are valid for in_features values.
        let x_row = |token: usize| unsafe {
            let pointer = args.x.add((tokens.start + token) * args.x_row_stride);
            Some(std::slice::from_raw_parts(pointer.cast::<bf16>(), config.in_features))
        };
        let transform = RowTransform::new(config.mode, config.scale_policy, self.input_scale);
        let amax = x.write(tokens.len(), x_row, transform, observe, |token| tokens.start + token);

        // SAFETY: host tensors, not written during the call.
        let (codes, block_scales, globals, bias) = unsafe {
            let w = self.weights;
            (w.weight.slice(), w.block_scale.slice(), w.global_scale.slice(), w.bias.map(|bias| bias.slice()))
        };
        let matrix = WeightMatrix::expert(codes, block_scales, config.out_features, config.in_features, 0);
        let out = Shared(args.out.cast::<bf16>());
        // One expert that has every token.
        let row_offsets = [0, tokens.len() as i32];
        let at_a_time = tokens_at_a_time(isa, config.in_features);
        for_each_task(&row_offsets, config.out_features, at_a_time, |_, rows, features| {
            let x_rows: Vec<_> = rows.clone().map(|row| x.row(row)).collect();
            for_each_tile(isa, matrix, features, &x_rows, |first, count, products| {
                for (row, products) in rows.clone().zip(products) {
                    // SAFETY: these features of this token belong to this task.
                    let out = unsafe { out.part((tokens.start + row) * args.out_row_stride + first, count) };
                    for ((feature, out), product) in (first..).zip(out).zip(products) {
                        let alpha = x.global_scale(row) * globals[self.weights.part_of_row(feature)];
                        let bias = bias.map_or(0.0, |bias| bf16::from_bits(bias[feature]).to_f32());
                        *out = bf16::from_f32(product * alpha + bias);
                    }
                }
            });
        });
        amax
    }
}
