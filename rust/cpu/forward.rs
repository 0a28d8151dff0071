// SPDX-License-Identifier: Apache-2.0
//! The MoE forward on the CPU.

use super::gemm::{PerRow, WeightMatrix, for_each_task, for_each_tile, tokens_at_a_time};
use super::isa::Isa;
use super::operands::{MIN_TASK_VALUES, Operands, RowTransform};
use super::output_factor::OutputFactor;
use super::parts_of::PartsOf;
use super::plan::{CHUNK_TOKENS, LayerPlan, ROW_ALIGNMENT};
use super::rounding::Roundings;
use super::shared_workspace::with_workspace;
use crate::call::{Calibration, InputScales, LayerArgs, LayerWeights, SharedOutput};
use crate::config::LayerConfig;
use crate::error::Result;
use crate::format::Part;
use crate::memory::filled;
use crate::routing::{Placement, Routing, Tables, route};
use crate::shape::RowOrder;
use crate::{status, threads};
use half::bf16;
use std::ops::Range;

/// Columns that combine sums at a time, on the stack: once it writes, nothing may fail any more.
const SUM_COLUMNS: usize = 4096;

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
        let (plan, config) = (LayerPlan::new(self.config, self.isa, num_tokens), self.config);
        let slots = num_tokens.min(CHUNK_TOKENS) * config.top_k;
        let mut tables = Tables::new(slots, config.num_local_experts, ROW_ALIGNMENT)?;
        with_workspace(self.args.workspace, plan.workspace_size, |base| {
            let base = PartsOf::new(base);
            threads::run(|| {
                (0..num_tokens).step_by(CHUNK_TOKENS).try_fold(Calibration::default(), |seen, first| {
                    let tokens = first..(first + CHUNK_TOKENS).min(num_tokens);
                    // SAFETY: the workspace has the plan's size; chunks run one after another.
                    Ok(seen.widened_by(unsafe { self.chunk(&plan, base.address(0), &mut tables, tokens) }?))
                })
            })?
        })?
    }

    /// All steps for one range of tokens.
    unsafe fn chunk(
        &self,
        plan: &LayerPlan,
        base: *mut u8,
        tables: &mut Tables,
        tokens: Range<usize>,
    ) -> Result<Calibration> {
        let (config, isa) = (self.config, self.isa);
        let (slots, top_k) = (tokens.len() * config.top_k, config.top_k);
        let mut tables = tables.of_slots(slots, ROW_ALIGNMENT);
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
        let x_amax = x.write(tokens.len(), x_row, transform, self.observe, |token| tokens.start + token)?;

        // SAFETY: host tensors, not written during the call.
        let of_experts = || unsafe { Roundings::of(config, self.weights, row_offsets) };
        let roundings = &config.rounds_weights().then(of_experts).transpose()?;
        let h: PartsOf<bf16> = PartsOf::new(plan.h.pointer(base));
        // SAFETY: h has a row for each routed slot.
        unsafe { self.gemm1(&x, row_offsets, token_of_row, roundings, h) }?;

        let h_operand = plan.h_operand.operands(isa, base);
        let transform = RowTransform::new(config.mode, config.scale_policy, self.input_scales.w2);
        let width = config.intermediate_size;
        // SAFETY: gemm1 wrote these rows and is done.
        let h_row = |row: usize| unsafe { Some(&*h.part(row * width, width)) };
        let token_of_row = |row: usize| tokens.start + token_of_row(row);
        let h_amax = h_operand.write(num_rows, h_row, transform, self.observe, token_of_row)?;

        let y = PartsOf::new(plan.y.pointer(base));
        // SAFETY: y has a row for each routed slot.
        unsafe { self.gemm2(&h_operand, row_offsets, roundings, y) }?;
        // SAFETY: gemm2 wrote the rows; out is valid as the header states.
        unsafe { self.combine(&tokens, slot_to_row, y) }?;
        Ok(Calibration { x_amax, h_amax })
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

    /// h = the activation of x * w13^T, rounded to bf16, a row for each routed slot.
    unsafe fn gemm1(
        &self,
        x: &Operands,
        row_offsets: &[i32],
        token_of_row: impl Fn(usize) -> usize + Send + Sync,
        roundings: &Option<Roundings>,
        h: PartsOf<bf16>,
    ) -> Result<()> {
        let (hidden, inter) = (self.config.hidden_size, self.config.intermediate_size);
        // SAFETY: host tensors, not written during the call.
        let (codes, scales, globals) = unsafe {
            let w = self.weights;
            (w.w13.slice(), w.w13_block_scale.slice(), w.w13_global_scale.slice())
        };
        let (order, activation, rows_of_expert) =
            (self.weights.row_order, self.config.activation, self.config.shape().w13_rows());
        let biases = self.weights.w13_bias;
        let tokens = tokens_at_a_time(self.isa, hidden);
        for_each_task(row_offsets, inter, tokens, |expert, rows, features| {
            let matrix = WeightMatrix::expert(codes, scales, rows_of_expert, hidden, expert);
            let projection = |is_up: bool| WeightMatrix {
                place: order.rows(is_up, inter),
                rounding: roundings.as_ref().map(|of| of.get(expert, if is_up { Part::Up } else { Part::Gate })),
                ..matrix
            };
            let x_rows = PerRow::new(rows.clone(), std::ptr::null(), |row| x.row(token_of_row(row)));
            let x_scales = PerRow::new(rows.clone(), 0.0, |row| x.global_scale(token_of_row(row)));
            // SAFETY: a host tensor, not written during the call.
            let biases = biases.map(|biases| unsafe { &biases.slice()[expert * rows_of_expert..][..rows_of_expert] });
            // Gate or up of one feature out of its product.
            let finish = |is_up: bool| {
                let global = globals[activation.projections() * expert + order.place(is_up)];
                let (first, step) = order.rows(is_up, inter);
                let unused = OutputFactor::new(0.0, 0.0);
                let factors = PerRow::new(0..rows.len(), unused, |i| OutputFactor::new(x_scales[i], global));
                move |row: usize, feature: usize, product: f32| {
                    let scaled = factors[row].times(product);
                    biases.map_or(scaled, |b| scaled + bf16::from_bits(b[first + feature * step]).to_f32())
                }
            };
            let mut gates = filled("gate values", rows.len() * features.len(), 0.0f32)?;
            if order != RowOrder::Plain {
                let (matrix, finish) = (projection(false), finish(false));
                for_each_tile(self.isa, matrix, features.clone(), &x_rows, |first, count, out| {
                    for (i, (gates, out)) in gates.chunks_exact_mut(features.len()).zip(out).enumerate() {
                        for (j, out) in out[..count].iter().enumerate() {
                            gates[first - features.start + j] = finish(i, first + j, *out);
                        }
                    }
                });
            }
            let (matrix, finish) = (projection(true), finish(true));
            for_each_tile(self.isa, matrix, features.clone(), &x_rows, |first, count, out| {
                for (i, up) in out.iter().enumerate() {
                    let gate = &gates[i * features.len() + first - features.start..];
                    // SAFETY: this row and these features belong to this task.
                    let h = unsafe { h.part((rows.start + i) * inter + first, count) };
                    for (j, h) in h.iter_mut().enumerate() {
                        *h = bf16::from_f32(activation.apply(gate[j], finish(i, first + j, up[j])));
                    }
                }
            });
            Ok(())
        })
    }

    /// y = h * w2^T in f32, a row for each routed slot.
    unsafe fn gemm2(
        &self,
        h: &Operands,
        row_offsets: &[i32],
        roundings: &Option<Roundings>,
        y: PartsOf<f32>,
    ) -> Result<()> {
        let (hidden, inter) = (self.config.hidden_size, self.config.intermediate_size);
        // SAFETY: host tensors, not written during the call.
        let (codes, scales, globals) = unsafe {
            let w = self.weights;
            (w.w2.slice(), w.w2_block_scale.slice(), w.w2_global_scale.slice())
        };
        let biases = self.weights.w2_bias;
        let tokens = tokens_at_a_time(self.isa, inter);
        for_each_task(row_offsets, hidden, tokens, |expert, rows, features| {
            let rounding = roundings.as_ref().map(|of| of.get(expert, Part::Down));
            let matrix = WeightMatrix { rounding, ..WeightMatrix::expert(codes, scales, hidden, inter, expert) };
            let h_rows = PerRow::new(rows.clone(), std::ptr::null(), |row| h.row(row));
            let alphas = PerRow::new(rows.clone(), OutputFactor::new(0.0, 0.0), |row| {
                OutputFactor::new(h.global_scale(row), globals[expert])
            });
            // SAFETY: a host tensor, not written during the call.
            let bias = biases.map(|biases| unsafe { &biases.slice()[expert * hidden..][..hidden] });
            for_each_tile(self.isa, matrix, features, &h_rows, |first, count, out| {
                for (i, out) in out.iter().enumerate() {
                    // SAFETY: this row and these features belong to this task.
                    let y = unsafe { y.part((rows.start + i) * hidden + first, count) };
                    for (y, out) in y.iter_mut().zip(out) {
                        *y = alphas[i].times(*out);
                    }
                    if let Some(bias) = bias {
                        for (y, bias) in y.iter_mut().zip(&bias[first..]) {
                            *y += bf16::from_bits(*bias).to_f32();
                        }
                    }
                }
            });
            Ok(())
        })
    }

    /// out[t] = the shared output + sum over k of weight * y in f32, each a fused multiply-add, in order of k.
    unsafe fn combine(&self, tokens: &Range<usize>, slot_to_row: &[i32], y: PartsOf<f32>) -> Result<()> {
        let config = self.config;
        let out = PartsOf::new(self.args.out.cast::<bf16>());
        let tokens_at_a_time = (MIN_TASK_VALUES / (config.top_k * config.hidden_size)).max(1);
        threads::try_for_each(
            tokens.len(),
            tokens_at_a_time,
            || [0.0; SUM_COLUMNS],
            |sums, i| {
                let (token, args) = (tokens.start + i, self.args);
                let slots = slot_to_row[i * config.top_k..][..config.top_k].iter().enumerate();
                for first in (0..config.hidden_size).step_by(SUM_COLUMNS) {
                    let sum = &mut sums[..SUM_COLUMNS.min(config.hidden_size - first)];
                    // SAFETY: NULL, or valid for this token's columns.
                    unsafe { begin(sum, self.args.shared, token, first) };
                    for (k, row) in slots.clone().filter(|(_, row)| **row >= 0) {
                        // SAFETY: weights are NULL or valid for this token and k; the row was written and is only read.
                        let (weight, y) = unsafe {
                            let at = token * args.topk_weights_row_stride + k;
                            let weight = if args.topk_weights.is_null() { 1.0 } else { *args.topk_weights.add(at) };
                            (weight, &*y.part(*row as usize * config.hidden_size + first, sum.len()))
                        };
                        // SAFETY: `isa` is available on this machine.
                        unsafe { (self.isa.add_scaled)(sum, weight, y) };
                    }
                    // SAFETY: each token's row is written by one task.
                    let out = unsafe { out.part(token * args.out_row_stride + first, sum.len()) };
                    for (out, sum) in out.iter_mut().zip(&*sum) {
                        *out = bf16::from_f32(*sum);
                    }
                }
                Ok(())
            },
        )
    }
}

/// Fill the sums of a token's columns, from `first` on, with what they begin with.
///
/// # Safety
/// The rows are NULL, or valid as the header states.
unsafe fn begin(sums: &mut [f32], shared: SharedOutput, token: usize, first: usize) {
    if shared.rows.is_null() {
        return sums.fill(0.0);
    }
    // SAFETY: the caller's promise.
    let row = unsafe {
        let columns = shared.rows.add(token * shared.row_stride + first);
        std::slice::from_raw_parts(columns.cast::<bf16>(), sums.len())
    };
    for (sum, shared) in sums.iter_mut().zip(row) {
        *sum = shared.to_f32();
    }
}
