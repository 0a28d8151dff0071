//! One NVFP4 linear on a CUDA device.

use super::device::{Buffer, Device, Shape};
use super::kernels::{Kernel, params};
use super::plan::LinearPlan;
use super::portable::{GEMM_THREADS, gemm_kernel};
use super::prepare::{
    Source, check_storage, missing_factor, prepare_matrix, refuse_bad_scales, refuse_capture, workspace,
};
use super::storage::LinearStorage;
use super::tiles::{GemmKind, PORTABLE_ROWS, forced_rows, gemm_launch, linear_tile_rows};
use super::{BLOCKS_PER_SM, Stream, THREADS};
use crate::config::{Kernels, LinearConfig, Mode, ScalePolicy};
use crate::error::Result;
use crate::layer::Storage;
use crate::linear::{LinearArgs, LinearWeights};
use std::ffi::c_void;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct LinearState {
    amax: f32,
    reserved: f32,
    bad_scales: u64,
}

const FRESH: LinearState = LinearState { amax: -1.0, reserved: 0.0, bad_scales: 0 };

/// A linear, with or without a weight.
#[derive(Debug)]
pub struct CudaLinear {
    kernels: Kernels,
    forced_rows: Option<u32>,
    device: Arc<Device>,
    layout: LinearStorage,
    state: Buffer,
    storage: *mut u8,
    has_bias: bool,
}

// SAFETY: device pointers are read by kernels only.
unsafe impl Send for CudaLinear {}
// SAFETY: as above; shared use only launches kernels.
unsafe impl Sync for CudaLinear {}

impl CudaLinear {
    /// Open the device, load its kernels.
    pub fn new(ordinal: i32, kernels: Kernels, config: &LinearConfig) -> Result<Self> {
        let forced_rows = forced_rows(kernels)?;
        let device = Device::for_kernels(ordinal, kernels)?;
        let state = device.allocate(size_of::<LinearState>())?;
        let layout = LinearStorage::new(kernels, config.in_features, config.out_features);
        Ok(CudaLinear { kernels, forced_rows, device, layout, state, storage: std::ptr::null_mut(), has_bias: false })
    }

    /// Bytes that prepare fills.
    pub fn storage_size(&self) -> u64 {
        self.layout.size
    }

    /// Workspace bytes for up to `max_tokens` tokens.
    pub fn workspace_size(&self, config: &LinearConfig, max_tokens: usize) -> u64 {
        LinearPlan::new(self.kernels, config, max_tokens).workspace_size
    }

    /// Is there a weight?
    pub fn is_prepared(&self) -> bool {
        !self.storage.is_null()
    }

    /// Bring the weight into kernel layout, bias included. Waits for the stream, because it refuses broken scales.
    ///
    /// # Safety
    /// The tensors are device memory as the header states, and so is `storage` for as long as the linear.
    pub unsafe fn prepare(&mut self, weights: &LinearWeights, storage: Storage, stream: Stream) -> Result<()> {
        let storage = check_storage(storage, self.layout.size, "Ask nvfp4_moe_linear_storage_size.")?;
        let _entered = self.device.enter()?;
        refuse_capture(&self.device, stream)?;
        let state: *mut LinearState = self.state.pointer();
        let bad_scales = state.cast::<u8>().wrapping_add(8).cast::<u64>();
        let source = Source {
            codes: weights.weight.pointer,
            block_scale: weights.block_scale.pointer,
            num_experts: 1,
            expert_stride: 0,
            gated: false,
            up_first: false,
            bad_scales,
            parts: std::ptr::null(),
        };
        // SAFETY: the linear's own state; the tensors by contract.
        unsafe {
            self.device.write(state, FRESH, stream)?;
            prepare_matrix(&self.device, self.kernels, &self.layout.weight, &source, storage, stream)?;
            let mut first_row = 0;
            for (part, end) in weights.part_ends.iter().copied().enumerate() {
                let params = params::PrepareRowAlphaParams {
                    global_scale: weights.global_scale.pointer,
                    row_alpha: self.layout.row_alphas.pointer(storage),
                    bad_scales,
                    part: part as i32,
                    first_row,
                    num_rows: end as i32 - first_row,
                    factor: missing_factor(self.kernels, Mode::Bf16),
                };
                first_row = end as i32;
                let blocks = [params.num_rows.unsigned_abs().div_ceil(THREADS).max(1), 1, 1];
                self.device.launch(Kernel::PrepareRowAlphas, Shape::new(blocks, THREADS, 0), stream, &params)?;
            }
            if let Some(bias) = weights.bias {
                self.device.copy(self.layout.bias.pointer(storage), bias.pointer, bias.len, stream)?;
            }
            refuse_bad_scales(self.device.read(state, stream)?.bad_scales)?;
        }
        self.storage = storage;
        self.has_bias = weights.bias.is_some();
        Ok(())
    }

