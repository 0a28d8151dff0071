// SPDX-License-Identifier: Apache-2.0
//! Layers and linears on the CPU for Rust programs: weights are owned, inputs and outputs are slices, lengths are checked.
//!
//! ```
//! use nvfp4_moe::config::{LayerConfig, Mode};
//! use nvfp4_moe::host::{HostLayer, LayerTensors, bf16};
//!
//! // Two experts of 16 x 16, every weight 0.5: e2m1 code 1 twice in a byte, block scales of 1 (e4m3 byte 0x38).
//! let config = LayerConfig::on_cpu(Mode::Bf16, 16, 16, 2, 1);
//! let mut weights = LayerTensors::zeros(config.shape());
//! weights.w13.fill(0x11);
//! weights.w13_block_scale.fill(0x38);
//! weights.w13_global_scale.fill(1.0);
//! weights.w2.fill(0x11);
//! weights.w2_block_scale.fill(0x38);
//! weights.w2_global_scale.copy_from_slice(&[1.0, 2.0]);
//! let layer = HostLayer::new(config, weights)?;
//!
//! let x = [bf16::from_f32(0.25); 16]; // one token: gate = up = 16 * 0.25 * 0.5 = 2
//! let mut out = [bf16::ZERO; 16];
//! layer.forward(&x, &[1], Some(&[1.0]), &mut out)?;
//! let h = 2.0 / (1.0 + (-2f32).exp()) * 2.0;
//! assert!((out[0].to_f32() / (16.0 * h) - 1.0).abs() < 0.01);
//!
//! // Wrong lengths are errors with both numbers.
//! let error = layer.forward(&x, &[0, 1], None, &mut out).unwrap_err();
//! assert!(error.to_string().starts_with("topk_ids.len() is 2; it must be num_tokens * top_k, which is 1."));
//! # Ok::<(), nvfp4_moe::error::Error>(())
//! ```

use crate::call::{
    InputScales, LayerArgs, LayerWeights, LinearArgs, LinearWeights, SharedOutput, Storage, Tensor, TopkIds, Workspace,
};
use crate::checkpoint::{self, LayerBuffers};
use crate::config::{Device, LayerConfig, LinearConfig, Mode};
use crate::error::{Error, Result};
use crate::format::{BLOCK_SIZE, WeightError};
use crate::layer::Layer;
use crate::linear::Linear;
use crate::shape::{MoeShape, RowOrder};
use std::ptr::{null, null_mut};

pub use half::bf16;

const SHARED_WORKSPACE: Workspace = Workspace { pointer: null_mut(), size: 0 };
const NO_STORAGE: Storage = Storage { pointer: null_mut(), size: 0 }; // the CPU uses weights in place

/// As files have them, low byte first.
fn bf16_bits(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// The weights of a layer, stacked over its experts, as a checkpoint has them. [`MoeShape`] gives the lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerTensors {
    /// Of an expert's w13.
    pub row_order: RowOrder,
    /// e2m1x2 `[L, 2I, H/2]`
    pub w13: Vec<u8>,
    /// e4m3 `[L, 2I, H/16]`
    pub w13_block_scale: Vec<u8>,
    /// `[L, 2]`
    pub w13_global_scale: Vec<f32>,
    /// e2m1x2 `[L, H, I/2]`
    pub w2: Vec<u8>,
    /// e4m3 `[L, H, I/16]`
    pub w2_block_scale: Vec<u8>,
    /// `[L]`
    pub w2_global_scale: Vec<f32>,
    /// bf16 bits `[L, 2I]`, if there are biases.
    pub w13_bias: Option<Vec<u16>>,
    /// bf16 bits `[L, H]`, if there are biases.
    pub w2_bias: Option<Vec<u16>>,
    /// What the checkpoint says of the inputs; 0: nothing.
    pub input_scales: InputScales,
}

impl LayerTensors {
    /// Zeros everywhere, to be filled. (A global scale of 0 is refused later.)
    pub fn zeros(shape: MoeShape) -> Self {
        LayerTensors {
            row_order: if shape.projections == 1 { RowOrder::Plain } else { RowOrder::GateFirst },
            w13: vec![0; shape.w13()],
            w13_block_scale: vec![0; shape.w13_block_scale()],
            w13_global_scale: vec![0.0; shape.w13_global_scale()],
            w2: vec![0; shape.w2()],
            w2_block_scale: vec![0; shape.w2_block_scale()],
            w2_global_scale: vec![0.0; shape.w2_global_scale()],
            w13_bias: None,
            w2_bias: None,
            input_scales: InputScales::default(),
        }
    }

