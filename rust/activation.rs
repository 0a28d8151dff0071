// SPDX-License-Identifier: Apache-2.0
//! What lies between the two GEMMs of an expert: from GEMM1's outputs to GEMM2's input.
//!
//! `kernels/common/activation.cuh` is the same in CUDA; `tests/golden/activation.txt` pins both.

use crate::error::{Error, Result};
use std::f32::consts::FRAC_1_SQRT_2;
use std::fmt;

/// Which function, and so how many outputs of GEMM1 make one input of GEMM2; the number is that of the C ABI and of the
/// kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationKind {
    /// `gate = min(gate, limit); up = clamp(up, -limit, limit)`, then `gate * sigmoid(alpha * gate) * (up + beta)`.
    Swiglu = 0,
    /// `min(silu(gate), limit) * clamp(up, -limit, limit)`: Step-3.5.
    SwigluStep = 1,
    /// `beta * tanh(gate / beta) * sigmoid(gate) * limit * tanh(up / limit)`: Kimi-K3. Without a limit up is as it is.
    Situ = 2,
    /// `gelu(gate) * up`, GELU by its tanh formula: Gemma 4.
    GeluTanh = 3,
    /// `max(x, 0)^2`, no gate: Nemotron-H.
    Relu2 = 4,
    /// `silu(x)`, no gate.
    Silu = 5,
    /// `gelu(gate) * up`, GELU by its definition with erf.
    Gelu = 6,
}

impl ActivationKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [ActivationKind; 7] = [
        ActivationKind::Swiglu,
        ActivationKind::SwigluStep,
        ActivationKind::Situ,
        ActivationKind::GeluTanh,
        ActivationKind::Relu2,
        ActivationKind::Silu,
        ActivationKind::Gelu,
    ];

    /// As people call it.
    pub const fn name(self) -> &'static str {
        match self {
            ActivationKind::Swiglu => "swiglu",
            ActivationKind::SwigluStep => "swiglu_step",
            ActivationKind::Situ => "situ",
            ActivationKind::GeluTanh => "gelu_tanh",
            ActivationKind::Relu2 => "relu2",
            ActivationKind::Silu => "silu",
            ActivationKind::Gelu => "gelu",
        }
    }

    /// Projections that w13 stacks: gate and up, or one.
    pub const fn projections(self) -> usize {
        match self {
            ActivationKind::Relu2 | ActivationKind::Silu => 1,
            _ => 2,
        }
    }

    /// Does it have a limit, an alpha, a beta?
    const fn numbers(self) -> [bool; 3] {
        match self {
            ActivationKind::Swiglu => [true, true, true],
            ActivationKind::SwigluStep => [true, false, false],
            ActivationKind::Situ => [true, false, true],
            ActivationKind::GeluTanh | ActivationKind::Relu2 | ActivationKind::Silu | ActivationKind::Gelu => {
                [false; 3]
            }
        }
    }
}

/// An activation with its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activation {
    /// The function.
    pub kind: ActivationKind,
    /// Infinite where there is none.
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

    /// From the header's fields, in which 0 means "no limit", "alpha 1" and, of SiTU, "beta 1".
    pub fn new(kind: ActivationKind, limit: f32, alpha: f32, beta: f32) -> Result<Self> {
        if limit.is_nan() || limit < 0.0 {
            return Err(Error::argument("swiglu_limit", limit, "it must be 0 (no clamp) or positive", "Pass 0."));
        }
        for (name, value) in [("swiglu_alpha", alpha), ("swiglu_beta", beta)] {
            if !value.is_finite() {
                return Err(Error::argument(name, value, "it must be finite", "Pass 0 for the plain SwiGLU."));
            }
        }
        let alpha = if alpha == 0.0 { 1.0 } else { alpha };
        let given = [("swiglu_limit", limit, 0.0), ("swiglu_alpha", alpha, 1.0), ("swiglu_beta", beta, 0.0)];
        for ((name, value, unset), is_read) in given.into_iter().zip(kind.numbers()) {
            if !is_read && value != unset {
                let rule = format!("activation {} ({}) has no such number", kind as i32, kind.name());
                return Err(Error::argument(name, value, rule, format!("Pass {unset}.")));
            }
        }
        if kind == ActivationKind::Situ && beta < 0.0 {
            return Err(Error::argument("swiglu_beta", beta, "SiTU's bound must be positive, or 0 for 1", "Pass 4."));
        }
        let beta = if kind == ActivationKind::Situ && beta == 0.0 { 1.0 } else { beta };
        let limit = if limit == 0.0 { f32::INFINITY } else { limit };
        Ok(Activation { kind, limit, alpha, beta })
    }

    /// SwiGLU from the header's fields.
    pub fn swiglu(limit: f32, alpha: f32, beta: f32) -> Result<Self> {
        Self::new(ActivationKind::Swiglu, limit, alpha, beta)
    }

    /// Projections that w13 stacks.
    pub const fn projections(self) -> usize {
        self.kind.projections()
    }

    /// One element, in f32. Without a gate, of `up` alone.
    pub fn apply(self, gate: f32, up: f32) -> f32 {
        let Activation { limit, alpha, beta, .. } = self;
        match self.kind {
            ActivationKind::Swiglu => silu(at_most(gate, limit), alpha) * (within(up, limit) + beta),
            ActivationKind::SwigluStep => at_most(silu(gate, 1.0), limit) * within(up, limit),
            ActivationKind::Situ => {
                let up = if limit.is_finite() { limit * (up / limit).tanh() } else { up };
                beta * (gate / beta).tanh() * sigmoid(gate) * up
            }
            ActivationKind::GeluTanh => gelu_tanh(gate) * up,
            ActivationKind::Relu2 => {
                let positive = if up < 0.0 { 0.0 } else { up };
                positive * positive
            }
            ActivationKind::Silu => silu(up, 1.0),
            ActivationKind::Gelu => gelu(gate) * up,
        }
    }
}

