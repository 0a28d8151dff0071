// SPDX-License-Identifier: Apache-2.0
//! One MoE layer on a CUDA device: memory, and the order of the steps.

use super::device::Device;
use super::devices;
use super::driver;
use super::families;
use super::family::Family;
use super::forward::LayerCall;
use super::kernels::{PREPARE_ALPHAS, PREPARE_BIASES, THREADS, params};
use super::plan::{LayerPlan, PlanRules, check_local_experts};
use super::prepare::{CountedScales, Source, check_storage, refuse_bad_scales, refuse_capture};
use super::prepared::{DevicePointer, PreparedLayer, State, Weights};
use super::storage::ExpertSlice;
use super::tiles::TileTable;
use crate::call::{Calibration, InputScales, LayerArgs, LayerBackend, LayerWeights, Readiness, Storage, Stream};
use crate::config::{KernelChoice, LayerConfig, Mode, WeightForm};
use crate::error::Result;
use crate::format::WeightError;
use crate::shape::RowOrder;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// A mode that a layer computes in, and how its calls are laid out.
#[derive(Debug)]
struct Computation {
    config: LayerConfig,
    rules: PlanRules,
}

impl Computation {
    fn new(family: &dyn Family, config: &LayerConfig, mode: Mode) -> Self {
        let config = LayerConfig { mode, ..config.clone() };
        Computation { rules: family.plan_rules(&config), config }
    }
}

/// A layer, with or without weights.
#[derive(Debug)]
pub struct CudaLayer {
    family: &'static dyn Family,
    layer: PreparedLayer,
    tiles: TileTable,
    /// In the layer's own mode.
    own: Computation,
    /// In calibration's, which is bf16.
    calibrating: Computation,
    weight_error: WeightError,
}

impl CudaLayer {
    /// Open the device, load its kernels, decide what does not depend on a call.
    pub fn new(ordinal: i32, choice: KernelChoice, config: &LayerConfig) -> Result<Self> {
        if let Some(family) = families::named(choice) {
            family.check_mode(ordinal, config.mode)?;
        }
        let (device, family) = devices::with_family(ordinal, choice)?;
        family.check_mode(ordinal, config.mode)?;
        let tiles = match device.has_proved_finer_tiles.load(Relaxed) {
            true => family.tile_table(config)?,
            false => family.tile_table_without_proof(config)?,
        };
        check_local_experts(config.num_local_experts, device.routing_bytes())?;
        let state = State::allocate(&device)?;
        let matrix = |walk: &mut _, rows, cols| family.matrix(walk, config.weight_form(), rows, cols);
        let slice = ExpertSlice::new(config.shape(), config.has_bias, matrix);
        Ok(CudaLayer {
            family,
            layer: PreparedLayer { device, slice, state, weights: Weights::None },
            tiles,
            own: Computation::new(family, config, config.mode),
            calibrating: Computation::new(family, config, Mode::Bf16),
            weight_error: WeightError::default(),
        })
    }

    /// Take tiles of so many rows from now on.
    pub fn set_tile_rows(&mut self, rows: u32) -> Result<()> {
        self.tiles = self.family.tile_table(&LayerConfig { tile_rows: Some(rows), ..self.own.config.clone() })?;
        Ok(())
    }

    /// Enqueue the copies of both biases into the experts' slices; a bias that is not there is 0.
    unsafe fn prepare_biases(&self, weights: &LayerWeights, storage: *mut u8, stream: Stream) -> Result<()> {
        let slice = &self.layer.slice;
        let biases =
            [(weights.w13_bias, slice.w13_bias, weights.row_order), (weights.w2_bias, slice.w2_bias, RowOrder::Plain)];
        for (bias, out, row_order) in biases {
            let params = params::PrepareBiasParams {
                bias: bias.map_or(std::ptr::null(), |bias| bias.pointer.cast()),
                out: out.pointer(storage).cast(),
                expert_stride: slice.stride,
                rows: out.len as i32,
                row_order: row_order as i32,
            };
            let blocks = (out.len as u32).div_ceil(THREADS);
            let launch = PREPARE_BIASES.over([blocks, self.own.config.num_local_experts as u32, 1]);
            // SAFETY: the storage has the slices' size; the biases are device memory as the header states.
            unsafe { self.device().launch(launch, stream, &params) }?;
        }
        Ok(())
    }

    fn device(&self) -> &Arc<Device> {
        &self.layer.device
    }

    fn plan(&self, computation: &Computation, num_tokens: usize) -> LayerPlan {
        LayerPlan::new(&computation.rules, &computation.config, self.tiles.rows(num_tokens), num_tokens)
    }

    /// Refuse weights that cannot be computed with; nothing is written. Returns what mode fp8 asks of them,
    /// and what rounding does to them.
    unsafe fn check(&self, weights: &LayerWeights, stream: Stream) -> Result<(Option<CountedScales>, WeightError)> {
        let (device, state) = (self.device(), self.layer.state.pointer());
        let matrices =
            [(weights.w13_block_scale, weights.w13_global_scale), (weights.w2_block_scale, weights.w2_global_scale)];
        // SAFETY: the caller's promise is the same.
        unsafe {
            refuse_bad_scales(device, state, &matrices, stream)?;
            let counted = self.family.count_scales(device, &self.own.config, weights, stream)?;
            let check = |counted: &CountedScales| counted.check(device, &self.own.config, weights, stream);
            let error = counted.as_ref().map(check).transpose()?;
            Ok((counted, error.unwrap_or_default()))
        }
    }