    /// `shape.experts` experts of a checkpoint's layer, from `first_expert` on.
    pub fn read(layer: &checkpoint::Layer<'_>, shape: MoeShape, first_expert: usize) -> Result<Self> {
        let mut tensors = Self::zeros(shape);
        let lens = layer.buffer_lens(shape.experts);
        let (mut w13_bias, mut w2_bias) = (vec![0; lens.w13_bias], vec![0; lens.w2_bias]);
        let buffers = LayerBuffers { w13_bias: &mut w13_bias, w2_bias: &mut w2_bias, ..tensors.buffers() };
        layer.read(first_expert, buffers)?;
        if layer.has_bias() {
            (tensors.w13_bias, tensors.w2_bias) = (Some(bf16_bits(&w13_bias)), Some(bf16_bits(&w2_bias)));
        }
        tensors.input_scales = InputScales { w13: layer.w13_input_scale.max, w2: layer.w2_input_scale.max };
        Ok(tensors)
    }

    fn buffers(&mut self) -> LayerBuffers<'_> {
        LayerBuffers {
            w13: &mut self.w13,
            w13_block_scale: &mut self.w13_block_scale,
            w13_global_scale: &mut self.w13_global_scale,
            w2: &mut self.w2,
            w2_block_scale: &mut self.w2_block_scale,
            w2_global_scale: &mut self.w2_global_scale,
            w13_bias: &mut [],
            w2_bias: &mut [],
        }
    }

    fn check(&self, shape: MoeShape) -> Result<()> {
        check_len("w13.len()", self.w13.len(), "L * 2I * H/2", shape.w13())?;
        check_len("w13_block_scale.len()", self.w13_block_scale.len(), "L * 2I * H/16", shape.w13_block_scale())?;
        check_len("w13_global_scale.len()", self.w13_global_scale.len(), "L * 2", shape.w13_global_scale())?;
        check_len("w2.len()", self.w2.len(), "L * H * I/2", shape.w2())?;
        check_len("w2_block_scale.len()", self.w2_block_scale.len(), "L * H * I/16", shape.w2_block_scale())?;
        check_len("w2_global_scale.len()", self.w2_global_scale.len(), "L", shape.w2_global_scale())?;
        let biases = [
            ("w13_bias.len()", &self.w13_bias, "L * 2I", shape.w13_bias()),
            ("w2_bias.len()", &self.w2_bias, "L * H", shape.w2_bias()),
        ];
        biases.into_iter().try_for_each(|(name, bias, sizes, wanted)| {
            bias.as_ref().map_or(Ok(()), |bias| check_len(name, bias.len(), sizes, wanted))
        })
    }

    fn as_weights(&self) -> LayerWeights {
        LayerWeights {
            row_order: self.row_order,
            w13: tensor(&self.w13),
            w13_block_scale: tensor(&self.w13_block_scale),
            w13_global_scale: tensor(&self.w13_global_scale),
            w2: tensor(&self.w2),
            w2_block_scale: tensor(&self.w2_block_scale),
            w2_global_scale: tensor(&self.w2_global_scale),
            w13_bias: self.w13_bias.as_deref().map(tensor),
            w2_bias: self.w2_bias.as_deref().map(tensor),
            input_scales: self.input_scales,
        }
    }
}

/// A layer on the CPU that owns its weights.
#[derive(Debug)]
pub struct HostLayer {
    layer: Layer, // reads `_tensors` in place, and is dropped before them
    _tensors: LayerTensors,
}

impl HostLayer {
    /// A layer of these weights. Refused: another device than the CPU, wrong lengths, scales that cannot be.
    pub fn new(config: LayerConfig, tensors: LayerTensors) -> Result<Self> {
        check_device(config.device)?;
        let shape = config.shape();
        let mut layer = Layer::new(config)?;
        tensors.check(shape)?;
        // SAFETY: the vectors have the lengths of the layer's shape, and live on the heap until the layer is gone; nobody
        // can write them, because they are private.
        unsafe { layer.prepare(tensors.as_weights(), NO_STORAGE, null_mut()) }?;
        Ok(HostLayer { layer, _tensors: tensors })
    }

