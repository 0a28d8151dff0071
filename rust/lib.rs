// SPDX-License-Identifier: Apache-2.0
//! # nvfp4_moe: the NVFP4 mixture-of-experts layer and the NVFP4 linear
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
pub mod cuda;
pub mod error;
pub mod format;
pub mod layer;
pub mod linear;
mod memory;
mod panics;
mod process;
pub mod routing;
pub mod shape;
pub mod status;
pub mod threads;
pub mod workspace;
