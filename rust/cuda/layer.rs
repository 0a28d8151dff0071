//! One MoE layer on a CUDA device.

use super::device::{Buffer, Device, Shape};
use super::forward::Call;
use super::kernels::{Kernel, params};
use super::parts::LayerParts;
use super::plan::LayerPlan;
use super::prepare::{
    Source, check_storage, missing_factor, prepare_matrix, refuse_bad_scales, refuse_capture, workspace,
};
use super::storage::ExpertSlice;
use super::tiles::forced_rows;
use super::{Stream, THREADS};
use crate::config::{Kernels, LayerConfig, Mode};
use crate::error::Result;
use crate::layer::{Calibration, InputScales, LayerArgs, LayerWeights, Storage};
use std::sync::Arc;

/// What a layer keeps on the device beside its weights.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct LayerState {
    /// Largest finite inputs seen by calibration; -1 = none.
    x_amax: f32,
    h_amax: f32,
    /// Scales that prepare refused.
    bad_scales: u64,
}

const FRESH: LayerState = LayerState { x_amax: -1.0, h_amax: -1.0, bad_scales: 0 };

/// A layer, with or without weights.
#[derive(Debug)]
pub struct CudaLayer {
    kernels: Kernels,
    forced_rows: Option<u32>,
    pub(super) device: Arc<Device>,
    pub(super) slice: ExpertSlice,
    pub(super) state: Buffer,
    /// Prepared weights; NULL before prepare.
    pub(super) storage: *mut u8,
}

// SAFETY: device pointers are read by kernels only.
unsafe impl Send for CudaLayer {}
// SAFETY: as above; shared use only launches kernels.
unsafe impl Sync for CudaLayer {}

impl CudaLayer {
    /// Open the device, load its kernels.
    pub fn new(ordinal: i32, kernels: Kernels, config: &LayerConfig) -> Result<Self> {
        let forced_rows = forced_rows(kernels)?;
        let device = Device::for_kernels(ordinal, kernels)?;
        let state = device.allocate(size_of::<LayerState>())?;
        let slice = ExpertSlice::new(kernels, config.hidden_size, config.intermediate_size);
        Ok(CudaLayer { kernels, forced_rows, device, slice, state, storage: std::ptr::null_mut() })
    }

    /// Bytes that prepare fills: an equal slice for each local expert.
    pub fn storage_size(&self, config: &LayerConfig) -> u64 {
        self.slice.stride * config.num_local_experts as u64
    }

    /// Workspace bytes for up to `max_tokens` tokens, in the layer's mode and in calibration's.
    pub fn workspace_size(&self, config: &LayerConfig, max_tokens: usize) -> u64 {
        let calibrating = LayerConfig { mode: Mode::Bf16, ..config.clone() };
        let size = |config: &LayerConfig| LayerPlan::new(self.kernels, config, max_tokens).workspace_size;
        size(config).max(size(&calibrating))
    }

    /// Are there weights?
    pub fn is_prepared(&self) -> bool {
        !self.storage.is_null()
    }