    /// A checkpoint's layer: all its experts, and its activation.
    pub fn from_checkpoint(layer: &checkpoint::Layer<'_>, mode: Mode, top_k: usize) -> Result<Self> {
        let checkpoint::Dims { num_experts, hidden_size, intermediate_size, .. } = layer.dims;
        let config = LayerConfig {
            activation: layer.activation()?,
            has_bias: layer.has_bias(),
            ..LayerConfig::on_cpu(mode, hidden_size, intermediate_size, num_experts, top_k)
        };
        let tensors = LayerTensors::read(layer, config.shape(), 0)?;
        Self::new(config, tensors)
    }

    /// What it was created as.
    pub fn config(&self) -> &LayerConfig {
        self.layer.config()
    }

    /// What rounding to e4m3 did to its weights, which takes [`LayerConfig::fp8_max_error`].
    pub fn weight_error(&self) -> Result<WeightError> {
        self.layer.weight_error()
    }

    /// `out[t] = sum over k of topk_weights[t, k] * expert(topk_ids[t, k])(x[t])`.
    ///
    /// x and out are `[T, H]`; ids are `[T, k]`, and any value may appear: what is no expert adds nothing. Weights are
    /// `[T, k]`, or none: 1. Many threads may call it at once.
    pub fn forward(&self, x: &[bf16], topk_ids: &[i32], topk_weights: Option<&[f32]>, out: &mut [bf16]) -> Result<()> {
        self.run(x, topk_ids, topk_weights, None, out)
    }

    /// As [`HostLayer::forward`], with sums that begin with `shared_output`, `[T, H]`, as shared experts made it.
    pub fn forward_with_shared(
        &self,
        x: &[bf16],
        topk_ids: &[i32],
        topk_weights: Option<&[f32]>,
        shared_output: &[bf16],
        out: &mut [bf16],
    ) -> Result<()> {
        self.run(x, topk_ids, topk_weights, Some(shared_output), out)
    }

    fn run(
        &self,
        x: &[bf16],
        topk_ids: &[i32],
        topk_weights: Option<&[f32]>,
        shared_output: Option<&[bf16]>,
        out: &mut [bf16],
    ) -> Result<()> {
        let (hidden, top_k) = (self.config().hidden_size, self.config().top_k);
        let num_tokens = rows("x", x, hidden, "hidden_size")?;
        check_len("out.len()", out.len(), "x.len()", x.len())?;
        let num_slots = num_tokens.saturating_mul(top_k);
        check_len("topk_ids.len()", topk_ids.len(), "num_tokens * top_k", num_slots)?;
        if let Some(weights) = topk_weights {
            check_len("topk_weights.len()", weights.len(), "num_tokens * top_k", num_slots)?;
        }
        if let Some(shared) = shared_output {
            check_len("shared_output.len()", shared.len(), "x.len()", x.len())?;
        }
        if num_tokens == 0 {
            return Ok(());
        }
        let shared =
            |shared: &[bf16]| SharedOutput { rows: shared.as_ptr().cast(), row_stride: hidden, ..SharedOutput::NONE };
        let args = LayerArgs {
            num_tokens,
            x: x.as_ptr().cast(),
            x_row_stride: hidden,
            topk_ids: TopkIds::I32(topk_ids.as_ptr()),
            topk_ids_row_stride: top_k,
            topk_weights: topk_weights.map_or(null(), <[f32]>::as_ptr),
            topk_weights_row_stride: top_k,
            expert_map: null(),
            out: out.as_mut_ptr().cast(),
            out_row_stride: hidden,
            workspace: SHARED_WORKSPACE,
            shared: shared_output.map_or(SharedOutput::NONE, shared),
        };
        // SAFETY: the slices have the lengths that `args` states, live until the call returns, and `out` is exclusive.
        unsafe { self.layer.forward(&args, null_mut()) }
    }
}

/// The weight of a linear, as a checkpoint has it.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearTensors {
    /// e2m1x2 `[out_features, in_features/2]`
    pub weight: Vec<u8>,
    /// e4m3 `[out_features, in_features/16]`
    pub block_scale: Vec<u8>,
    /// `[num_parts]`
    pub global_scale: Vec<f32>,
    /// Rows of each part; together out_features.
    pub part_rows: Vec<usize>,
    /// bf16 `[out_features]`
    pub bias: Option<Vec<bf16>>,
    /// Decodes the input; 0: none.
    pub input_scale: f32,
}

