//! The MoE layer: a configuration, weights, and the state around them. Backends compute.

use crate::config::{Device, Kernels, LayerConfig, Mode, ScalePolicy};
use crate::cpu;
use crate::cuda::{CudaLayer, Stream};
use crate::error::{Error, Result};
use crate::format::{ScaleSpan, check_global_scale, check_scale_spans, e4m3_decode, input_scale_from_amax};

/// A tensor that the caller keeps alive, on the layer's device. A slice only for the length of a call, because between
/// calls its owner may move experts (EPLB).
#[derive(Debug)]
pub struct Tensor<T> {
    /// First element.
    pub pointer: *const T,
    /// Number of elements.
    pub len: usize,
}

impl<T> Clone for Tensor<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Tensor<T> {}

// SAFETY: a Tensor is read only, and only under Layer's contracts.
unsafe impl<T: Sync> Send for Tensor<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Tensor<T> {}

impl<T> Tensor<T> {
    /// The elements.
    ///
    /// # Safety
    /// The tensor lives in host memory, and nobody writes it during `'a`.
    pub unsafe fn slice<'a>(self) -> &'a [T] {
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }
}

/// The weights of a layer; fields as in `nvfp4_moe_layer_weights`.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct LayerWeights {
    pub up_first: bool,
    pub w13: Tensor<u8>,
    pub w13_block_scale: Tensor<u8>,
    pub w13_global_scale: Tensor<f32>,
    pub w2: Tensor<u8>,
    pub w2_block_scale: Tensor<u8>,
    pub w2_global_scale: Tensor<f32>,
    pub input_scales: InputScales,
}

/// Decoding global scales of the inputs of GEMM1 and GEMM2; 0 = none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)]
pub struct InputScales {
    pub w13: f32,
    pub w2: f32,
}

impl InputScales {
    fn check(self) -> Result<Self> {
        check_global_scale("w13_input_scale", self.w13)?;
        check_global_scale("w2_input_scale", self.w2)?;
        Ok(self)
    }
}

/// Largest finite inputs that calibration met; negative while there was none.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub struct Calibration {
    pub x_amax: f32,
    pub h_amax: f32,
}

impl Default for Calibration {
    fn default() -> Self {
        Calibration { x_amax: -1.0, h_amax: -1.0 }
    }
}

/// Arguments of a forward; fields as in `nvfp4_moe_layer_args`, checked, strides filled in.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct LayerArgs {
    pub num_tokens: usize,
    pub x: *const u16,
    pub x_row_stride: usize,
    pub topk_ids: *const u8,
    pub topk_ids_row_stride: usize,
    pub topk_ids_are_i64: bool,
    pub topk_weights: *const f32,
    pub topk_weights_row_stride: usize,
    pub expert_map: *const i32,
    pub out: *mut u16,
    pub out_row_stride: usize,
    pub workspace: *mut u8,
    pub workspace_size: u64,
}

// SAFETY: tasks of a call read through these pointers, and write `out` and `workspace` in parts of one task each.
unsafe impl Send for LayerArgs {}
// SAFETY: as above.
unsafe impl Sync for LayerArgs {}

/// Device memory that prepare fills; on the CPU nothing does.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Storage {
    pub pointer: *mut u8,
    pub size: u64,
}

/// One MoE layer.
#[derive(Debug)]
pub struct Layer {
    config: LayerConfig,
    input_scales: InputScales,
    backend: Backend,
}

#[derive(Debug)]
enum Backend {
    Cpu { weights: Option<LayerWeights>, calibration: Calibration },
    Cuda(CudaLayer),
}

impl Layer {
    /// A layer without weights.
    pub fn new(config: LayerConfig) -> Result<Self> {
        config.validate()?;
        check_device(config.device, config.mode)?;
        let backend = match config.device {
            Device::Cpu => Backend::Cpu { weights: None, calibration: Calibration::default() },
            Device::Cuda(ordinal, kernels) => Backend::Cuda(CudaLayer::new(ordinal, kernels, &config)?),
        };
        Ok(Layer { config, input_scales: InputScales::default(), backend })
    }

    /// What it was created as.
    pub fn config(&self) -> &LayerConfig {
        &self.config
    }

    /// Bytes of storage for prepared weights; 0 on the CPU, which uses weights in place.
    pub fn storage_size(&self) -> u64 {
        match &self.backend {
            Backend::Cpu { .. } => 0,
            Backend::Cuda(layer) => layer.storage_size(&self.config),
        }
    }

