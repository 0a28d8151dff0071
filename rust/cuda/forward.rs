// SPDX-License-Identifier: Apache-2.0
//! One call of a layer: what it works on, and the steps that all families share.

use super::driver;
use super::kernels::{AMAX_ROWS, COMBINE, COMBINE_SHARED, Kernel, THREADS, params};
use super::launch::{BLOCKS_PER_SM, LATER_BLOCKS_PER_SM, Launch};
use super::plan::LayerPlan;
use super::prepared::{PreparedLayer, State};
use super::storage::Matrix;
use crate::activation::{Activation, ActivationKind};
use crate::call::{LayerArgs, Stream};
use crate::config::{LayerConfig, ScalePolicy};
use crate::error::Result;
use crate::workspace::Region;
use std::ffi::c_void;

// Kernels have the same numbers.
const _: () = {
    assert!(ActivationKind::Swiglu as u32 == params::ACTIVATION_SWIGLU);
    assert!(ActivationKind::SwigluStep as u32 == params::ACTIVATION_SWIGLU_STEP);
    assert!(ActivationKind::Situ as u32 == params::ACTIVATION_SITU);
    assert!(ActivationKind::GeluTanh as u32 == params::ACTIVATION_GELU_TANH);
    assert!(ActivationKind::Relu2 as u32 == params::ACTIVATION_RELU2);
    assert!(ActivationKind::Silu as u32 == params::ACTIVATION_SILU);
    assert!(ActivationKind::Gelu as u32 == params::ACTIVATION_GELU);
};

/// One forward: what it computes, and the workspace at `base`.
#[allow(missing_docs)]
pub struct LayerCall<'a> {
    pub layer: &'a PreparedLayer,
    pub config: &'a LayerConfig,
    pub args: &'a LayerArgs,
    pub stream: Stream,
    pub plan: &'a LayerPlan,
    pub base: *mut u8,
}