    /// Enqueue out = x * weight^T + bias; with `observe`, also widen the calibration.
    ///
    /// # Safety
    /// The pointers of `args` are device memory as the header states.
    pub unsafe fn forward(
        &self,
        config: &LinearConfig,
        input_scale: f32,
        args: &LinearArgs,
        stream: Stream,
        observe: bool,
    ) -> Result<()> {
        let plan = LinearPlan::new(self.kernels, config, args.num_tokens);
        let _entered = self.device.enter()?;
        let quantised = config.mode == Mode::Nvfp4;
        let base = match quantised {
            true => workspace(&self.device, args.workspace, args.workspace_size, plan.workspace_size, stream)?,
            false => std::ptr::null_mut(), // needs none
        };
        let source = params::RowSource { num_rows: args.num_tokens as i32, top_k: 1, ..Default::default() };
        let by_rows = self.device.by_rows(args.num_tokens);
        if observe {
            let params = params::AmaxParams {
                source,
                x: args.x.cast(),
                x_row_stride: args.x_row_stride as i64,
                amax: self.state.pointer(),
                num_cols: config.in_features as i32,
                reserved: 0,
            };
            // SAFETY: the linear's own state; x by contract.
            unsafe { self.device.launch_overlapping(Kernel::AmaxRows, by_rows, stream, &params) }?;
        }
        if quantised {
            let params = params::QuantizeParams {
                input: params::QuantizerInput {
                    source,
                    status: self.device.status(),
                    x: args.x.cast(),
                    x_row_stride: args.x_row_stride as i64,
                    ..Default::default()
                },
                static_scale: if config.scale_policy == ScalePolicy::Static { input_scale } else { 0.0 },
                num_cols: config.in_features as i32,
                ..plan.x.as_output(base, self.kernels)
            };
            // SAFETY: regions of the workspace; x by contract.
            unsafe { self.device.launch_overlapping(Kernel::QuantizeRows, by_rows, stream, &params) }?;
        }
        // SAFETY: regions of the workspace, prepared weights; x and out by contract.
        unsafe {
            match self.kernels {
                Kernels::Hopper => self.hopper_gemm(config, &plan, args, base, stream),
                Kernels::Portable => self.portable_gemm(config, &plan, args, base, stream),
            }
        }
    }

    /// All rows and all weight tiles, and how many tiles of `rows` rows that makes at most.
    fn tiles(&self, rows: u32, args: &LinearArgs) -> (params::TileList, usize) {
        let m_tiles = self.layout.weight.m_tiles;
        let list = params::TileList {
            num_rows: args.num_tokens as i32,
            m_tiles: m_tiles as i32,
            tile_rows: rows as i32,
            ..Default::default()
        };
        (list, args.num_tokens.div_ceil(rows as usize) * m_tiles)
    }

    fn bias(&self) -> *const c_void {
        let bias = self.layout.bias.pointer(self.storage);
        if self.has_bias { bias.cast_const().cast() } else { std::ptr::null() }
    }

    unsafe fn hopper_gemm(
        &self,
        config: &LinearConfig,
        plan: &LinearPlan,
        args: &LinearArgs,
        base: *mut u8,
        stream: Stream,
    ) -> Result<()> {
        let (matrix, quantised) = (&self.layout.weight, config.mode == Mode::Nvfp4);
        let num_sms = self.device.num_sms;
        let rows = self.forced_rows.unwrap_or_else(|| linear_tile_rows(args.num_tokens, matrix.m_tiles, num_sms));
        let (list, tiles) = self.tiles(rows, args);
        let params = params::GemmParams {
            list,
            tiles: matrix.codes.pointer(self.storage),
            alphas: self.layout.row_alphas.pointer(self.storage),
            x: if quantised { plan.x.rows.pointer(base).cast_const().cast() } else { args.x.cast() },
            x_row_stride: if quantised { config.in_features } else { args.x_row_stride } as i64,
            row_scale: if quantised { plan.x.global_scale.pointer(base) } else { std::ptr::null_mut() },
            out: args.out.cast(),
            bias: self.bias(),
            out_row_stride: args.out_row_stride as i64,
            top_k: 1,
            k_valid: matrix.cols as i32,
            num_slabs: matrix.slabs as i32,
            features: config.out_features as i32,
            tiles_known: 1,
            ..Default::default()
        };
        let (kernel, shape) = gemm_launch(GemmKind::Linear, rows, tiles, num_sms);
        // SAFETY: by contract of the caller.
        unsafe { self.device.launch_overlapping(kernel, shape, stream, &params) }
    }

    unsafe fn portable_gemm(
        &self,
        config: &LinearConfig,
        plan: &LinearPlan,
        args: &LinearArgs,
        base: *mut u8,
        stream: Stream,
    ) -> Result<()> {
        let (list, tiles) = self.tiles(PORTABLE_ROWS, args);
        let mut input = plan.x.as_input(base, config.mode, config.in_features);
        if config.mode != Mode::Nvfp4 {
            input.x = args.x.cast();
            input.x_row_stride = args.x_row_stride as i64;
        }
        let params = params::PortableGemmParams {
            list,
            codes: self.layout.weight.codes.pointer(self.storage),
            block_scale: self.layout.weight.block_scale.pointer(self.storage),
            alphas: self.layout.row_alphas.pointer(self.storage),
            out: args.out.cast(),
            bias: self.bias(),
            out_row_stride: args.out_row_stride as i64,
            features: config.out_features as i32,
            alpha_features: 1,
            ..input
        };
        let blocks = [tiles.clamp(1, (self.device.num_sms * BLOCKS_PER_SM) as usize) as u32, 1, 1];
        // SAFETY: by contract of the caller.
        unsafe {
            let shape = Shape::new(blocks, GEMM_THREADS, 0);
            self.device.launch_overlapping(gemm_kernel(config.mode), shape, stream, &params)
        }
    }

    /// The largest finite input that calibration saw, negative if none; forgets it. Waits for the device's work.
    pub fn take_amax(&mut self) -> Result<f32> {
        let _entered = self.device.enter()?;
        let state: *mut LinearState = self.state.pointer();
        self.device.synchronize()?;
        // SAFETY: the linear's own state.
        let seen = unsafe { self.device.read(state, std::ptr::null_mut()) }?;
        // SAFETY: as above.
        unsafe { self.device.write(state, FRESH, std::ptr::null_mut()) }?;
        Ok(seen.amax)
    }
}
