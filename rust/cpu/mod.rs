// SPDX-License-Identifier: Apache-2.0
//! The CPU backend: the embedded default, and the oracle of every GPU path.
//!
//! Weights are used in place, in checkpoint order. The pipeline is the GPU's, step by step:
//! route -> operands of x -> GEMM1 + clamped SwiGLU -> operands of h -> GEMM2 -> combine.

mod forward;
mod gemm;
pub mod isa;
mod layer;
mod linear;
mod operands;
mod output_factor;
mod parts_of;
mod plan;
mod rounding;
mod shared_workspace;

pub use layer::CpuLayer;
pub use linear::CpuLinear;
