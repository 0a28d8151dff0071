// SPDX-License-Identifier: Apache-2.0
//! The NVFP4 linear on the CPU.

use super::gemm::{WeightMatrix, for_each_task, for_each_tile, tokens_at_a_time};
use super::isa::{self, Isa};
use super::operands::RowTransform;
use super::output_factor::OutputFactor;
use super::parts_of::PartsOf;
use super::plan::{CHUNK_TOKENS, LinearPlan};
use super::shared_workspace::with_workspace;
use crate::call::{LinearArgs, LinearBackend, LinearWeights, Readiness, Storage, Stream};
use crate::config::{LinearConfig, Mode};
use crate::error::Result;
use crate::format::{check_block_scales, check_weight_global_scales};
use crate::threads;
use half::bf16;
use std::ops::Range;

/// A linear whose weight stays where the caller has it.
#[derive(Debug)]
pub struct CpuLinear {
    config: LinearConfig,
    weights: Option<LinearWeights>,
    /// The largest finite input that calibration met; negative while there was none.
    amax: f32,
}

impl CpuLinear {
    /// A linear without a weight.
    pub fn new(config: &LinearConfig) -> Self {
        CpuLinear { config: config.clone(), weights: None, amax: -1.0 }
    }

    unsafe fn compute(&self, config: &LinearConfig, input_scale: f32, args: &LinearArgs, observe: bool) -> Result<f32> {
        let Some(weights) = &self.weights else { return Ok(-1.0) }; // the facade refused
        // SAFETY: valid host memory, as the backend's caller promises.
        unsafe { LinearCall { config, weights, input_scale, args, isa: isa::best(), observe }.run() }
    }
}

impl LinearBackend for CpuLinear {
    fn storage_size(&self) -> u64 {
        0
    }

    fn readiness(&self) -> Readiness {
        Readiness::of(&self.weights)
    }

    unsafe fn prepare(&mut self, weights: &LinearWeights, _: Storage, _: Stream) -> Result<()> {
        // SAFETY: host memory that nobody writes during the call.
        unsafe {
            check_block_scales("block_scale", weights.block_scale.slice())?;
            check_weight_global_scales("global_scale", weights.global_scale.slice())?;
        }
        self.weights = Some(weights.clone());
        self.amax = -1.0; // seen before other weights
        Ok(())
    }

    fn workspace_size(&self, max_tokens: usize) -> u64 {
        LinearPlan::new(&self.config, isa::best(), max_tokens).workspace_size
    }

    unsafe fn forward(&self, input_scale: f32, args: &LinearArgs, _: Stream) -> Result<()> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.compute(&self.config, input_scale, args, false) }.map(|_| ())
    }

    unsafe fn calibrate(&mut self, args: &LinearArgs, _: Stream) -> Result<()> {
        let config = LinearConfig { mode: Mode::Bf16, ..self.config.clone() };
        // SAFETY: the caller's promise is the same.
        self.amax = self.amax.max(unsafe { self.compute(&config, 0.0, args, true) }?);
        Ok(())
    }

    fn take_amax(&mut self) -> Result<f32> {
        Ok(std::mem::replace(&mut self.amax, -1.0))
    }
}

/// One forward: what it computes, with which instructions.
struct LinearCall<'a> {
    config: &'a LinearConfig,
    weights: &'a LinearWeights,
    /// Decoding global scale of the input in mode nvfp4 with static scales.
    input_scale: f32,
    args: &'a LinearArgs,
    isa: &'a Isa,
    /// Ask for the largest input.
    observe: bool,
}

impl LinearCall<'_> {
    /// Compute the linear; returns the largest finite input if asked to.
    ///
    /// # Safety
    /// All pointers are host memory, valid as the header states.
    unsafe fn run(&self) -> Result<f32> {
        let num_tokens = self.args.num_tokens;
        let plan = LinearPlan::new(self.config, self.isa, num_tokens);
        with_workspace(self.args.workspace, plan.workspace_size, |base| {
            let base = PartsOf::new(base);
            threads::run(|| {
                (0..num_tokens).step_by(CHUNK_TOKENS).fold(-1.0f32, |amax, first| {
                    let tokens = first..(first + CHUNK_TOKENS).min(num_tokens);
                    // SAFETY: the workspace has the plan's size; chunks run one after another.
                    amax.max(unsafe { self.chunk(&plan, base.address(0), tokens) })
                })
            })
        })?
    }

    unsafe fn chunk(&self, plan: &LinearPlan, base: *mut u8, tokens: Range<usize>) -> f32 {
        let (config, args, isa) = (self.config, self.args, self.isa);
        let x = plan.x.operands(isa, base);
        // SAFETY: rows of x are valid for in_features values.
        let x_row = |token: usize| unsafe {
            let pointer = args.x.add((tokens.start + token) * args.x_row_stride);
            Some(std::slice::from_raw_parts(pointer.cast::<bf16>(), config.in_features))
        };
        let transform = RowTransform::new(config.mode, config.scale_policy, self.input_scale);
        let amax = x.write(tokens.len(), x_row, transform, self.observe, |token| tokens.start + token);

        // SAFETY: host tensors, not written during the call.
        let (codes, block_scales, globals, bias) = unsafe {
            let w = self.weights;
            (w.weight.slice(), w.block_scale.slice(), w.global_scale.slice(), w.bias.map(|bias| bias.slice()))
        };
        let matrix = WeightMatrix::expert(codes, block_scales, config.out_features, config.in_features, 0);
        let out = PartsOf::new(args.out.cast::<bf16>());
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
                        let weight_scale = globals[self.weights.part_of_row(feature)];
                        let alpha = OutputFactor::new(x.global_scale(row), weight_scale);
                        let bias = bias.map_or(0.0, |bias| bf16::from_bits(bias[feature]).to_f32());
                        *out = bf16::from_f32(alpha.times(*product) + bias);
                    }
                }
            });
        });
        amax
    }
}
