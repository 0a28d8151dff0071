//! The CPU backend: the embedded default, and the oracle of every GPU path.
//!
//! Weights are used in place, in checkpoint order. The pipeline is the GPU's, step by step:
//! route -> operands of x -> GEMM1 + clamped SwiGLU -> operands of h -> GEMM2 -> combine.

mod forward;
mod gemm;
pub mod isa;
mod linear;
mod operands;
mod plan;
mod shared;
mod shared_workspace;

pub use forward::forward;
pub use linear::{LinearCall, linear_forward};
pub use plan::{LayerPlan, LinearPlan};
