// SPDX-License-Identifier: Apache-2.0
//! The layers and linears of the self-test: small, ragged in every direction, and enough tiles that blocks take several.

use super::data::{Codes, Matrix, biases, hash, inputs};
use crate::activation::{Activation, ActivationKind};
use crate::call::{InputScales, LayerArgs, LayerWeights, LinearWeights, SharedOutput, Tensor, TopkIds, Workspace};
use crate::config::{Device, KernelChoice, LayerConfig, LinearConfig, Mode, ScalePolicy};
use crate::error::Result;
use crate::shape::RowOrder;

/// Of every case; 128 rows go to one expert, one to another, none to a third.
pub const TOKENS: usize = 203;
/// No multiples of 32, so that every tile of weights, of columns and of scales has an end.
const HIDDEN: usize = 528;
const INTER: usize = 272;
const LOCAL: usize = 4;
const TOP_K: usize = 2;
/// Of a linear: at 128 weight rows and 128 token rows a tile more tiles than any GPU has multiprocessors.
const IN: usize = 272;
const OUT: usize = 12_304;

/// Where tensors are put: a device, or, for tests, where they are.
pub trait Memory {
    /// It stays there as long as the memory and the values do.
    fn put<T: Copy>(&mut self, values: &[T]) -> Result<Tensor<T>>;
}

/// A layer and its inputs.
#[derive(Debug)]
pub struct LayerCase {
    /// In words.
    pub name: &'static str,
    /// In mode bf16, of the portable kernels.
    pub config: LayerConfig,
    /// Gate and up.
    pub w13: Matrix,
    /// Down.
    pub w2: Matrix,
    /// Of all of w13; w2's are 1.
    pub w13_global_scale: f32,
    /// bf16 `[TOKENS, HIDDEN]`
    pub x: Vec<u16>,
}

/// Every kind of layer.
pub fn layers() -> Result<[LayerCase; 3]> {
    let squares = Activation::new(ActivationKind::Relu2, 0.0, 0.0, 0.0)?;
    Ok([
        // GEMM1 and the activation: sums of a few units, where SwiGLU bends; GEMM2 adds nothing.
        LayerCase::new("SwiGLU", Activation::PLAIN_SWIGLU, [Codes::Any, Codes::Any, Codes::One], 1.0 / 128.0),
        // GEMM2: a gate far above its limit, where SwiGLU is 32 * up, and up is an integer of a few bits.
        LayerCase::new(
            "SwiGLU of 32",
            Activation::swiglu(32.0, 0.0, 0.0)?,
            [Codes::Positive, Codes::Any, Codes::Any],
            1.0,
        ),
        // Experts without a gate, with biases.
        LayerCase::new("relu2 with biases", squares, [Codes::Any, Codes::Any, Codes::One], 1.0 / 128.0),
    ])
}

impl LayerCase {
    /// `codes` of gate, up and down.
    fn new(name: &'static str, activation: Activation, codes: [Codes; 3], w13_global_scale: f32) -> Self {
        let (mut w13, mut w2) = (Matrix::default(), Matrix::default());
        for _ in 0..LOCAL {
            for kind in &codes[2 - activation.projections()..2] {
                w13.extend(1, INTER, HIDDEN, *kind);
            }
            w2.extend(4, HIDDEN, INTER, codes[2]);
        }
        let config = LayerConfig {
            device: Device::Cuda(0, KernelChoice::Portable),
            num_experts: LOCAL + 2,
            num_local_experts: LOCAL,
            first_local_expert: 1,
            activation,
            has_bias: activation.projections() == 1,
            ..LayerConfig::on_cpu(Mode::Bf16, HIDDEN, INTER, LOCAL + 2, TOP_K)
        };
        let x = inputs(7, TOKENS, HIDDEN, codes[0] == Codes::Positive);
        LayerCase { name, config, w13, w2, w13_global_scale, x }
    }

    /// The same in this mode, by these kernels.
    pub fn config(&self, device: Device, mode: Mode, scale_policy: ScalePolicy) -> LayerConfig {
        let has_bias = self.config.has_bias && has_biases(scale_policy);
        LayerConfig { device, mode, scale_policy, has_bias, ..self.config.clone() }
    }

