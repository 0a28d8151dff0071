//! The NVFP4 linear: a configuration, a weight, and the state around it. Backends compute.

use crate::config::{Device, LinearConfig, Mode, ScalePolicy};
use crate::cpu;
use crate::cuda::{CudaLinear, Stream};
use crate::error::{Error, Result};
use crate::format::{check_global_scale, input_scale_from_amax};
use crate::layer::{Storage, Tensor, check_block_scales, check_weight_global_scales, missing_input_scale};

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
    input_scale: f32,
    backend: Backend,
}

#[derive(Debug)]
enum Backend {
    /// `amax`: the largest finite input that calibration met; negative while there was none.
    Cpu {
        weights: Option<LinearWeights>,
        amax: f32,
    },
    Cuda(CudaLinear),
}

impl Linear {
    /// A linear without a weight.
    pub fn new(config: LinearConfig) -> Result<Self> {
        config.validate()?;
        check_mode(config.mode)?;
        let backend = match config.device {
            Device::Cpu => Backend::Cpu { weights: None, amax: -1.0 },
            Device::Cuda(ordinal, kernels) => Backend::Cuda(CudaLinear::new(ordinal, kernels, &config)?),
        };
        Ok(Linear { config, input_scale: 0.0, backend })
    }

    /// What it was created as.
    pub fn config(&self) -> &LinearConfig {
        &self.config
    }

    /// Bytes of storage for the prepared weight; 0 on the CPU, which uses it in place.
    pub fn storage_size(&self) -> u64 {
        match &self.backend {
            Backend::Cpu { .. } => 0,
            Backend::Cuda(linear) => linear.storage_size(),
        }
    }

    /// Take the weight.
    ///
    /// # Safety
    /// Each tensor is valid on the linear's device and has the length that the header states. On the CPU the tensors, on
    /// CUDA the storage must outlive the linear.
    pub unsafe fn prepare(&mut self, weights: LinearWeights, storage: Storage, stream: Stream) -> Result<()> {
        if weights.input_scale != 0.0 {
            check_global_scale("input_scale", weights.input_scale)?;
        }
        let input_scale = weights.input_scale;
        match &mut self.backend {
            Backend::Cpu { weights: own, .. } => {
                // SAFETY: CPU tensors are host memory, by contract.
                unsafe {
                    check_block_scales("block_scale", weights.block_scale.slice())?;
                    check_weight_global_scales("global_scale", weights.global_scale.slice())?;
                }
                *own = Some(weights);
            }
            // SAFETY: by contract.
            Backend::Cuda(linear) => unsafe { linear.prepare(&weights, storage, stream) }?,
        }
        self.input_scale = input_scale;
        Ok(())
    }

    /// Workspace bytes for up to `max_tokens` tokens.
    pub fn workspace_size(&self, max_tokens: usize) -> u64 {
        match &self.backend {
            Backend::Cpu { .. } => cpu::LinearPlan::new(&self.config, cpu::isa::best(), max_tokens).workspace_size,
            Backend::Cuda(linear) => linear.workspace_size(&self.config, max_tokens),
        }
    }

    /// out = x * weight^T + bias; on CUDA, enqueued.
    ///
    /// # Safety
    /// The pointers of `args` are valid as the header states.
    pub unsafe fn forward(&self, args: &LinearArgs, stream: Stream) -> Result<()> {
        self.backend.check_prepared()?;
        let is_static = self.config.mode == Mode::Nvfp4 && self.config.scale_policy == ScalePolicy::Static;
        if is_static && self.input_scale == 0.0 {
            return Err(missing_input_scale("input_scale is"));
        }
        let (config, input_scale) = (&self.config, self.input_scale);
        // SAFETY: by contract.
        unsafe {
            match &self.backend {
                Backend::Cpu { weights: Some(weights), .. } => {
                    cpu::linear_forward(&cpu::LinearCall { config, weights, input_scale, args }, false).map(|_| ())
                }
                Backend::Cpu { weights: None, .. } => Ok(()),
                Backend::Cuda(linear) => linear.forward(config, input_scale, args, stream, false),
            }
        }
    }

    /// Compute in mode bf16 and remember the largest input.
    ///
    /// # Safety
    /// As [`Linear::forward`].
    pub unsafe fn calibrate(&mut self, args: &LinearArgs, stream: Stream) -> Result<()> {
        self.backend.check_prepared()?;
        let config = &LinearConfig { mode: Mode::Bf16, ..self.config.clone() };
        // SAFETY: by contract.
        unsafe {
            match &mut self.backend {
                Backend::Cpu { weights: Some(weights), amax } => {
                    let call = cpu::LinearCall { config, weights, input_scale: 0.0, args };
                    *amax = amax.max(cpu::linear_forward(&call, true)?);
                    Ok(())
                }
                Backend::Cpu { weights: None, .. } => Ok(()),
                Backend::Cuda(linear) => linear.forward(config, 0.0, args, stream, true),
            }
        }
    }

    /// The input scale that calibration asks for; forgets what it saw.
    pub fn calibrated_scale(&mut self) -> Result<f32> {
        let seen = match &mut self.backend {
            Backend::Cpu { amax, .. } => std::mem::replace(amax, -1.0),
            Backend::Cuda(linear) => linear.take_amax()?,
        };
        if seen < 0.0 {
            let text = "calibrated rows is 0; at least 1 is needed. Call nvfp4_moe_linear_calibrate with some tokens.";
            return Err(Error::NotPrepared(text.to_owned()));
        }
        Ok(input_scale_from_amax(seen))
    }

    /// Use this input scale.
    pub fn set_input_scale(&mut self, input_scale: f32) -> Result<()> {
        check_global_scale("input_scale", input_scale)?;
        self.input_scale = input_scale;
        Ok(())
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

impl Backend {
    fn check_prepared(&self) -> Result<()> {
        let prepared = match self {
            Backend::Cpu { weights, .. } => weights.is_some(),
            Backend::Cuda(linear) => linear.is_prepared(),
        };
        let text = "the linear has 0 prepared weights; forward needs 1. Call nvfp4_moe_linear_prepare first.";
        if prepared { Ok(()) } else { Err(Error::NotPrepared(text.to_owned())) }
    }
}
