//! The portable steps of a forward, those of Blackwell's pipeline: in mode nvfp4 rows are gathered and packed, each
//! expert's padded to 128, block scales swizzled; GEMM1, then SwiGLU and requantising by a kernel of their own; GEMM2.

use super::BLOCKS_PER_SM;
use super::device::Shape;
use super::forward::Call;
use super::kernels::{Kernel, params};
use super::plan::Operand;
use super::storage::Matrix;
use crate::config::Mode;
use crate::error::Result;

/// Threads of a block of the GEMMs.
pub const GEMM_THREADS: u32 = params::GEMM_PORTABLE_THREADS;

/// The kernel that reads a GEMM's input in this mode.
pub fn gemm_kernel(mode: Mode) -> Kernel {
    if mode == Mode::Nvfp4 { Kernel::GemmPortableNvfp4 } else { Kernel::GemmPortableBf16 }
}

impl Operand {
    /// As the input of a GEMM; rows are `cols` long.
    pub fn as_input(&self, base: *mut u8, mode: Mode, cols: usize) -> params::PortableGemmParams {
        let rows = params::PortableGemmParams {
            x: self.rows.pointer(base).cast_const().cast(),
            x_row_stride: cols as i64,
            k: cols as i32,
            top_k: 1,
            ..Default::default()
        };
        match mode {
            Mode::Nvfp4 => params::PortableGemmParams {
                x_block_scale: self.block_scale.pointer(base),
                x_global_scale: self.global_scale.pointer(base),
                ..rows
            },
            _ => rows,
        }
    }
}

impl Call<'_> {
    /// GEMM1's sums, then h.
    ///
    /// # Safety
    /// As [`Call::run`].
    pub(super) unsafe fn portable_h(&self, chunk: usize) -> Result<()> {
        let (plan, args, config) = (self.plan, self.args, self.config);
        let (matrix, inter) = (&self.layer.slice.w13, config.intermediate_size);
        let mut input = plan.x.as_input(self.base, config.mode, config.hidden_size);
        // SAFETY: regions of the workspace, prepared weights; x by contract.
        unsafe {
            if config.mode == Mode::Nvfp4 {
                self.quantize_x(chunk)?;
            } else {
                input.x = args.x.cast();
                input.x_row_stride = args.x_row_stride as i64;
                input.row_to_slot = self.row_to_slot(chunk);
                input.top_k = config.top_k as i32;
            }
            let params = params::PortableGemmParams {
                list: self.tile_list(chunk, matrix),
                sums: plan.sums.pointer(self.base),
                out_row_stride: 2 * inter as i64,
                alpha_features: inter as i32,
                ..self.portable_weights(matrix, 0, input)
            };
            self.launch_portable(&params)?;
            self.activate(chunk)
        }
    }

    /// SwiGLU, and in mode nvfp4 requantise.
    unsafe fn activate(&self, chunk: usize) -> Result<()> {
        let (plan, config) = (self.plan, self.config);
        let (out, h) = match config.mode {
            Mode::Nvfp4 => (plan.h.as_output(self.base, plan.kernels), std::ptr::null_mut()),
            _ => (params::QuantizeParams::default(), plan.h.rows.pointer(self.base).cast()),
        };
        let params = params::ActivationParams {
            out: params::QuantizeParams {
                input: params::QuantizerInput {
                    source: params::RowSource { row_to_slot: self.row_to_slot(chunk), ..self.h_rows(chunk) },
                    status: self.layer.device.status(),
                    ..Default::default()
                },
                static_scale: self.static_scale(self.scales.w2),
                num_cols: config.intermediate_size as i32,
                ..out
            },
            h,
            gate_up: plan.sums.pointer(self.base),
            swiglu: self.swiglu(),
            ..Default::default()
        };
        // SAFETY: by contract of the caller.
        unsafe { self.launch(Kernel::SwigluRows, self.layer.device.by_rows(plan.rows), &params) }
    }

    /// GEMM2.
    ///
    /// # Safety
    /// As [`Call::run`].
    pub(super) unsafe fn portable_y(&self, chunk: usize) -> Result<()> {
        let (plan, config) = (self.plan, self.config);
        let input = plan.h.as_input(self.base, config.mode, config.intermediate_size);
        let params = params::PortableGemmParams {
            list: self.tile_list(chunk, &self.layer.slice.w2),
            out: plan.y(self.base),
            out_row_stride: config.hidden_size as i64,
            alpha_features: config.hidden_size as i32,
            ..self.portable_weights(&self.layer.slice.w2, 2, input)
        };
        // SAFETY: regions of the workspace, prepared weights.
        unsafe { self.launch_portable(&params) }
    }

    /// `input` times a matrix; `alpha` is the first of its output factors.
    fn portable_weights(
        &self,
        matrix: &Matrix,
        alpha: usize,
        input: params::PortableGemmParams,
    ) -> params::PortableGemmParams {
        let (layer, slice) = (self.layer, &self.layer.slice);
        params::PortableGemmParams {
            codes: matrix.codes.pointer(layer.storage),
            block_scale: matrix.block_scale.pointer(layer.storage),
            alphas: slice.alphas.pointer(layer.storage).wrapping_add(alpha),
            expert_stride: slice.stride,
            features: matrix.rows as i32,
            ..input
        }
    }

    unsafe fn launch_portable(&self, params: &params::PortableGemmParams) -> Result<()> {
        let most = self.layer.device.num_sms * BLOCKS_PER_SM;
        let blocks = self.worst_tiles(&params.list).clamp(1, most as usize) as u32;
        let kernel = gemm_kernel(self.config.mode);
        // SAFETY: by contract of the caller.
        unsafe { self.launch(kernel, Shape::new([blocks, 1, 1], GEMM_THREADS, 0), params) }
    }
}