impl LinearTensors {
    fn check(&self, config: &LinearConfig) -> Result<()> {
        let (rows, cols) = (config.out_features, config.in_features);
        check_len("weight.len()", self.weight.len(), "out_features * in_features/2", rows.saturating_mul(cols / 2))?;
        let blocks = rows.saturating_mul(cols / BLOCK_SIZE);
        check_len("block_scale.len()", self.block_scale.len(), "out_features * in_features/16", blocks)?;
        check_len("global_scale.len()", self.global_scale.len(), "num_parts", config.num_parts)?;
        check_len("part_rows.len()", self.part_rows.len(), "num_parts", config.num_parts)?;
        let sum = self.part_rows.iter().fold(0usize, |sum, rows| sum.saturating_add(*rows));
        check_len("the sum of part_rows", sum, "out_features", rows)?;
        self.bias.as_ref().map_or(Ok(()), |bias| check_len("bias.len()", bias.len(), "out_features", rows))
    }

    fn as_weights(&self) -> LinearWeights {
        let ends = self.part_rows.iter().scan(0, |end, rows| {
            *end += rows;
            Some(*end)
        });
        LinearWeights {
            weight: tensor(&self.weight),
            block_scale: tensor(&self.block_scale),
            global_scale: tensor(&self.global_scale),
            part_ends: ends.collect(),
            bias: self.bias.as_ref().map(|bias| Tensor { pointer: bias.as_ptr().cast(), len: bias.len() }),
            input_scale: self.input_scale,
        }
    }
}

/// A linear on the CPU that owns its weight.
#[derive(Debug)]
pub struct HostLinear {
    linear: Linear, // reads `_tensors` in place, and is dropped before them
    _tensors: LinearTensors,
}

impl HostLinear {
    /// A linear of this weight. Refused: another device than the CPU, wrong lengths, scales that cannot be.
    pub fn new(config: LinearConfig, tensors: LinearTensors) -> Result<Self> {
        check_device(config.device)?;
        let mut linear = Linear::new(config)?;
        tensors.check(linear.config())?;
        // SAFETY: as in HostLayer::new.
        unsafe { linear.prepare(tensors.as_weights(), NO_STORAGE, null_mut()) }?;
        Ok(HostLinear { linear, _tensors: tensors })
    }

    /// What it was created as.
    pub fn config(&self) -> &LinearConfig {
        self.linear.config()
    }

    /// `out = x * weight^T + bias`: x is `[T, in_features]`, out `[T, out_features]`. Many threads may call it at once.
    pub fn forward(&self, x: &[bf16], out: &mut [bf16]) -> Result<()> {
        let (cols, features) = (self.config().in_features, self.config().out_features);
        let num_tokens = rows("x", x, cols, "in_features")?;
        let wanted = num_tokens.saturating_mul(features);
        check_len("out.len()", out.len(), "num_tokens * out_features", wanted)?;
        if num_tokens == 0 {
            return Ok(());
        }
        let args = LinearArgs {
            num_tokens,
            x: x.as_ptr().cast(),
            x_row_stride: cols,
            out: out.as_mut_ptr().cast(),
            out_row_stride: features,
            workspace: SHARED_WORKSPACE,
        };
        // SAFETY: the slices have the lengths that `args` states, live until the call returns, and `out` is exclusive.
        unsafe { self.linear.forward(&args, null_mut()) }
    }
}

fn tensor<T>(values: &[T]) -> Tensor<T> {
    Tensor { pointer: values.as_ptr(), len: values.len() }
}

fn check_device(device: Device) -> Result<()> {
    match device {
        Device::Cpu => Ok(()),
        Device::Cuda(ordinal, _) => {
            let remedy = "For CUDA use `nvfp4_moe::layer` and `nvfp4_moe::linear`, which take device pointers.";
            Err(Error::argument("device", format_args!("CUDA device {ordinal}"), "it must be the CPU", remedy))
        }
    }
}

/// How many rows a slice is, all of them whole.
fn rows(name: &str, values: &[bf16], row: usize, row_name: &str) -> Result<usize> {
    if !values.len().is_multiple_of(row) {
        let rule = format!("it must be a multiple of {row_name}, which is {row}");
        return Err(Error::argument(format_args!("{name}.len()"), values.len(), rule, "Pass whole rows."));
    }
    Ok(values.len() / row)
}

fn check_len(name: &str, len: usize, rule: &str, wanted: usize) -> Result<()> {
    if len == wanted {
        return Ok(());
    }
    Err(Error::argument(
        name,
        len,
        format_args!("it must be {rule}, which is {wanted}"),
        "Pass what the shape asks for.",
    ))
}
