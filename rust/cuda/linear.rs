// SPDX-License-Identifier: Apache-2.0
//! One NVFP4 linear on a CUDA device: memory, and the order of the steps.

use super::devices;
use super::driver::Relaxed;
use super::family::Family;
use super::kernels::{PREPARE_ROW_ALPHAS, THREADS, params};
use super::linear_call::LinearCall;
use super::plan::LinearPlan;
use super::prepare::{Source, check_storage, refuse_bad_scales, refuse_capture};
use super::prepared::{DevicePointer, PreparedLinear, State, Weights};
use super::shared_workspaces::Scratch;
use super::storage::LinearStorage;
use crate::call::{LinearArgs, LinearBackend, LinearWeights, Readiness, Storage, Stream};
use crate::config::{KernelChoice, LinearConfig, Mode, WeightForm};
use crate::error::Result;
use crate::shape::RowOrder;

/// A linear, with or without a weight.
#[derive(Debug)]
pub struct CudaLinear {
    family: &'static dyn Family,
    linear: PreparedLinear,
    /// In the linear's own mode.
    own: LinearConfig,
    /// In calibration's, which is bf16.
    calibrating: LinearConfig,
}

impl CudaLinear {
    /// Open the device, load its kernels.
    pub fn new(ordinal: i32, choice: KernelChoice, config: &LinearConfig) -> Result<Self> {
        let (device, family) = devices::with_family(ordinal, choice)?;
        config.tile_rows.map_or(Ok(()), |rows| family.check_tile_rows(rows))?;
        family.check_rows("out_features", config.out_features, config.in_features)?;
        let state = State::allocate(&device)?;
        let matrix = |walk: &mut _, rows, cols| family.matrix(walk, WeightForm::Exact, rows, cols);
        let layout = LinearStorage::new(config.in_features, config.out_features, matrix);
        Ok(CudaLinear {
            family,
            linear: PreparedLinear { device, layout, state, weights: Weights::None },
            own: config.clone(),
            calibrating: LinearConfig { mode: Mode::Bf16, ..config.clone() },
        })
    }

    /// Take tiles of so many rows from now on.
    pub fn set_tile_rows(&mut self, rows: u32) -> Result<()> {
        self.family.check_tile_rows(rows)?;
        self.own.tile_rows = Some(rows);
        Ok(())
    }

    fn plan(&self, config: &LinearConfig, max_tokens: usize) -> LinearPlan {
        LinearPlan::new(self.family.linear_x(config.mode), config, max_tokens)
    }

    /// Fill the storage and the state, and wait for it.
    unsafe fn write(&self, weights: &LinearWeights, storage: *mut u8, stream: Stream) -> Result<()> {
        let PreparedLinear { device, layout, state, .. } = &self.linear;
        let source = Source {
            codes: weights.weight.pointer,
            block_scale: weights.block_scale.pointer,
            num_experts: 1,
            expert_stride: 0,
            row_order: RowOrder::Plain,
            counted: std::ptr::null(),
            rounded: false,
        };
        // SAFETY: the linear's own state; the caller vouches for the rest.
        unsafe {
            self.family.prepare_matrix(device, &layout.weight, &source, storage, stream)?;
            let mut first_row = 0;
            for (part, end) in weights.part_ends.iter().copied().enumerate() {
                let params = params::PrepareRowAlphaParams {
                    global_scale: weights.global_scale.pointer,
                    row_alpha: layout.row_alphas.pointer(storage),
                    part: part as i32,
                    first_row,
                    num_rows: end as i32 - first_row,
                    factor: self.family.missing_factor(Mode::Bf16),
                };
                first_row = end as i32;
                let blocks = params.num_rows.unsigned_abs().div_ceil(THREADS).max(1);
                device.launch(PREPARE_ROW_ALPHAS.over([blocks, 1, 1]), stream, &params)?;
            }
            // Zeros where there is none: a graph reads them in any case, and its next weights may have one.
            let bias = layout.bias.pointer(storage);
            match weights.bias {
                Some(given) => device.copy(bias, given.pointer, given.len, stream)?,
                None => device.clear(bias, layout.bias.len, stream)?,
            }
            device.write(state.pointer(), &[State::new([weights.input_scale, 0.0])], stream)
        }
    }

    /// Enqueue every step; with `observe`, calibration's too.
    unsafe fn enqueue(&self, config: &LinearConfig, args: &LinearArgs, stream: Stream, observe: bool) -> Result<()> {
        let plan = &self.plan(config, args.num_tokens);
        let device = &self.linear.device;
        let _entered = device.enter()?;
        let scratch = match plan.workspace_size {
            0 => Scratch::none(),
            size => device.workspace(args.workspace, size, stream)?,
        };
        let call = LinearCall { linear: &self.linear, config, args, stream, plan, base: scratch.base };
        // SAFETY: the caller's promise; the device is entered, and `base` is a workspace of the plan's size.
        unsafe {
            if observe {
                call.observe()?;
            }
            if config.mode == Mode::Nvfp4 {
                call.quantize_x()?;
            }
            self.family.linear(&call)
        }
    }
}

impl LinearBackend for CudaLinear {
    fn storage_size(&self) -> u64 {
        self.linear.layout.size
    }

    fn readiness(&self) -> Readiness {
        self.linear.weights.readiness()
    }

    /// Check the weight, then bring it into kernel layout, bias included. Waits for the stream, because it refuses broken scales.
    unsafe fn prepare(&mut self, weights: &LinearWeights, storage: Storage, stream: Stream) -> Result<()> {
        let storage = check_storage(storage, self.storage_size(), "Ask nvfp4_moe_linear_storage_size.")?;
        let device = self.linear.device.clone();
        let _entered = device.enter()?;
        let _relaxed = Relaxed::capture()?;
        refuse_capture(stream)?;
        let matrix = (weights.block_scale, weights.global_scale);
        // SAFETY: the tensors are device memory as the header states, and so is the storage; the device is entered.
        unsafe {
            refuse_bad_scales(&device, self.linear.state.pointer(), &[matrix], stream)?;
            self.linear.weights = Weights::HalfWritten;
            self.write(weights, storage, stream)?;
        }
        self.linear.weights = Weights::At(DevicePointer(storage));
        Ok(())
    }

    fn workspace_size(&self, max_tokens: usize) -> u64 {
        self.plan(&self.own, max_tokens).workspace_size
    }

    /// With the input scale that its state has.
    unsafe fn forward(&self, _: f32, args: &LinearArgs, stream: Stream) -> Result<()> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.enqueue(&self.own, args, stream, false) }
    }

    unsafe fn calibrate(&mut self, args: &LinearArgs, stream: Stream) -> Result<()> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.enqueue(&self.calibrating, args, stream, true) }
    }

    fn take_amax(&mut self) -> Result<f32> {
        let [amax, _] = State::take_amax(&self.linear.device, self.linear.state.pointer())?;
        Ok(amax)
    }

    fn set_input_scale(&mut self, input_scale: f32) -> Result<()> {
        State::set_input_scales(&self.linear.device, self.linear.state.pointer(), [input_scale, 0.0])
    }

    fn close(&mut self) -> Result<()> {
        self.linear.weights = Weights::None;
        self.linear.state.free()
    }
}