    /// Bring weights into kernel layout. Waits for the stream, because it refuses broken scales.
    ///
    /// # Safety
    /// The tensors are device memory as the header states, and so is `storage` for as long as the layer.
    pub unsafe fn prepare(
        &mut self,
        config: &LayerConfig,
        weights: &LayerWeights,
        storage: Storage,
        stream: Stream,
    ) -> Result<()> {
        let storage = check_storage(storage, self.storage_size(config), "Ask nvfp4_moe_layer_storage_size.")?;
        let _entered = self.device.enter()?;
        refuse_capture(&self.device, stream)?;
        let state: *mut LayerState = self.state.pointer();
        // SAFETY: the layer's own state; the tensors by contract.
        unsafe {
            self.device.write(state, FRESH, stream)?;
            let bad_scales = (&raw mut (*state)).cast::<u8>().wrapping_add(8).cast::<u64>();
            let parts = match config.mode {
                Mode::Fp8 => Some(LayerParts::count(&self.device, weights, config.num_local_experts, stream)?),
                _ => None,
            };
            let w13_parts = parts.as_ref().map_or(std::ptr::null(), LayerParts::w13);
            let w2_parts = parts.as_ref().map_or(std::ptr::null(), LayerParts::w2);
            let matrices = [
                (self.slice.w13, weights.w13.pointer, weights.w13_block_scale.pointer, true, w13_parts),
                (self.slice.w2, weights.w2.pointer, weights.w2_block_scale.pointer, false, w2_parts),
            ];
            for (matrix, codes, block_scale, gated, parts) in matrices {
                let source = Source {
                    codes,
                    block_scale,
                    num_experts: config.num_local_experts,
                    expert_stride: self.slice.stride,
                    gated,
                    up_first: weights.up_first,
                    bad_scales,
                    parts,
                };
                prepare_matrix(&self.device, self.kernels, &matrix, &source, storage, stream)?;
            }
            let params = params::PrepareAlphaParams {
                w13_global_scale: weights.w13_global_scale.pointer,
                w2_global_scale: weights.w2_global_scale.pointer,
                alphas: self.slice.alphas.pointer(storage),
                expert_stride: self.slice.stride,
                bad_scales,
                num_local_experts: config.num_local_experts as i32,
                up_first: weights.up_first.into(),
                factor: missing_factor(self.kernels, config.mode),
                stored_exponent: params::FP8_LARGEST_EXPONENT as i32,
                w13_scales: w13_parts,
                w2_scales: w2_parts,
            };
            let blocks = params.num_local_experts.unsigned_abs().div_ceil(THREADS);
            self.device.launch(Kernel::PrepareAlphas, Shape::new([blocks, 1, 1], THREADS, 0), stream, &params)?;
            refuse_bad_scales(self.device.read(state, stream)?.bad_scales)?;
            if let Some(parts) = parts {
                parts.check(&self.device, weights.up_first, stream)?;
            }
        }
        self.storage = storage;
        Ok(())
    }

    /// Enqueue the layer.
    ///
    /// # Safety
    /// The pointers of `args` are device memory as the header states.
    pub unsafe fn forward(
        &self,
        config: &LayerConfig,
        scales: InputScales,
        args: &LayerArgs,
        stream: Stream,
    ) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.enqueue(config, scales, args, stream, false) }
    }

    /// Enqueue the layer in mode bf16, and widen the calibration by both GEMMs' inputs.
    ///
    /// # Safety
    /// As [`CudaLayer::forward`].
    pub unsafe fn calibrate(&self, config: &LayerConfig, args: &LayerArgs, stream: Stream) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.enqueue(config, InputScales::default(), args, stream, true) }
    }

    /// What calibration saw on all streams; forgets it. Waits for the device's work.
    pub fn take_calibration(&mut self) -> Result<Calibration> {
        let _entered = self.device.enter()?;
        let state: *mut LayerState = self.state.pointer();
        self.device.synchronize()?;
        // SAFETY: the layer's own state.
        let seen = unsafe { self.device.read(state, std::ptr::null_mut()) }?;
        // SAFETY: as above.
        unsafe { self.device.write(state, FRESH, std::ptr::null_mut()) }?;
        Ok(Calibration { x_amax: seen.x_amax, h_amax: seen.h_amax })
    }

    unsafe fn enqueue(
        &self,
        config: &LayerConfig,
        scales: InputScales,
        args: &LayerArgs,
        stream: Stream,
        observe: bool,
    ) -> Result<()> {
        let mut plan = LayerPlan::new(self.kernels, config, args.num_tokens);
        plan.tile_rows = self.forced_rows.unwrap_or(plan.tile_rows);
        let _entered = self.device.enter()?;
        let base = workspace(&self.device, args.workspace, args.workspace_size, plan.workspace_size, stream)?;
        let call = Call { layer: self, config, scales, args, stream, plan: &plan, base };
        // SAFETY: by contract.
        unsafe { call.run(observe) }
    }
}