// Not f32::min, max and clamp: they would swallow a NaN, or panic; a NaN must stay in its row.
fn at_most(x: f32, limit: f32) -> f32 {
    if x > limit { limit } else { x }
}

fn within(x: f32, limit: f32) -> f32 {
    if x < -limit { -limit } else { at_most(x, limit) }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `x * sigmoid(alpha * x)`
fn silu(x: f32, alpha: f32) -> f32 {
    x / (1.0 + (-alpha * x).exp())
}

/// `x * (1 + tanh(z)) / 2` with `z = sqrt(2 / pi) * (x + 0.044715 * x^3)`, as `x * sigmoid(2 z)`: the same, and exact to
/// the last bits where tanh is near -1.
fn gelu_tanh(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
    x / (1.0 + (-TWICE_SQRT_2_OVER_PI * (x + 0.044_715 * (x * x * x))).exp())
}

/// `x * (1 + erf(x / sqrt(2))) / 2`, as `x * erfc(-x / sqrt(2)) / 2`: the same, and exact where erf is near -1.
fn gelu(x: f32) -> f32 {
    0.5 * x * erfc(-FRAC_1_SQRT_2 * x)
}

/// Of the C library, which Rust's own `tanh` and `exp` are as well; Rust has no name for it.
fn erfc(x: f32) -> f32 {
    unsafe extern "C" {
        safe fn erfcf(x: f32) -> f32;
    }
    erfcf(x)
}

/// `swiglu alpha 1.702 beta 1, clamp 7`
impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Activation { kind, limit, alpha, beta } = *self;
        match kind {
            ActivationKind::Swiglu if alpha == 1.0 && beta == 0.0 => f.write_str("silu")?,
            ActivationKind::Swiglu => write!(f, "swiglu alpha {alpha} beta {beta}")?,
            ActivationKind::SwigluStep => f.write_str("silu")?,
            ActivationKind::Situ => write!(f, "situ beta {beta}")?,
            ActivationKind::GeluTanh | ActivationKind::Gelu => f.write_str(kind.name())?,
            ActivationKind::Relu2 | ActivationKind::Silu => write!(f, "{}, no gate", kind.name())?,
        }
        match kind {
            _ if limit.is_infinite() => Ok(()),
            ActivationKind::SwigluStep => write!(f, ", clamp {limit} after"),
            ActivationKind::Situ => write!(f, " and {limit}"),
            _ => write!(f, ", clamp {limit}"),
        }
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
        assert_eq!(Activation::swiglu(0.0, 1.0, 0.0).unwrap().apply(100.0, 100.0), 1e4);
    }

    #[test]
    fn numbers_mean_the_same_everywhere_and_a_nan_stays() {
        for (code, kind) in ActivationKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, code);
            let activation = Activation::new(kind, 0.0, 0.0, 0.0).unwrap();
            assert!(activation.apply(1.0, f32::NAN).is_nan(), "{kind:?}");
            assert_eq!(activation.apply(f32::NAN, 1.0).is_nan(), kind.projections() == 2, "{kind:?}");
            let limited = Activation::new(kind, 7.0, 0.0, 0.0);
            assert_eq!(limited.is_ok(), kind.numbers()[0], "{kind:?}");
        }
    }

    #[test]
    fn a_number_that_a_kind_lacks_is_refused_by_name() {
        let refusal = |kind, limit, alpha, beta| Activation::new(kind, limit, alpha, beta).unwrap_err().to_string();
        let relu2 = refusal(ActivationKind::Relu2, 7.0, 0.0, 0.0);
        assert_eq!(relu2, "swiglu_limit is 7; activation 4 (relu2) has no such number. Pass 0.");
        assert!(
            refusal(ActivationKind::SwigluStep, 7.0, 1.702, 0.0).starts_with("swiglu_alpha is 1.702; activation 1")
        );
        assert!(refusal(ActivationKind::Situ, 0.0, 0.0, -1.0).starts_with("swiglu_beta is -1; "));
    }
}
