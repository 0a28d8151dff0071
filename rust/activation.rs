// SPDX-License-Identifier: Apache-2.0
//! What lies between the two GEMMs of an expert: from GEMM1's outputs to GEMM2's input.
//!
//! `kernels/common/activation.cuh` is the same in CUDA; `tests/golden` pins both.

use crate::error::{Error, Result};

/// Which function, and so how many outputs of GEMM1 make one input of GEMM2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationKind {
    /// `gate = min(gate, limit); up = clamp(up, -limit, limit)`, then `gate * sigmoid(alpha * gate) * (up + beta)`.
    Swiglu,
}

/// An activation with its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activation {
    /// The function.
    pub kind: ActivationKind,
    /// Infinite where there is no clamp.
    pub limit: f32,
    /// 1 for plain SiLU.
    pub alpha: f32,
    /// 0 for plain SwiGLU.
    pub beta: f32,
}

impl Activation {
    /// `silu(gate) * up`
    pub const PLAIN_SWIGLU: Self =
        Activation { kind: ActivationKind::Swiglu, limit: f32::INFINITY, alpha: 1.0, beta: 0.0 };

    /// SwiGLU from the header's fields, in which 0 means "no limit" and "alpha 1".
    pub fn swiglu(limit: f32, alpha: f32, beta: f32) -> Result<Self> {
        if limit.is_nan() || limit < 0.0 {
            return Err(Error::argument("swiglu_limit", limit, "it must be 0 (no clamp) or positive", "Pass 0."));
        }
        for (name, value) in [("swiglu_alpha", alpha), ("swiglu_beta", beta)] {
            if !value.is_finite() {
                return Err(Error::argument(name, value, "it must be finite", "Pass 0 for the plain SwiGLU."));
            }
        }
        let limit = if limit == 0.0 { f32::INFINITY } else { limit };
        let alpha = if alpha == 0.0 { 1.0 } else { alpha };
        Ok(Activation { kind: ActivationKind::Swiglu, limit, alpha, beta })
    }

    /// Projections that w13 stacks: gate and up.
    pub const fn projections(self) -> usize {
        match self.kind {
            ActivationKind::Swiglu => 2,
        }
    }

    /// One element, in f32.
    pub fn apply(self, gate: f32, up: f32) -> f32 {
        match self.kind {
            ActivationKind::Swiglu => self.apply_swiglu(gate, up),
        }
    }

    fn apply_swiglu(self, gate: f32, up: f32) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swiglu_clamps_before_the_sigmoid() {
        let clamped = Activation::swiglu(10.0, 0.0, 0.0).unwrap();
        let silu = |g: f32| g / (1.0 + (-g).exp());
        assert_eq!(clamped.apply(30.0, 1.0), silu(10.0), "not min(silu(30), 10)");
        assert_eq!(clamped.apply(-30.0, 1.0), silu(-30.0), "gate has no lower bound");
        assert_eq!(clamped.apply(1.0, -30.0), silu(1.0) * -10.0);
        let oss = Activation::swiglu(7.0, 1.702, 1.0).unwrap();
        assert_eq!(oss.apply(2.0, 3.0), 2.0 / (1.0 + (-1.702f32 * 2.0).exp()) * 4.0);
        assert!(clamped.apply(f32::NAN, 1.0).is_nan() && clamped.apply(1.0, f32::NAN).is_nan());
        assert_eq!(Activation::swiglu(0.0, 1.0, 0.0).unwrap().apply(100.0, 100.0), 1e4);
    }
}
