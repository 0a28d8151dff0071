// SPDX-License-Identifier: Apache-2.0
//! What a layer or linear is asked to be, checked once.

use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::format::{BLOCK_SIZE, MX_BLOCK_SIZE};
use crate::shape::MoeShape;

/// Where pointers live and work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Device {
    /// This process.
    Cpu,
    /// A CUDA device by its ordinal, and whose kernels run there.
    Cuda(i32, KernelChoice),
}

/// Whose kernels a CUDA device shall run; `cuda/family.rs` finds those that do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelChoice {
    /// Those made for this GPU; where there are none, an error.
    Own,
    /// The portable ones, for any GPU from compute capability 8.0 on: an oracle on the device.
    Portable,
}

/// How activations enter the GEMMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// bf16 activations; input scales unused.
    Bf16,
    /// Activations quantised to NVFP4.
    Nvfp4,
    /// Activations quantised to e4m3, one dynamic scale for each row; needs weights that are exact in e4m3
    /// ([`crate::format::ScaleSpan`]), or rounds them ([`LayerConfig::fp8_max_error`]). MoE layers only.
    Fp8,
}

/// Where mode NVFP4 takes the activations' global scale from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScalePolicy {
    /// One for the tensor: from the checkpoint, or calibrated.
    Static,
    /// One for each row, from its amax.
    Dynamic,
}

/// What kernels read weights for, which says how they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightForm {
    /// Any mode but fp8.
    Exact,
    /// e4m3 tensor cores, by block scales of any value.
    Fp8,
    /// The same by powers of two that are equal in pairs.
    Fp8Pairs,
}

/// As `tile_rows`: the library chooses among the sizes that add in one order, so that a token has the same bits in any batch.
pub const ONE_ORDER: u32 = 1;

/// A checked layer description.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the fields are those of nvfp4_moe_layer_desc
pub struct LayerConfig {
    pub device: Device,
    pub mode: Mode,
    pub scale_policy: ScalePolicy,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_experts: usize,
    pub num_local_experts: usize,
    pub first_local_expert: usize,
    pub top_k: usize,
    pub activation: Activation,
    /// May weights have biases?
    pub has_bias: bool,
    /// [`ONE_ORDER`], or rows of a tile that a benchmark asks for; none: the library chooses.
    pub tile_rows: Option<u32>,
    /// Mode fp8: the relative L2 error that rounding to e4m3 may cost a matrix; 0: none is rounded.
    pub fp8_max_error: f32,
    /// Weights that share one scale: [`BLOCK_SIZE`], or [`MX_BLOCK_SIZE`] where block scales are equal in pairs (mode fp8).
    pub scale_block_size: usize,
}

impl LayerConfig {
    /// A layer on the CPU with all its experts, plain SwiGLU and static input scales; other fields may be set after.
    pub fn on_cpu(mode: Mode, hidden_size: usize, intermediate_size: usize, num_experts: usize, top_k: usize) -> Self {
        LayerConfig {
            device: Device::Cpu,
            mode,
            scale_policy: ScalePolicy::Static,
            hidden_size,
            intermediate_size,
            num_experts,
            num_local_experts: num_experts,
            first_local_expert: 0,
            top_k,
            activation: Activation::PLAIN_SWIGLU,
            has_bias: false,
            tile_rows: None,
            fp8_max_error: 0.0,
            scale_block_size: BLOCK_SIZE,
        }
    }

    /// Are weights rounded to e4m3 ([`crate::format::Rounding`])? A choice of the description and not of the weights, so that
    /// a graph computes with any that are prepared later.
    pub fn rounds_weights(&self) -> bool {
        self.mode == Mode::Fp8 && self.fp8_max_error > 0.0
    }

    /// What its kernels read weights for. A choice of the description as well: ranks that exchange experts store them alike.
    pub fn weight_form(&self) -> WeightForm {
        match (self.mode, self.scale_block_size) {
            (Mode::Bf16 | Mode::Nvfp4, _) => WeightForm::Exact,
            (Mode::Fp8, MX_BLOCK_SIZE) => WeightForm::Fp8Pairs,
            (Mode::Fp8, _) => WeightForm::Fp8,
        }
    }

    /// Lengths of its weights.
    pub fn shape(&self) -> MoeShape {
        MoeShape {
            experts: self.num_local_experts,
            hidden: self.hidden_size,
            inter: self.intermediate_size,
            projections: self.activation.projections(),
        }
    }