    /// Take the weights.
    ///
    /// # Safety
    /// Each tensor is valid on the layer's device and has the length that the header states. On the CPU the tensors, on
    /// CUDA the storage must outlive the layer.
    pub unsafe fn prepare(&mut self, weights: LayerWeights, storage: Storage, stream: Stream) -> Result<()> {
        if weights.input_scales != InputScales::default() {
            weights.input_scales.check()?;
        }
        match &mut self.backend {
            Backend::Cpu { weights: own, .. } => {
                // SAFETY: CPU tensors are host memory, by contract.
                unsafe {
                    check_block_scales("w13_block_scale", weights.w13_block_scale.slice())?;
                    check_block_scales("w2_block_scale", weights.w2_block_scale.slice())?;
                    check_weight_global_scales("w13_global_scale", weights.w13_global_scale.slice())?;
                    check_weight_global_scales("w2_global_scale", weights.w2_global_scale.slice())?;
                    if self.config.mode == Mode::Fp8 {
                        check_exact_in_e4m3(&weights, self.config.num_local_experts)?;
                    }
                }
                *own = Some(weights);
            }
            // SAFETY: by contract.
            Backend::Cuda(layer) => unsafe { layer.prepare(&self.config, &weights, storage, stream) }?,
        }
        self.input_scales = weights.input_scales;
        Ok(())
    }

    /// Workspace bytes for up to `max_tokens` tokens.
    pub fn workspace_size(&self, max_tokens: usize) -> Result<u64> {
        check_slots("max_tokens", max_tokens, self.config.top_k)?;
        Ok(match &self.backend {
            Backend::Cpu { .. } => cpu::LayerPlan::new(&self.config, cpu::isa::best(), max_tokens).workspace_size,
            Backend::Cuda(layer) => layer.workspace_size(&self.config, max_tokens),
        })
    }

    /// Compute the layer; on CUDA, enqueue it.
    ///
    /// # Safety
    /// The pointers of `args` are valid as the header states.
    pub unsafe fn forward(&self, args: &LayerArgs, stream: Stream) -> Result<()> {
        check_slots("num_tokens", args.num_tokens, self.config.top_k)?;
        let is_static = self.config.mode == Mode::Nvfp4 && self.config.scale_policy == ScalePolicy::Static;
        self.backend.check_prepared()?;
        if is_static && self.input_scales == InputScales::default() {
            return Err(missing_input_scale("w13_input_scale and w2_input_scale are"));
        }
        let (config, scales) = (&self.config, self.input_scales);
        // SAFETY: by contract.
        unsafe {
            match &self.backend {
                Backend::Cpu { weights: Some(weights), .. } => cpu::forward(config, weights, scales, args, None),
                Backend::Cpu { weights: None, .. } => self.backend.check_prepared(),
                Backend::Cuda(layer) => layer.forward(config, scales, args, stream),
            }
        }
    }

    /// Compute the layer in mode bf16 and remember the largest inputs of both GEMMs.
    ///
    /// # Safety
    /// As [`Layer::forward`].
    pub unsafe fn calibrate(&mut self, args: &LayerArgs, stream: Stream) -> Result<()> {
        check_slots("num_tokens", args.num_tokens, self.config.top_k)?;
        self.backend.check_prepared()?;
        if self.config.mode == Mode::Fp8 {
            let text = "mode is 3 (fp8), whose weights are not kept for bf16, and whose scales are each row's own; calibrate \
                        needs mode 1 (bf16) or 2 (nvfp4). Calibrate a layer of mode nvfp4.";
            return Err(Error::Unsupported(text.to_owned()));
        }
        let config = LayerConfig { mode: Mode::Bf16, ..self.config.clone() };
        // SAFETY: by contract.
        unsafe {
            match &mut self.backend {
                Backend::Cpu { weights: Some(weights), calibration } => {
                    cpu::forward(&config, weights, self.input_scales, args, Some(calibration))
                }
                Backend::Cpu { weights: None, .. } => Ok(()),
                Backend::Cuda(layer) => layer.calibrate(&config, args, stream),
            }
        }
    }