    /// Its weights, put there.
    pub fn weights(&self, memory: &mut impl Memory, scale_policy: ScalePolicy) -> Result<LayerWeights> {
        let (shape, has_bias) = (self.config.shape(), self.config.has_bias && has_biases(scale_policy));
        let mut bias = |seed, rows| has_bias.then(|| memory.put(&biases(seed, rows))).transpose();
        let (w13_bias, w2_bias) = (bias(10, shape.w13_bias())?, bias(11, shape.w2_bias())?);
        Ok(LayerWeights {
            row_order: if shape.projections == 1 { RowOrder::Plain } else { RowOrder::GateFirst },
            w13: memory.put(&self.w13.codes)?,
            w13_block_scale: memory.put(&self.w13.block_scale)?,
            w13_global_scale: memory.put(&vec![self.w13_global_scale; shape.w13_global_scale()])?,
            w2: memory.put(&self.w2.codes)?,
            w2_block_scale: memory.put(&self.w2.block_scale)?,
            w2_global_scale: memory.put(&vec![1.0; shape.w2_global_scale()])?,
            w13_bias,
            w2_bias,
            input_scales: InputScales { w13: 1.0, w2: 1.0 },
        })
    }

    /// A call, but for its output and its workspace.
    pub fn args(&self, memory: &mut impl Memory) -> Result<LayerArgs> {
        Ok(LayerArgs {
            num_tokens: TOKENS,
            x: memory.put(&self.x)?.pointer,
            x_row_stride: HIDDEN,
            topk_ids: TopkIds::I32(memory.put(&ids())?.pointer),
            topk_ids_row_stride: TOP_K,
            topk_weights: std::ptr::null(),
            topk_weights_row_stride: 0,
            expert_map: std::ptr::null(),
            out: std::ptr::null_mut(),
            out_row_stride: HIDDEN,
            workspace: Workspace { pointer: std::ptr::null_mut(), size: 0 },
            shared: SharedOutput::NONE,
        })
    }
}

/// With a dynamic scale there are none. It may be any number, and a product with it rounds once, because all other factors
/// are powers of two. A bias would be added before that or after, as each family does it.
fn has_biases(scale_policy: ScalePolicy) -> bool {
    scale_policy == ScalePolicy::Static
}

/// `[TOKENS, TOP_K]`: experts 1, 2 and 3 have 128 rows, one and 89; 4 has none; 0, 5 and -1 are not here.
pub fn ids() -> Vec<i32> {
    let first = |token: usize| match token % 8 {
        0..5 => 1,
        5 => 5,
        6 => 3,
        _ => -1,
    };
    let second = |token: usize| match (token, hash(12, token) % 3) {
        (100, _) => 2,
        (_, 0) => 3,
        _ => 0,
    };
    (0..TOKENS).flat_map(|token| [first(token), second(token)]).collect()
}

/// A linear with a bias, and its input.
#[derive(Debug)]
pub struct LinearCase {
    /// In mode bf16, of the portable kernels.
    pub config: LinearConfig,
    /// `[OUT, IN]`
    pub weight: Matrix,
    /// bf16 `[TOKENS, IN]`
    pub x: Vec<u16>,
}

impl LinearCase {
    /// The only one.
    pub fn new() -> Self {
        let config = LinearConfig {
            device: Device::Cuda(0, KernelChoice::Portable),
            mode: Mode::Bf16,
            scale_policy: ScalePolicy::Static,
            in_features: IN,
            out_features: OUT,
            num_parts: 1,
            tile_rows: None,
        };
        let mut weight = Matrix::default();
        weight.extend(20, OUT, IN, Codes::Any);
        LinearCase { config, weight, x: inputs(24, TOKENS, IN, false) }
    }

    /// The same in this mode, by these kernels.
    pub fn config(&self, device: Device, mode: Mode, scale_policy: ScalePolicy) -> LinearConfig {
        LinearConfig { device, mode, scale_policy, ..self.config.clone() }
    }

    /// Its weight, put there.
    pub fn weights(&self, memory: &mut impl Memory, scale_policy: ScalePolicy) -> Result<LinearWeights> {
        let bias = has_biases(scale_policy).then(|| memory.put(&biases(26, OUT))).transpose()?;
        Ok(LinearWeights {
            weight: memory.put(&self.weight.codes)?,
            block_scale: memory.put(&self.weight.block_scale)?,
            global_scale: memory.put(&[1.0])?,
            part_ends: vec![OUT],
            bias,
            input_scale: 1.0,
        })
    }
}
