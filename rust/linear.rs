// SPDX-License-Identifier: Apache-2.0
//! The NVFP4 linear: policy and checks above a backend that computes.

use crate::call::{LinearArgs, LinearBackend, LinearWeights, Storage, Stream, missing_input_scale};
use crate::config::{Device, LinearConfig, Mode, ScalePolicy};
use crate::cpu::CpuLinear;
use crate::cuda::CudaLinear;
use crate::error::{Error, Result};
use crate::format::{check_global_scale, input_scale_from_amax};

/// One NVFP4 linear.
#[derive(Debug)]
pub struct Linear {
    config: LinearConfig,
    input_scale: f32,
    backend: Box<dyn LinearBackend>,
}

impl Linear {
    /// A linear without a weight.
    pub fn new(config: LinearConfig) -> Result<Self> {
        config.validate()?;
        check_mode(config.mode)?;
        let backend: Box<dyn LinearBackend> = match config.device {
            Device::Cpu => Box::new(CpuLinear::new(&config)),
            Device::Cuda(ordinal, choice) => Box::new(CudaLinear::new(ordinal, choice, &config)?),
        };
        Ok(Linear { config, input_scale: 0.0, backend })
    }

    /// What it was created as.
    pub fn config(&self) -> &LinearConfig {
        &self.config
    }

    /// Bytes of storage for the prepared weight; 0 on the CPU, which uses it in place.
    pub fn storage_size(&self) -> u64 {
        self.backend.storage_size()
    }

    /// Take the weight.
    ///
    /// # Safety
    /// As [`LinearBackend::prepare`].
    pub unsafe fn prepare(&mut self, weights: LinearWeights, storage: Storage, stream: Stream) -> Result<()> {
        if weights.input_scale != 0.0 {
            check_global_scale("input_scale", weights.input_scale)?;
        }
        // SAFETY: the caller's promise is the backend's.
        unsafe { self.backend.prepare(&weights, storage, stream) }?;
        self.input_scale = weights.input_scale;
        Ok(())
    }

    /// Workspace bytes for up to `max_tokens` tokens.
    pub fn workspace_size(&self, max_tokens: usize) -> u64 {
        self.backend.workspace_size(max_tokens)
    }

    /// out = x * weight^T + bias; on CUDA, enqueued.
    ///
    /// # Safety
    /// The pointers of `args` are valid as the header states.
    pub unsafe fn forward(&self, args: &LinearArgs, stream: Stream) -> Result<()> {
        self.check_prepared()?;
        let is_static = self.config.mode == Mode::Nvfp4 && self.config.scale_policy == ScalePolicy::Static;
        if is_static && self.input_scale == 0.0 {
            return Err(missing_input_scale("input_scale is"));
        }
        // SAFETY: the caller's promise is the backend's.
        unsafe { self.backend.forward(self.input_scale, args, stream) }
    }

    /// Compute in mode bf16 and remember the largest input.
    ///
    /// # Safety
    /// As [`Linear::forward`].
    pub unsafe fn calibrate(&mut self, args: &LinearArgs, stream: Stream) -> Result<()> {
        self.check_prepared()?;
        // SAFETY: the caller's promise is the backend's.
        unsafe { self.backend.calibrate(args, stream) }
    }

    /// The input scale that calibration asks for; forgets what it saw.
    pub fn calibrated_scale(&mut self) -> Result<f32> {
        let seen = self.backend.take_amax()?;
        if seen < 0.0 {
            let text = "calibrated rows is 0; at least 1 is needed. Call nvfp4_moe_linear_calibrate with some tokens.";
            return Err(Error::NotPrepared(text.to_owned()));
        }
        Ok(input_scale_from_amax(seen))
    }

    /// Use this input scale.
    pub fn set_input_scale(&mut self, input_scale: f32) -> Result<()> {
        check_global_scale("input_scale", input_scale)?;
        self.backend.set_input_scale(input_scale)?;
        self.input_scale = input_scale;
        Ok(())
    }

    /// As [`Layer::close`](crate::layer::Layer::close).
    pub fn close(&mut self) -> Result<()> {
        self.backend.close()
    }

    fn check_prepared(&self) -> Result<()> {
        self.backend.readiness().check("linear")
    }
}

/// Mode fp8 is for MoE layers: a linear has no kernels for it, on any device.
fn check_mode(mode: Mode) -> Result<()> {
    match mode {
        Mode::Bf16 | Mode::Nvfp4 => Ok(()),
        Mode::Fp8 => Err(Error::Unsupported(
            "mode is 3 (fp8); it is for MoE layers, and linears have modes 1 (bf16) and 2 (nvfp4). \
             Use bf16, which is exact for the weights."
                .to_owned(),
        )),
    }
}