impl LayerCall<'_> {
    /// Enqueue a kernel.
    ///
    /// # Safety
    /// The pointers in `params` are what the kernel's parameters say.
    pub unsafe fn launch<P>(&self, launch: Launch, params: &P) -> Result<()> {
        // SAFETY: the caller vouches for `params`; whoever runs the call has entered the device.
        unsafe { self.layer.device.launch(launch, self.stream, params) }
    }

    /// Where a static policy's scale of GEMM1's input lies, or, with 1, of GEMM2's; NULL asks the kernel for each row's own.
    pub fn static_scale(&self, gemm: usize) -> *const f32 {
        match self.config.scale_policy {
            ScalePolicy::Static => State::input_scale_at(self.layer.state.pointer(), gemm),
            ScalePolicy::Dynamic => std::ptr::null(),
        }
    }

    /// The activation, as kernels take it.
    pub fn activation(&self) -> params::Activation {
        let Activation { kind, limit, alpha, beta } = self.config.activation;
        params::Activation { kind: kind as i32, limit, alpha, beta }
    }

    /// A bias of expert 0, or NULL where the layer has none.
    pub fn bias(&self, bias: &Region<u16>) -> *const c_void {
        if self.config.has_bias { bias.pointer(self.layer.weights.storage()).cast() } else { std::ptr::null() }
    }

    /// The rows of h in a chunk: as many as routing found.
    pub fn h_rows(&self, chunk: usize) -> params::RowSource {
        let local = self.config.num_local_experts;
        params::RowSource {
            end_row_on_device: self.plan.row_offsets.pointer(self.base).wrapping_add(chunk * (local + 1) + local),
            top_k: self.config.top_k as i32,
            rows_known: 1,
            ..Default::default()
        }
    }

    /// A chunk's rows, or its tokens, of which quantisers visit those that are routed here.
    pub fn quantizer_x(&self, chunk: usize) -> params::QuantizerInput {
        let first_token = self.plan.chunk_first_token.pointer(self.base).wrapping_add(chunk);
        let rows = match self.plan.x_by_row {
            true => params::RowSource { row_to_slot: self.row_to_slot(chunk), ..self.h_rows(chunk) },
            false => params::RowSource {
                first_row_on_device: first_token,
                end_row_on_device: first_token.wrapping_add(1),
                top_k: self.config.top_k as i32,
                ..Default::default()
            },
        };
        params::QuantizerInput {
            source: params::RowSource {
                slot_to_row: self.plan.slot_to_row.pointer(self.base),
                rows_known: (chunk > 0).into(), // the first chunk's quantiser follows routing
                ..rows
            },
            status: self.layer.device.status(),
            x: self.args.x.cast(),
            x_row_stride: self.args.x_row_stride as i64,
            ..Default::default()
        }
    }

    /// x in NVFP4, as the GEMMs of these kernels read it.
    ///
    /// # Safety
    /// The pointers of the call are device memory as the header states, and the device is entered.
    pub unsafe fn quantize_x(&self, chunk: usize) -> Result<()> {
        let params = params::QuantizeParams {
            input: self.quantizer_x(chunk),
            static_scale: self.static_scale(0),
            next_scale: if self.plan.gemm1_quantizes { self.static_scale(1) } else { std::ptr::null() },
            next_scale_copy: self.plan.h.global_scale.pointer(self.base),
            num_cols: self.config.hidden_size as i32,
            ..self.plan.x.as_output(self.base)
        };
        // SAFETY: regions of the workspace; x as the header states.
        unsafe { self.launch(self.by_x_rows(self.plan.x.quantizer(), chunk), &params) }
    }

    /// A chunk's rows of h as GEMM1 left them in bf16: where a quantiser makes `h` of them, or in the place of `h`.
    pub fn quantizer_h(&self, chunk: usize) -> params::QuantizerInput {
        let (plan, apart) = (self.plan, self.plan.h_rows.len > 0);
        let rows = if apart { plan.h_rows.pointer(self.base).cast() } else { plan.h.rows.pointer(self.base) };
        params::QuantizerInput {
            source: self.h_rows(chunk),
            status: self.layer.device.status(),
            row_to_token_slot: self.row_to_slot(chunk),
            x: rows.cast_const().cast(),
            x_row_stride: if apart { self.config.intermediate_size } else { plan.h_stride } as i64,
        }
    }

    /// What makes NVFP4 of h, in a kernel of its own or in GEMM1.
    pub fn quantize_h_params(&self, chunk: usize) -> params::QuantizeParams {
        params::QuantizeParams {
            input: self.quantizer_h(chunk),
            static_scale: self.static_scale(1),
            num_cols: self.config.intermediate_size as i32,
            ..self.plan.h.as_output(self.base)
        }
    }

    /// h in NVFP4, as GEMM2 reads it.
    ///
    /// # Safety
    /// As [`Self::quantize_x`], after GEMM1.
    pub unsafe fn quantize_h(&self, chunk: usize) -> Result<()> {
        let launch = self.by_rows(self.plan.h.quantizer(), chunk);
        // SAFETY: regions of the workspace.
        unsafe { self.launch(launch, &self.quantize_h_params(chunk)) }
    }

    /// A matrix in tiles, and the first of its output factors.
    pub fn tile_weights(&self, matrix: &Matrix, alpha: usize) -> params::GemmParams {
        let (slice, storage) = (&self.layer.slice, self.layer.weights.storage());
        params::GemmParams {
            tiles: matrix.codes.pointer(storage),
            expert_stride: slice.stride,
            alphas: slice.alphas.pointer(storage).wrapping_add(alpha),
            top_k: self.config.top_k as i32,
            k_valid: matrix.cols as i32,
            num_slabs: matrix.slabs as i32,
            ..Default::default()
        }
    }

    /// A launch whose blocks stride over what [`Self::quantizer_x`] names.
    pub fn by_x_rows(&self, kernel: Kernel, chunk: usize) -> Launch {
        self.by_up_to(kernel, if self.plan.x_by_row { self.plan.rows } else { self.args.num_tokens }, chunk)
    }

    /// A launch whose blocks stride over a chunk's rows.
    pub fn by_rows(&self, kernel: Kernel, chunk: usize) -> Launch {
        self.by_up_to(kernel, self.plan.rows, chunk)
    }

    fn by_up_to(&self, kernel: Kernel, rows: usize, chunk: usize) -> Launch {
        self.layer.device.by_rows(kernel, rows.min(self.most_blocks(BLOCKS_PER_SM, chunk) as usize))
    }

    /// Of a launch that has up to `per_sm` blocks a multiprocessor. Chunks after the first are empty but for skewed routings, and
    /// an empty launch takes the longer the more blocks it has (1.2 ns each): fewer do nearly as well where there is work.
    fn most_blocks(&self, per_sm: u32, chunk: usize) -> u32 {
        self.layer.device.num_sms * if chunk == 0 { per_sm } else { LATER_BLOCKS_PER_SM }
    }

    /// The slots of a chunk's rows.
    pub fn row_to_slot(&self, chunk: usize) -> *const i32 {
        self.plan.row_to_slot.pointer(self.base).wrapping_add(chunk * self.plan.rows)
    }

    /// Calibration: the largest inputs of both GEMMs over a chunk's rows.
    ///
    /// # Safety
    /// As [`LayerCall::quantize_x`], after GEMM1.
    pub unsafe fn observe(&self, chunk: usize) -> Result<()> {
        let state: *mut State = self.layer.state.pointer();
        let x = params::AmaxParams {
            source: params::RowSource { row_to_slot: self.row_to_slot(chunk), ..self.h_rows(chunk) },
            x: self.args.x.cast(),
            x_row_stride: self.args.x_row_stride as i64,
            amax: State::amax_at(state, 0),
            num_cols: self.config.hidden_size as i32,
            reserved: 0,
        };
        let by_rows = self.layer.device.by_rows(AMAX_ROWS, self.plan.rows);
        // SAFETY: regions of the workspace, the layer's own state; x as the header states.
        unsafe {
            self.launch(by_rows, &x)?;
            for (offset, x_row_stride, num_cols) in self.plan.h_parts(self.config.intermediate_size) {
                let h = params::AmaxParams {
                    source: self.h_rows(chunk),
                    x: self.plan.h.rows.pointer(self.base).wrapping_add(offset).cast_const().cast(),
                    x_row_stride: x_row_stride as i64,
                    amax: State::amax_at(state, 1),
                    num_cols: num_cols as i32,
                    reserved: 0,
                };
                self.launch(by_rows, &h)?;
            }
        }
        Ok(())
    }

    /// The grouped rows of a chunk, and the weight tiles of a matrix.
    pub fn tile_list(&self, chunk: usize, matrix: &Matrix) -> params::TileList {
        let (plan, local, base) = (self.plan, self.config.num_local_experts, self.base);
        params::TileList {
            groups: plan.groups.pointer(base).wrapping_add(chunk * (local + 2)),
            last_group: local as i32 + 1,
            m_tiles: matrix.m_tiles as i32,
            tile_rows: plan.tile_rows as i32,
            ..Default::default()
        }
    }

    /// Tiles of the worst routing. As many blocks are launched, up to what runs at once; each strides over the tiles
    /// that there are.
    pub fn worst_tiles(&self, list: &params::TileList) -> usize {
        let row_tiles =
            self.config.num_local_experts.min(self.plan.rows) + self.plan.rows / self.plan.tile_rows as usize;
        row_tiles * list.m_tiles as usize
    }

    /// What combine reads and writes of a chunk.
    pub fn combine_params(&self, chunk: usize) -> params::CombineParams {
        let (plan, args) = (self.plan, self.args);
        params::CombineParams {
            slot_to_row: plan.slot_to_row.pointer(self.base),
            chunk_first_token: plan.chunk_first_token.pointer(self.base).wrapping_add(chunk),
            y: plan.y(self.base),
            topk_weights: args.topk_weights,
            topk_weights_row_stride: args.topk_weights_row_stride as i64,
            out: args.out.cast(),
            out_row_stride: args.out_row_stride as i64,
            hidden: self.config.hidden_size as i32,
            top_k: self.config.top_k as i32,
            shared_output: args.shared.rows.cast(),
            shared_output_row_stride: args.shared.row_stride as i64,
        }
    }

    /// The weighted sum over a token's slots, for the tokens of a chunk, once what it begins with is there.
    ///
    /// # Safety
    /// As [`LayerCall::quantize_x`], after GEMM2.
    pub unsafe fn combine(&self, chunk: usize) -> Result<()> {
        let (args, params) = (self.args, self.combine_params(chunk));
        if chunk == 0 && !args.shared.ready.is_null() {
            // SAFETY: the caller's event and stream.
            unsafe { driver::wait_for_event(self.stream, args.shared.ready) }?;
        }
        let kernel = if args.shared.rows.is_null() { COMBINE } else { COMBINE_SHARED };
        // Few tokens: blocks share a token's columns. Many: a block takes whole tokens.
        let blocks = self.most_blocks(params::COMBINE_BLOCKS_PER_SM, chunk);
        let tokens = args.num_tokens as u32;
        let col_blocks =
            blocks.div_ceil(tokens).min((self.config.hidden_size as u32 / params::COMBINE_COLUMNS).div_ceil(THREADS));
        let token_blocks = tokens.min(blocks / col_blocks);
        // SAFETY: regions of the workspace; weights and out as the header states.
        unsafe { self.launch(kernel.over([col_blocks, token_blocks, 1]), &params) }
    }
}
