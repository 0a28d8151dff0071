// SPDX-License-Identifier: Apache-2.0
//! The MoE forward on the CPU.

use super::gemm::{WeightMatrix, for_each_task, for_each_tile, tokens_at_a_time};
use super::isa::Isa;
use super::operands::{MIN_TASK_VALUES, Operands, RowTransform};
use super::output_factor::OutputFactor;
use super::parts_of::PartsOf;
use super::plan::{CHUNK_TOKENS, LayerPlan, ROW_ALIGNMENT};
use super::shared_workspace::with_workspace;
use crate::call::{Calibration, InputScales, LayerArgs, LayerWeights};
use crate::config::LayerConfig;
use crate::error::Result;
use crate::routing::{Placement, Routing, route};
use crate::{status, threads};
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// One forward: what it computes, with which instructions.
#[allow(missing_docs)]
pub struct LayerCall<'a> {
    pub config: &'a LayerConfig,
    pub weights: &'a LayerWeights,
    pub input_scales: InputScales,
    pub args: &'a LayerArgs,
    pub isa: &'a Isa,
    /// Ask for the largest inputs of both GEMMs.
    pub observe: bool,
}

impl LayerCall<'_> {
    /// Compute the layer; returns the largest inputs of both GEMMs if asked to.
    ///
    /// # Safety
    /// All pointers are host memory, valid as the header states.
    pub unsafe fn run(&self) -> Result<Calibration> {
        let num_tokens = self.args.num_tokens;
        let plan = LayerPlan::new(self.config, self.isa, num_tokens);
        with_workspace(self.args.workspace, plan.workspace_size, |base| {
            let base = PartsOf::new(base);
            threads::run(|| {
                (0..num_tokens).step_by(CHUNK_TOKENS).fold(Calibration::default(), |seen, first| {
                    let tokens = first..(first + CHUNK_TOKENS).min(num_tokens);
                    // SAFETY: the workspace has the plan's size; chunks run one after another.
                    seen.widened_by(unsafe { self.chunk(&plan, base.address(0), tokens) })
                })
            })
        })?
    }

    /// All steps for one range of tokens.
    unsafe fn chunk(&self, plan: &LayerPlan, base: *mut u8, tokens: Range<usize>) -> Calibration {
        let (config, isa) = (self.config, self.isa);
        let (slots, top_k) = (tokens.len() * config.top_k, config.top_k);
        // SAFETY: the workspace is this plan's, and this chunk alone uses it.
        let mut tables = unsafe { plan.routing(base, slots, config.num_local_experts) };
        // SAFETY: ids and map are valid as the header states.
        unsafe { self.route(&tokens, &mut tables) };
        let Routing { slot_to_row, row_to_slot, padded_row_offsets: row_offsets } = tables;
        let num_rows = row_offsets[config.num_local_experts] as usize;
        let row_to_slot = &row_to_slot[..num_rows];
        let token_of_row = |row: usize| row_to_slot[row] as usize / top_k;

        let x = plan.x.operands(isa, base);
        let is_routed = |token: usize| slot_to_row[token * top_k..][..top_k].iter().any(|row| *row >= 0);
        // SAFETY: rows of x are valid for hidden_size values.
        let x_row = |token: usize| unsafe {
            let pointer = self.args.x.add((tokens.start + token) * self.args.x_row_stride);
            is_routed(token).then(|| std::slice::from_raw_parts(pointer.cast::<bf16>(), config.hidden_size))
        };
        let transform = RowTransform::new(config.mode, config.scale_policy, self.input_scales.w13);
        let x_amax = x.write(tokens.len(), x_row, transform, self.observe, |token| tokens.start + token);

        let h: PartsOf<bf16> = PartsOf::new(plan.h.pointer(base));
        // SAFETY: h has a row for each routed slot.
        unsafe { self.gemm1(&x, row_offsets, token_of_row, h) };

        let h_operand = plan.h_operand.operands(isa, base);
        let transform = RowTransform::new(config.mode, config.scale_policy, self.input_scales.w2);
        let width = config.intermediate_size;
        // SAFETY: gemm1 wrote these rows and is done.
        let h_row = |row: usize| unsafe { Some(&*h.part(row * width, width)) };
        let token_of_row = |row: usize| tokens.start + token_of_row(row);
        let h_amax = h_operand.write(num_rows, h_row, transform, self.observe, token_of_row);

        let y = PartsOf::new(plan.y.pointer(base));
        // SAFETY: y has a row for each routed slot.
        unsafe { self.gemm2(&h_operand, row_offsets, y) };
        // SAFETY: gemm2 wrote the rows; out is valid as the header states.
        unsafe { self.combine(&tokens, slot_to_row, y) };
        Calibration { x_amax, h_amax }
    }

    unsafe fn route(&self, tokens: &Range<usize>, tables: &mut Routing) {
        let (config, args) = (self.config, self.args);
        // SAFETY: NULL, or num_experts entries.
        let expert_map = unsafe {
            (!args.expert_map.is_null()).then(|| std::slice::from_raw_parts(args.expert_map, config.num_experts))
        };
        let placement = Placement {
            num_experts: config.num_experts,
            num_local_experts: config.num_local_experts,
            first_local_expert: config.first_local_expert,
            expert_map,
        };
        let id_of_slot = |slot: usize| {
            let index = (tokens.start + slot / config.top_k) * args.topk_ids_row_stride + slot % config.top_k;
            // SAFETY: ids are valid for this token and k.
            unsafe { args.topk_ids.get(index) }
        };
        let slots = tokens.len() * config.top_k;
        let bad = route(placement, slots, id_of_slot, ROW_ALIGNMENT, tables);
        if let Some(slot) = bad.first_slot {
            status::CPU.add_out_of_range(tokens.start + slot / config.top_k, bad.count);
        }
    }

    /// h = swiglu(x * w13^T), rounded to bf16, a row for each routed slot.
    unsafe fn gemm1(
        &self,
        x: &Operands,
        row_offsets: &[i32],
        token_of_row: impl Fn(usize) -> usize + Sync,
        h: PartsOf<bf16>,
    ) {
        let (hidden, inter) = (self.config.hidden_size, self.config.intermediate_size);
        // SAFETY: host tensors, not written during the call.
        let (codes, scales, globals) = unsafe {
            let w = self.weights;
            (w.w13.slice(), w.w13_block_scale.slice(), w.w13_global_scale.slice())
        };
        let (gate_first, up_first) = if self.weights.up_first { (inter, 0) } else { (0, inter) };
        let tokens = tokens_at_a_time(self.isa, hidden);
        for_each_task(row_offsets, inter, tokens, |expert, rows, features| {
            let matrix = WeightMatrix::expert(codes, scales, 2 * inter, hidden, expert);
            let pair = &globals[2 * expert..][..2];
            let (gate_scale, up_scale) = if self.weights.up_first { (pair[1], pair[0]) } else { (pair[0], pair[1]) };
            let mut gate = vec![0.0f32; rows.len() * features.len()];
            let x_rows: Vec<_> = rows.clone().map(|row| x.row(token_of_row(row))).collect();
            let x_scales = rows.clone().map(|row| x.global_scale(token_of_row(row)));
            let alphas: Vec<_> = x_scales.map(|x| [gate_scale, up_scale].map(|w| OutputFactor::new(x, w))).collect();
            let gate_rows = gate_first + features.start..gate_first + features.end;
            for_each_tile(self.isa, matrix, gate_rows, &x_rows, |first, count, out| {
                for (gate, out) in gate.chunks_exact_mut(features.len()).zip(out) {
                    gate[first - gate_first - features.start..][..count].copy_from_slice(&out[..count]);
                }
            });
            let up_rows = up_first + features.start..up_first + features.end;
            for_each_tile(self.isa, matrix, up_rows, &x_rows, |first, count, out| {
                let feature = first - up_first;
                for (i, up) in out.iter().enumerate() {
                    let gate = &gate[i * features.len() + feature - features.start..];
                    // SAFETY: this row and these features belong to this task.
                    let h = unsafe { h.part((rows.start + i) * inter + feature, count) };
                    let [gate_alpha, up_alpha] = alphas[i];
                    for (j, h) in h.iter_mut().enumerate() {
                        let (gate, up) = (gate_alpha.times(gate[j]), up_alpha.times(up[j]));
                        *h = bf16::from_f32(self.config.activation.apply(gate, up));
                    }
                }
            });
        });
    }

    /// y = h * w2^T in f32, a row for each routed slot.
    unsafe fn gemm2(&self, h: &Operands, row_offsets: &[i32], y: PartsOf<f32>) {
        let (hidden, inter) = (self.config.hidden_size, self.config.intermediate_size);
        // SAFETY: host tensors, not written during the call.
        let (codes, scales, globals) = unsafe {
            let w = self.weights;
            (w.w2.slice(), w.w2_block_scale.slice(), w.w2_global_scale.slice())
        };
        let tokens = tokens_at_a_time(self.isa, inter);
        for_each_task(row_offsets, hidden, tokens, |expert, rows, features| {
            let matrix = WeightMatrix::expert(codes, scales, hidden, inter, expert);
            let h_rows: Vec<_> = rows.clone().map(|row| h.row(row)).collect();
            let alphas: Vec<_> =
                rows.clone().map(|row| OutputFactor::new(h.global_scale(row), globals[expert])).collect();
            for_each_tile(self.isa, matrix, features, &h_rows, |first, count, out| {
                for (i, out) in out.iter().enumerate() {
                    // SAFETY: this row and these features belong to this task.
                    let y = unsafe { y.part((rows.start + i) * hidden + first, count) };
                    for (y, out) in y.iter_mut().zip(out) {
                        *y = alphas[i].times(*out);
                    }
                }
            });
        });
    }

    /// out[t] = sum over k of weight * y in f32, each a fused multiply-add, in order of k; 0 where no slot is routed.
    unsafe fn combine(&self, tokens: &Range<usize>, slot_to_row: &[i32], y: PartsOf<f32>) {
        let config = self.config;
        let out = PartsOf::new(self.args.out.cast::<bf16>());
        let tokens_at_a_time = (MIN_TASK_VALUES / (config.top_k * config.hidden_size)).max(1);
        tokens.clone().into_par_iter().with_min_len(tokens_at_a_time).for_each_init(
            Vec::new,
            |sum: &mut Vec<f32>, token| {
                let args = self.args;
                sum.clear();
                sum.resize(config.hidden_size, 0.0);
                let slots = (token - tokens.start) * config.top_k..;
                for (k, row) in slot_to_row[slots][..config.top_k].iter().enumerate().filter(|(_, row)| **row >= 0) {
                    // SAFETY: weights are NULL or valid for this token and k; the row was written and is only read.
                    let (weight, y) = unsafe {
                        let at = token * args.topk_weights_row_stride + k;
                        let weight = if args.topk_weights.is_null() { 1.0 } else { *args.topk_weights.add(at) };
                        (weight, &*y.part(*row as usize * config.hidden_size, config.hidden_size))
                    };
                    // SAFETY: `isa` is available on this machine.
                    unsafe { (self.isa.add_scaled)(sum, weight, y) };
                }
                // SAFETY: each token's row is written by one task.
                let out = unsafe { out.part(token * args.out_row_stride, config.hidden_size) };
                for (out, sum) in out.iter_mut().zip(&*sum) {
                    *out = bf16::from_f32(*sum);
                }
            },
        );
    }
}
