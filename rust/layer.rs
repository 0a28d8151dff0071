// SPDX-License-Identifier: Apache-2.0
//! The MoE layer: policy and checks above a backend that computes.

use crate::call::{Calibration, InputScales, LayerArgs, LayerBackend, LayerWeights, Storage, Stream};
use crate::config::{Device, LayerConfig, Mode, ScalePolicy};
use crate::cpu::CpuLayer;
use crate::cuda;
use crate::error::{Error, Result};
use crate::format::{WeightError, input_scale_from_amax};

/// One MoE layer.
#[derive(Debug)]
pub struct Layer {
    config: LayerConfig,
    input_scales: InputScales,
    backend: Box<dyn LayerBackend>,
}

impl Layer {
    /// A layer without weights.
    pub fn new(config: LayerConfig) -> Result<Self> {
        config.validate()?;
        let backend: Box<dyn LayerBackend> = match config.device {
            Device::Cpu => Box::new(CpuLayer::new(&config)),
            Device::Cuda(ordinal, choice) => cuda::layer(ordinal, choice, &config)?,
        };
        Ok(Layer { config, input_scales: InputScales::default(), backend })
    }

    /// What it was created as.
    pub fn config(&self) -> &LayerConfig {
        &self.config
    }

    /// Bytes of storage for prepared weights; 0 on the CPU, which uses weights in place.
    pub fn storage_size(&self) -> u64 {
        self.backend.storage_size()
    }

    /// Take the weights.
    ///
    /// # Safety
    /// As [`LayerBackend::prepare`].
    pub unsafe fn prepare(&mut self, weights: LayerWeights, storage: Storage, stream: Stream) -> Result<()> {
        weights.input_scales.check_those_given()?;
        // SAFETY: the caller's promise is the backend's.
        unsafe { self.backend.prepare(&weights, storage, stream) }?;
        self.input_scales = weights.input_scales;
        Ok(())
    }

    /// What rounding to e4m3 did to the weights, of which there must be some.
    pub fn weight_error(&self) -> Result<WeightError> {
        self.check_prepared()?;
        Ok(self.backend.weight_error())
    }

    /// Workspace bytes for up to `max_tokens` tokens.
    pub fn workspace_size(&self, max_tokens: usize) -> Result<u64> {
        self.check_slots("max_tokens", max_tokens)?;
        Ok(self.backend.workspace_size(max_tokens))
    }

    /// Compute the layer; on CUDA, enqueue it.
    ///
    /// # Safety
    /// The pointers of `args` are valid as the header states.
    pub unsafe fn forward(&self, args: &LayerArgs, stream: Stream) -> Result<()> {
        self.check_slots("num_tokens", args.num_tokens)?;
        self.check_prepared()?;
        let is_static = self.config.mode == Mode::Nvfp4 && self.config.scale_policy == ScalePolicy::Static;
        if is_static {
            self.input_scales.check_both_given()?;
        }
        // SAFETY: the caller's promise is the backend's.
        unsafe { self.backend.forward(self.input_scales, args, stream) }
    }

    /// Compute the layer in mode bf16 and remember the largest inputs of both GEMMs.
    ///
    /// # Safety
    /// As [`Layer::forward`].
    pub unsafe fn calibrate(&mut self, args: &LayerArgs, stream: Stream) -> Result<()> {
        self.check_slots("num_tokens", args.num_tokens)?;
        self.check_prepared()?;
        if self.config.mode == Mode::Fp8 {
            let text = "mode is 3 (fp8), whose weights are not kept for bf16, and whose scales are each row's own; calibrate \
                        needs mode 1 (bf16) or 2 (nvfp4). Calibrate a layer of mode nvfp4.";
            return Err(Error::Unsupported(text.to_owned()));
        }
        // SAFETY: the caller's promise is the backend's.
        unsafe { self.backend.calibrate(args, stream) }
    }

    /// The input scales that calibration asks for; forgets what it saw.
    pub fn calibrated_scales(&mut self) -> Result<InputScales> {
        let Calibration { x_amax, h_amax } = self.backend.take_calibration()?;
        if x_amax < 0.0 {
            let text = "calibrated rows is 0; at least 1 row must have been routed here. \
                        Call nvfp4_moe_layer_calibrate with tokens that use this rank's experts.";
            return Err(Error::NotPrepared(text.to_owned()));
        }
        Ok(InputScales { w13: input_scale_from_amax(x_amax), w2: input_scale_from_amax(h_amax) })
    }

    /// Use these input scales.
    pub fn set_input_scales(&mut self, scales: InputScales) -> Result<()> {
        self.backend.set_input_scales(scales.check()?)?;
        self.input_scales = scales;
        Ok(())
    }

    /// Give back what it holds of its device, and say what could not be.
    pub fn close(&mut self) -> Result<()> {
        self.backend.close()
    }

    fn check_prepared(&self) -> Result<()> {
        self.backend.readiness().check("layer")
    }

    /// Slots are numbered in i32.
    fn check_slots(&self, name: &str, tokens: usize) -> Result<()> {
        let top_k = self.config.top_k;
        let most = i32::MAX as usize / top_k;
        if tokens > most {
            let rule = format!("with top_k {top_k} it must be at most {most}");
            return Err(Error::argument(name, tokens, rule, "Split the batch."));
        }
        Ok(())
    }
}