    /// Fill the storage and the state, and wait for it.
    unsafe fn write(
        &self,
        weights: &LayerWeights,
        storage: *mut u8,
        counted: Option<CountedScales>,
        stream: Stream,
    ) -> Result<()> {
        let (device, config, slice) = (self.device(), &self.own.config, &self.layer.slice);
        let w13_counted = counted.as_ref().map_or(std::ptr::null_mut(), CountedScales::w13);
        let w2_counted = counted.as_ref().map_or(std::ptr::null_mut(), CountedScales::w2);
        let matrices = [
            (&slice.w13, weights.w13.pointer, weights.w13_block_scale.pointer, weights.row_order, w13_counted),
            (&slice.w2, weights.w2.pointer, weights.w2_block_scale.pointer, RowOrder::Plain, w2_counted),
        ];
        let alphas = params::PrepareAlphaParams {
            w13_global_scale: weights.w13_global_scale.pointer,
            w2_global_scale: weights.w2_global_scale.pointer,
            alphas: slice.alphas.pointer(storage),
            expert_stride: slice.stride,
            num_local_experts: config.num_local_experts as i32,
            row_order: weights.row_order as i32,
            factor: self.family.missing_factor(config.mode),
            stored_exponent: counted.as_ref().map_or(0, |counted| counted.stored_exponent),
            w13_scales: w13_counted,
            w2_scales: w2_counted,
            rounded: (config.weight_form() == WeightForm::Fp8).into(),
            ..Default::default()
        };
        let blocks = alphas.num_local_experts.unsigned_abs().div_ceil(THREADS);
        let InputScales { w13, w2 } = weights.input_scales;
        // SAFETY: the layer's own state; the caller vouches for the rest.
        unsafe {
            for (matrix, codes, block_scale, row_order, counted) in matrices {
                let source = Source {
                    codes,
                    block_scale,
                    num_experts: config.num_local_experts,
                    expert_stride: slice.stride,
                    row_order,
                    counted,
                    rounded: alphas.rounded != 0,
                };
                self.family.prepare_matrix(device, matrix, &source, storage, stream)?;
            }
            device.launch(PREPARE_ALPHAS.over([blocks, 1, 1]), stream, &alphas)?;
            if config.has_bias {
                self.prepare_biases(weights, storage, stream)?;
            }
            device.write(self.layer.state.pointer(), &[State::new([w13, w2])], stream)
        }
    }

    /// Enqueue every step; with `observe`, calibration's too.
    unsafe fn enqueue(&self, computation: &Computation, args: &LayerArgs, stream: Stream, observe: bool) -> Result<()> {
        let plan = &self.plan(computation, args.num_tokens);
        let _entered = self.device().enter()?;
        let scratch = self.device().workspace(args.workspace, plan.workspace_size, stream)?;
        let config = &computation.config;
        let call = LayerCall { layer: &self.layer, config, args, stream, plan, base: scratch.base };
        // SAFETY: the caller's promise; the device is entered, and `base` is a workspace of the plan's size.
        unsafe {
            if !observe && self.family.whole_call(&call)? {
                return Ok(());
            }
            call.route()?;
            for chunk in 0..plan.chunks {
                self.family.gemm1(&call, chunk)?;
                if observe {
                    call.observe(chunk)?;
                }
                self.family.gemm2(&call, chunk)?;
                call.combine(chunk)?;
            }
        }
        Ok(())
    }
}

impl LayerBackend for CudaLayer {
    /// An equal slice for each local expert.
    fn storage_size(&self) -> u64 {
        self.layer.slice.stride * self.own.config.num_local_experts as u64
    }

    fn readiness(&self) -> Readiness {
        self.layer.weights.readiness()
    }

    fn weight_error(&self) -> WeightError {
        self.weight_error
    }

    /// Check the weights, then bring them into kernel layout. Waits for the stream, because it refuses broken scales.
    unsafe fn prepare(&mut self, weights: &LayerWeights, storage: Storage, stream: Stream) -> Result<()> {
        let storage = check_storage(storage, self.storage_size(), "Ask nvfp4_moe_layer_storage_size.")?;
        let device = self.layer.device.clone();
        let _entered = device.enter()?;
        let _relaxed = driver::Relaxed::capture()?;
        refuse_capture(stream)?;
        // SAFETY: the tensors are device memory as the header states, and so is the storage; the device is entered.
        unsafe {
            let (counted, error) = self.check(weights, stream)?;
            self.layer.weights = Weights::HalfWritten;
            self.write(weights, storage, counted, stream)?;
            self.weight_error = error;
        }
        self.layer.weights = Weights::At(DevicePointer(storage));
        Ok(())
    }

    /// Of the larger of both computations.
    fn workspace_size(&self, max_tokens: usize) -> u64 {
        let size = |computation| self.plan(computation, max_tokens).workspace_size;
        size(&self.own).max(size(&self.calibrating))
    }

    /// With the input scales that its state has.
    unsafe fn forward(&self, _: InputScales, args: &LayerArgs, stream: Stream) -> Result<()> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.enqueue(&self.own, args, stream, false) }
    }

    unsafe fn calibrate(&mut self, args: &LayerArgs, stream: Stream) -> Result<()> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.enqueue(&self.calibrating, args, stream, true) }
    }

    fn take_calibration(&mut self) -> Result<Calibration> {
        let [x_amax, h_amax] = State::take_amax(self.device(), self.layer.state.pointer())?;
        Ok(Calibration { x_amax, h_amax })
    }

    fn set_input_scales(&mut self, scales: InputScales) -> Result<()> {
        State::set_input_scales(self.device(), self.layer.state.pointer(), [scales.w13, scales.w2])
    }

    fn close(&mut self) -> Result<()> {
        self.layer.weights = Weights::None;
        self.layer.state.free()
    }
}
