//! The NVFP4 linear: a configuration, a weight, and the state around it. Backends compute.

use crate::config::{LinearConfig, Mode, ScalePolicy};
use crate::cpu;
use crate::error::{Error, Result};
use crate::format::{check_global_scale, input_scale_from_amax};
use crate::layer::{Tensor, check_block_scales, check_device, check_weight_global_scales, missing_input_scale};

/// The weight of a linear; fields as in `nvfp4_moe_linear_weights`.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct LinearWeights {
    pub weight: Tensor<u8>,
    pub block_scale: Tensor<u8>,
    pub global_scale: Tensor<f32>,
    /// First row after each part: ascending, the last is `out_features`.
    pub part_ends: Vec<usize>,
    pub bias: Option<Tensor<u16>>,
    pub input_scale: f32,
}

impl LinearWeights {
    /// The part, and so the global scale, that a row belongs to.
    pub fn part_of_row(&self, row: usize) -> usize {
        self.part_ends.partition_point(|end| *end <= row)
    }
}

/// Arguments of a forward; fields as in `nvfp4_moe_linear_args`, checked, strides filled in.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct LinearArgs {
    pub num_tokens: usize,
    pub x: *const u16,
    pub x_row_stride: usize,
    pub out: *mut u16,
    pub out_row_stride: usize,
    pub workspace: *mut u8,
    pub workspace_size: u64,
}

// SAFETY: tasks of a call read through these pointers, and write `out` and `workspace` in parts of one task each.
unsafe impl Send for LinearArgs {}
// SAFETY: as above.
unsafe impl Sync for LinearArgs {}

/// One NVFP4 linear.
#[derive(Debug)]
pub struct Linear {
    config: LinearConfig,
    weights: Option<LinearWeights>,
    input_scale: f32,
    /// Largest finite input that calibration met; negative while there was none.
    amax: f32,
}

impl Linear {
    /// A linear without a weight.
    pub fn new(config: LinearConfig) -> Result<Self> {
        config.validate()?;
        check_device(config.device, config.mode)?;
        Ok(Linear { config, weights: None, input_scale: 0.0, amax: -1.0 })
    }

    /// What it was created as.
    pub fn config(&self) -> &LinearConfig {
        &self.config
    }

    /// Bytes of storage for the prepared weight; 0 on the CPU, which uses it in place.
    pub fn storage_size(&self) -> u64 {
        0
    }

    /// Take the weight.
    ///
    /// # Safety
    /// Each tensor is valid on the linear's device, has the length that the header states, and outlives the linear.
    pub unsafe fn prepare(&mut self, weights: LinearWeights) -> Result<()> {
        // SAFETY: CPU tensors are host memory, by contract.
        unsafe {
            check_block_scales("block_scale", weights.block_scale.slice())?;
            check_weight_global_scales("global_scale", weights.global_scale.slice())?;
        }
        if weights.input_scale != 0.0 {
            check_global_scale("input_scale", weights.input_scale)?;
        }
        self.input_scale = weights.input_scale;
        self.weights = Some(weights);
        Ok(())
    }

    /// Workspace bytes for up to `max_tokens` tokens.
    pub fn workspace_size(&self, max_tokens: usize) -> u64 {
        cpu::LinearPlan::new(&self.config, cpu::isa::best(), max_tokens).workspace_size
    }

    /// out = x * weight^T + bias.
    ///
    /// # Safety
    /// The pointers of `args` are valid as the header states.
    pub unsafe fn forward(&self, args: &LinearArgs) -> Result<()> {
        let weights = self.ready()?;
        let is_static = self.config.mode == Mode::Nvfp4 && self.config.scale_policy == ScalePolicy::Static;
        if is_static && self.input_scale == 0.0 {
            return Err(missing_input_scale("input_scale is"));
        }
        let call = cpu::LinearCall { config: &self.config, weights, input_scale: self.input_scale, args };
        // SAFETY: by contract.
        unsafe { cpu::linear_forward(&call, false) }.map(|_| ())
    }

    /// Compute in mode bf16 and remember the largest input.
    ///
    /// # Safety
    /// As [`Linear::forward`].
    pub unsafe fn calibrate(&mut self, args: &LinearArgs) -> Result<()> {
        let config = LinearConfig { mode: Mode::Bf16, ..self.config.clone() };
        let call = cpu::LinearCall { config: &config, weights: self.ready()?, input_scale: 0.0, args };
        // SAFETY: by contract.
        let amax = unsafe { cpu::linear_forward(&call, true) }?;
        self.amax = self.amax.max(amax);
        Ok(())
    }

    /// The input scale that calibration asks for; forgets what it saw.
    pub fn calibrated_scale(&mut self) -> Result<f32> {
        if self.amax < 0.0 {
            let text = "calibrated rows is 0; at least 1 is needed. Call nvfp4_moe_linear_calibrate with some tokens.";
            return Err(Error::NotPrepared(text.to_owned()));
        }
        Ok(input_scale_from_amax(std::mem::replace(&mut self.amax, -1.0)))
    }

    /// Use this input scale.
    pub fn set_input_scale(&mut self, input_scale: f32) -> Result<()> {
        check_global_scale("input_scale", input_scale)?;
        self.input_scale = input_scale;
        Ok(())
    }

    fn ready(&self) -> Result<&LinearWeights> {
        let text = "the linear has 0 prepared weights; forward needs 1. Call nvfp4_moe_linear_prepare first.";
        self.weights.as_ref().ok_or_else(|| Error::NotPrepared(text.to_owned()))
    }
}