    /// Check every rule that does not depend on the device.
    pub fn validate(&self) -> Result<()> {
        check_block_multiple("hidden_size", self.hidden_size)?;
        check_block_multiple("intermediate_size", self.intermediate_size)?;
        let (local, all) = (self.num_local_experts, self.num_experts);
        if all > MAX_DIM {
            let rule = format!("it must be at most {MAX_DIM}");
            return Err(Error::argument("num_experts", all, rule, "Pass the experts of one layer."));
        }
        if local == 0 || local > all {
            let rule = format!("it must be 1 to num_experts, which is {all}");
            return Err(Error::argument("num_local_experts", local, rule, "Pass the experts held by this rank."));
        }
        if self.first_local_expert.saturating_add(local) > all {
            let rule = format!("with num_local_experts {local} it must be at most {}", all - local);
            return Err(Error::argument(
                "first_local_expert",
                self.first_local_expert,
                rule,
                "Pass this rank's first.",
            ));
        }
        if self.top_k == 0 || self.top_k > all {
            let rule = format!("it must be 1 to num_experts, which is {all}");
            return Err(Error::argument("top_k", self.top_k, rule, "Pass num_experts_per_tok of the model."));
        }
        let (error, is_fp8) = (self.fp8_max_error, self.mode == Mode::Fp8);
        if !(0.0..=1.0).contains(&error) || (error > 0.0 && !is_fp8) {
            let rule =
                if is_fp8 { "it must be 0 (weights are exact) to 1" } else { "it must be 0 in modes other than fp8" };
            return Err(Error::argument("fp8_max_error", error, rule, "Pass 0, which rounds no weights."));
        }
        self.check_scale_block_size()
    }

    fn check_scale_block_size(&self) -> Result<()> {
        let (size, is_fp8) = (self.scale_block_size, self.mode == Mode::Fp8);
        let remedy = format!("Pass {BLOCK_SIZE}, which any weights have.");
        if size != BLOCK_SIZE && !(is_fp8 && size == MX_BLOCK_SIZE) {
            let rule = match is_fp8 {
                true => format!("it must be {BLOCK_SIZE}, or {MX_BLOCK_SIZE} where block scales are equal in pairs"),
                false => format!("it must be {BLOCK_SIZE} in modes other than fp8"),
            };
            return Err(Error::argument("scale_block_size", size, rule, remedy));
        }
        if size == MX_BLOCK_SIZE && self.fp8_max_error > 0.0 {
            let rule = "it must be 0 where scale_block_size is 32, because such weights are exact";
            return Err(Error::argument("fp8_max_error", self.fp8_max_error, rule, remedy));
        }
        for (name, cols) in [("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size)] {
            if !cols.is_multiple_of(size) {
                let rule = format!("it must be a multiple of scale_block_size, which is {size}");
                return Err(Error::argument(name, cols, rule, remedy));
            }
        }
        Ok(())
    }
}

/// A checked linear description.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the fields are those of nvfp4_moe_linear_desc
pub struct LinearConfig {
    pub device: Device,
    pub mode: Mode,
    pub scale_policy: ScalePolicy,
    pub in_features: usize,
    pub out_features: usize,
    pub num_parts: usize,
    /// Rows of a tile that a benchmark asks for; none: the library chooses.
    pub tile_rows: Option<u32>,
}

impl LinearConfig {
    /// Check every rule that does not depend on the device.
    pub fn validate(&self) -> Result<()> {
        check_block_multiple("in_features", self.in_features)?;
        if self.out_features == 0 {
            return Err(Error::argument("out_features", 0, "it must be at least 1", "Pass the rows of the weight."));
        }
        if self.num_parts > self.out_features {
            let rule = format!("it must be at most out_features, which is {}", self.out_features);
            return Err(Error::argument("num_parts", self.num_parts, rule, "Pass 1 for a plain linear."));
        }
        Ok(())
    }
}

/// Dimensions are bounded so that no index of a tensor overflows.
const MAX_DIM: usize = 1 << 20;

fn check_block_multiple(name: &str, value: usize) -> Result<()> {
    if value == 0 || !value.is_multiple_of(BLOCK_SIZE) || value > MAX_DIM {
        let rule = format!("it must be a multiple of {BLOCK_SIZE} (the block of one scale) up to {MAX_DIM}");
        return Err(Error::argument(name, value, rule, "Pad the weights with zeros."));
    }
    Ok(())
}
