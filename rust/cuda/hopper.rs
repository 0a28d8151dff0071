//! Hopper's steps of a forward: its GEMMs, with SwiGLU in GEMM1's epilogue. In mode nvfp4 x and h are quantised and decoded
//! again to bf16, exactly, but for each row's scale; h in place. In mode fp8 both become e4m3, and each row of h takes the
//! first half of its own place.

use super::forward::Call;
use super::kernels::{Kernel, params};
use super::plan::fp8_row_bytes;
use super::storage::Matrix;
use super::tiles::{GemmKind, gemm_launch};
use crate::config::Mode;
use crate::error::Result;

impl Call<'_> {
    fn quantised(&self) -> bool {
        self.config.mode != Mode::Bf16
    }

    /// GEMM1 with SwiGLU. In modes nvfp4 and fp8 before it x is quantised, and after it h, in place.
    ///
    /// # Safety
    /// As [`Call::run`].
    pub(super) unsafe fn hopper_h(&self, chunk: usize) -> Result<()> {
        let (plan, args, config) = (self.plan, self.args, self.config);
        let matrix = &self.layer.slice.w13;
        let mut params = params::GemmParams {
            list: self.tile_list(chunk, matrix),
            x: args.x.cast(),
            x_row_stride: args.x_row_stride as i64,
            row_to_slot: self.row_to_slot(chunk),
            out: plan.h.rows.pointer(self.base).cast(),
            out_row_stride: plan.h_stride as i64,
            features: config.intermediate_size as i32,
            swiglu: self.swiglu(),
            tiles_known: (chunk > 0 || self.quantised()).into(),
            ..self.weights(matrix, 0)
        };
        if self.quantised() {
            params.x = plan.x.rows.pointer(self.base).cast_const().cast();
            params.x_row_stride = self.padded_cols(config.hidden_size) as i64;
            params.row_scale = plan.x.global_scale.pointer(self.base);
            if plan.x_by_row {
                params.row_to_slot = std::ptr::null();
            }
        }
        // SAFETY: regions of the workspace, prepared weights; x by contract.
        unsafe {
            match config.mode {
                Mode::Bf16 => self.launch_gemm(GemmKind::Gemm1, &params),
                Mode::Nvfp4 => {
                    self.quantize_x(chunk)?;
                    self.launch_gemm(GemmKind::Gemm1, &params)?;
                    self.quantize_h(chunk)
                }
                Mode::Fp8 => {
                    self.quantize_x_fp8(chunk)?;
                    self.launch_gemm(GemmKind::Gemm1Fp8, &params)?;
                    self.quantize_h_fp8(chunk)
                }
            }
        }
    }

    /// A chunk's rows of h.
    fn quantizer_h(&self, chunk: usize) -> params::QuantizerInput {
        params::QuantizerInput {
            source: self.h_rows(chunk),
            status: self.layer.device.status(),
            row_to_token_slot: self.row_to_slot(chunk),
            x: self.plan.h.rows.pointer(self.base).cast_const().cast(),
            x_row_stride: self.plan.h_stride as i64,
        }
    }

    /// e4m3 of x.
    unsafe fn quantize_x_fp8(&self, chunk: usize) -> Result<()> {
        let (plan, hidden) = (self.plan, self.config.hidden_size);
        let params = params::QuantizeFp8Params {
            input: self.quantizer_x(chunk),
            out: plan.x.rows.pointer(self.base),
            out_row_stride: self.padded_cols(hidden) as i64,
            row_scale: plan.x.global_scale.pointer(self.base),
            num_cols: hidden as i32,
            ..Default::default()
        };
        // SAFETY: by contract of the caller.
        unsafe { self.launch(Kernel::QuantizeRowsFp8, self.by_x_rows(), &params) }
    }

    /// e4m3 of h: a row is written over its own bf16.
    unsafe fn quantize_h_fp8(&self, chunk: usize) -> Result<()> {
        let (plan, inter) = (self.plan, self.config.intermediate_size);
        let params = params::QuantizeFp8Params {
            input: self.quantizer_h(chunk),
            out: plan.h.rows.pointer(self.base),
            out_row_stride: 2 * plan.h_stride as i64,
            row_scale: plan.h.global_scale.pointer(self.base),
            num_cols: inter as i32,
            ..Default::default()
        };
        // SAFETY: regions of the workspace.
        unsafe { self.launch(Kernel::QuantizeRowsFp8, self.layer.device.by_rows(plan.rows), &params) }
    }

    unsafe fn quantize_h(&self, chunk: usize) -> Result<()> {
        let params = params::QuantizeParams {
            input: self.quantizer_h(chunk),
            static_scale: self.static_scale(self.scales.w2),
            num_cols: self.config.intermediate_size as i32,
            ..self.plan.h.as_output(self.base, self.plan.kernels)
        };
        // SAFETY: regions of the workspace.
        unsafe { self.launch(Kernel::QuantizeRows, self.layer.device.by_rows(self.plan.rows), &params) }
    }

    /// GEMM2.
    ///
    /// # Safety
    /// As [`Call::run`].
    pub(super) unsafe fn hopper_y(&self, chunk: usize) -> Result<()> {
        let (plan, config) = (self.plan, self.config);
        // In bytes in mode fp8, whose rows lie in the places of bf16 ones.
        let (kind, stride) = match config.mode {
            Mode::Fp8 => (GemmKind::Gemm2Fp8, 2 * plan.h_stride),
            _ => (GemmKind::Gemm2, plan.h_stride),
        };
        let params = params::GemmParams {
            list: self.tile_list(chunk, &self.layer.slice.w2),
            x: plan.h.rows.pointer(self.base).cast_const().cast(),
            x_row_stride: stride as i64,
            row_scale: if self.quantised() { plan.h.global_scale.pointer(self.base) } else { std::ptr::null() },
            out: plan.y(self.base),
            out_row_stride: config.hidden_size as i64,
            features: config.hidden_size as i32,
            tiles_known: 1,
            ..self.weights(&self.layer.slice.w2, 2)
        };
        // SAFETY: regions of the workspace, prepared weights.
        unsafe { self.launch_gemm(kind, &params) }
    }

    /// Columns of a row as a GEMM reads it: e4m3 is padded with zeros.
    fn padded_cols(&self, cols: usize) -> usize {
        if self.config.mode == Mode::Fp8 { fp8_row_bytes(cols) } else { cols }
    }

    /// A matrix, and the first of its output factors.
    fn weights(&self, matrix: &Matrix, alpha: usize) -> params::GemmParams {
        params::GemmParams {
            tiles: matrix.codes.pointer(self.layer.storage),
            expert_stride: self.layer.slice.stride,
            alphas: self.layer.slice.alphas.pointer(self.layer.storage).wrapping_add(alpha),
            top_k: self.config.top_k as i32,
            k_valid: self.padded_cols(matrix.cols) as i32,
            num_slabs: matrix.slabs as i32,
            ..Default::default()
        }
    }

    unsafe fn launch_gemm(&self, kind: GemmKind, params: &params::GemmParams) -> Result<()> {
        let rows = self.plan.tile_rows;
        let (kernel, shape) = gemm_launch(kind, rows, self.worst_tiles(&params.list), self.layer.device.num_sms);
        // SAFETY: by contract of the caller.
        unsafe { self.launch(kernel, shape, params) }
    }
}
