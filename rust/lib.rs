// SPDX-License-Identifier: Apache-2.0
//! # nvfp4_moe: the NVFP4 mixture-of-experts layer and the NVFP4 linear
//!
//! Rust programs begin at [`host`]: layers and linears on the CPU, over slices, without `unsafe`. [`layer`] and [`linear`] are
//! what it stands on, for every device and over pointers; [`checkpoint`] reads files; [`abi`] is the C interface.
//!
//! Features, both default: `cuda` (CUDA devices) and `cli` (the program `nvfp4-moe`, which needs clap). To embed the CPU
//! alone: `default-features = false`.
//!
//! ```
//! use nvfp4_moe::format::{e2m1_decode, e4m3_decode};
//! // value = e2m1 * block_scale * global_scale: code 5 is 3, byte 0x40 is 2.
//! assert_eq!(e2m1_decode(5) * e4m3_decode(0x40) * 0.5, 3.0);
//! ```

pub mod abi;
pub mod activation;
pub mod call;
pub mod checkpoint;
pub mod config;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "no_cuda.rs"]
pub mod cuda;
pub mod error;
pub mod format;
pub mod host;
pub mod layer;
pub mod linear;
mod memory;
#[cfg(all(test, feature = "cuda"))]
#[path = "no_cuda.rs"]
mod no_cuda; // for its test
mod panics;
mod part_scales;
mod process;
pub mod routing;
pub mod shape;
pub mod status;
pub mod threads;
pub mod workspace;

/// What the library was built with, names apart by spaces: `cpu`, and behind it `hopper portable sm100 sm120` where an nvcc compiled
/// the CUDA kernels.
pub const BUILT_IN: &str = env!("NVFP4_MOE_BUILT_IN");
