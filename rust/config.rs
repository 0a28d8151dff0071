//! What a layer or linear is asked to be, checked once.

use crate::error::{Error, Result};
use crate::format::BLOCK_SIZE;

/// Where pointers live and work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Device {
    /// This process.
    Cpu,
    /// A CUDA device by its ordinal, and the kernels that run there.
    Cuda(i32, Kernels),
}

/// Families of CUDA kernels: how weights and rows lie, and which GEMMs read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernels {
    /// Compute capability 9.0.
    Hopper,
    /// Any from 8.0 on, in Blackwell's layouts: an oracle on the device.
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
    /// ([`crate::format::ScaleSpan`]). MoE layers only.
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

/// The clamped SwiGLU: `gate = min(gate, limit); up = clamp(up, -limit, limit)`, then
/// `gate * sigmoid(alpha * gate) * (up + beta)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Swiglu {
    /// Infinite where there is no clamp.
    pub limit: f32,
    /// 1 for plain SiLU.
    pub alpha: f32,
    /// 0 for plain SwiGLU.
    pub beta: f32,
}

impl Swiglu {
    /// From the header's fields, in which 0 means "no limit" and "alpha 1".
    pub fn new(limit: f32, alpha: f32, beta: f32) -> Result<Self> {
        if limit.is_nan() || limit < 0.0 {
            return Err(Error::argument("swiglu_limit", limit, "it must be 0 (no clamp) or positive", "Pass 0."));
        }
        for (name, value) in [("swiglu_alpha", alpha), ("swiglu_beta", beta)] {
            if !value.is_finite() {
                return Err(Error::argument(name, value, "it must be finite", "Pass 0 for the plain SwiGLU."));
            }
        }
        let limit = if limit == 0.0 { f32::INFINITY } else { limit };
        Ok(Swiglu { limit, alpha: if alpha == 0.0 { 1.0 } else { alpha }, beta })
    }

    /// One element, in f32.
    pub fn apply(self, gate: f32, up: f32) -> f32 {
        // Not f32::min/max: they would swallow a NaN, which must stay in its row.
        let gate = if gate > self.limit { self.limit } else { gate };
        let up = if up > self.limit {
            self.limit
        } else if up < -self.limit {
            -self.limit
        } else {
            up
        };
        gate / (1.0 + (-self.alpha * gate).exp()) * (up + self.beta)
    }
}

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
    pub swiglu: Swiglu,
}

impl LayerConfig {
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
        if self.first_local_expert + local > all {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swiglu_clamps_before_the_sigmoid() {
        let clamped = Swiglu::new(10.0, 0.0, 0.0).unwrap();
        let silu = |g: f32| g / (1.0 + (-g).exp());
        assert_eq!(clamped.apply(30.0, 1.0), silu(10.0), "not min(silu(30), 10)");
        assert_eq!(clamped.apply(-30.0, 1.0), silu(-30.0), "gate has no lower bound");
        assert_eq!(clamped.apply(1.0, -30.0), silu(1.0) * -10.0);
        let oss = Swiglu::new(7.0, 1.702, 1.0).unwrap();
        assert_eq!(oss.apply(2.0, 3.0), 2.0 / (1.0 + (-1.702f32 * 2.0).exp()) * 4.0);
        assert!(clamped.apply(f32::NAN, 1.0).is_nan() && clamped.apply(1.0, f32::NAN).is_nan());
        assert_eq!(Swiglu::new(0.0, 1.0, 0.0).unwrap().apply(100.0, 100.0), 1e4);
    }
}