    /// The input scales that calibration asks for; forgets what it saw.
    pub fn calibrated_scales(&mut self) -> Result<InputScales> {
        let Calibration { x_amax, h_amax } = match &mut self.backend {
            Backend::Cpu { calibration, .. } => std::mem::take(calibration),
            Backend::Cuda(layer) => layer.take_calibration()?,
        };
        if x_amax < 0.0 {
            let text = "calibrated rows is 0; at least 1 row must have been routed here. \
                        Call nvfp4_moe_layer_calibrate with tokens that use this rank's experts.";
            return Err(Error::NotPrepared(text.to_owned()));
        }
        Ok(InputScales { w13: input_scale_from_amax(x_amax), w2: input_scale_from_amax(h_amax) })
    }

    /// Use these input scales.
    pub fn set_input_scales(&mut self, scales: InputScales) -> Result<()> {
        self.input_scales = scales.check()?;
        Ok(())
    }
}

impl Backend {
    fn check_prepared(&self) -> Result<()> {
        let prepared = match self {
            Backend::Cpu { weights, .. } => weights.is_some(),
            Backend::Cuda(layer) => layer.is_prepared(),
        };
        let text = "the layer has 0 prepared weights; forward needs them. Call nvfp4_moe_layer_prepare first.";
        if prepared { Ok(()) } else { Err(Error::NotPrepared(text.to_owned())) }
    }
}

/// Is there a backend for this device and mode?
fn check_device(device: Device, mode: Mode) -> Result<()> {
    match (device, mode) {
        (Device::Cuda(ordinal, Kernels::Portable), Mode::Fp8) => Err(Error::Unsupported(format!(
            "mode is 3 (fp8) for the portable kernels of CUDA device {ordinal}; mode fp8 runs on the CPU and on Hopper's \
             own kernels. Use bf16, which is exact for the weights."
        ))),
        _ => Ok(()),
    }
}

/// What a static policy without scales fails with.
pub fn missing_input_scale(names: &str) -> Error {
    Error::NotPrepared(format!(
        "{names} 0; mode nvfp4 with static scales needs finite values of at least 2^-110. \
         Calibrate and set them, or use dynamic scales or mode bf16."
    ))
}

/// Slots are numbered in i32.
fn check_slots(name: &str, tokens: usize, top_k: usize) -> Result<()> {
    let most = i32::MAX as usize / top_k;
    if tokens > most {
        let rule = format!("with top_k {top_k} it must be at most {most}");
        return Err(Error::argument(name, tokens, rule, "Split the batch."));
    }
    Ok(())
}

/// Mode fp8 refuses weights that are not exact in e4m3, part by part.
///
/// # Safety
/// The block scales live in host memory.
unsafe fn check_exact_in_e4m3(weights: &LayerWeights, num_local_experts: usize) -> Result<()> {
    // SAFETY: by contract.
    let (w13, w2) = unsafe { (weights.w13_block_scale.slice(), weights.w2_block_scale.slice()) };
    let down_len = w2.len() / num_local_experts;
    let experts = w13.chunks(2 * down_len).zip(w2.chunks(down_len)).map(|(w13, w2)| {
        let (first, second) = w13.split_at(down_len);
        [first, second, w2].map(ScaleSpan::of)
    });
    check_scale_spans(experts, weights.up_first)
}

/// Weights with a NaN or negative block scale are broken files, not data.
pub fn check_block_scales(name: &str, block_scales: &[u8]) -> Result<()> {
    // All bytes up to 0x7E are finite and not negative; the maximum tells in one vectorised pass.
    if block_scales.iter().fold(0, |max: u8, b| max.max(*b)) < 0x7f {
        return Ok(());
    }
    let (index, bits) = block_scales.iter().enumerate().find(|(_, b)| **b >= 0x7f).map_or((0, 0), |(i, b)| (i, *b));
    let value = format!("{} (byte {bits:#04x})", e4m3_decode(bits));
    let rule = "block scales must be finite and not negative (bytes 0x00 to 0x7e)";
    Err(Error::argument(format!("{name}[{index}]"), value, rule, "Export the checkpoint again."))
}

/// A weight's global scale may be 0 only if the weight is: refuse it, as it is the mark of a scale never written.
pub fn check_weight_global_scales(name: &str, scales: &[f32]) -> Result<()> {
    match scales.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
        None => Ok(()),
        Some(i) => {
            let rule = "global scales must be finite and positive, in decode direction";
            Err(Error::argument(format!("{name}[{i}]"), scales[i], rule, "Export the checkpoint again."))
        }
    }
}
