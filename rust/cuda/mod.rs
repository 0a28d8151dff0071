// SPDX-License-Identifier: Apache-2.0
//! The CUDA backend: decides, plans and launches what `kernels/` computes, through the driver API.
//!
//! After prepare a forward only launches kernels on the caller's stream: it allocates nothing, waits for nothing, and reads
//! no device data, so it may be captured in a graph. Launches are sized by the worst case of the plan, and cut short on the
//! device by what routing found.
//!
//! From the ground up; each file uses only those above it:
//!
//! | file | has |
//! |---|---|
//! | `driver` | the driver's calls; the only file that names cudarc |
//! | `memory`, `shared_workspaces` | a device's memory; the workspaces of calls that bring none |
//! | `kernels`, `launch`, `hang` | the table of kernels; how one is launched; what one says that waited in vain |
//! | `device` | one device: kernels loaded, copies, launches |
//! | `storage`, `plan`, `tiles` | where weights and scratch lie; how a call is cut up |
//! | `prepared`, `prepare` | what prepare leaves; rules for what it takes |
//! | `forward`, `route`, `linear_call` | one call, and the steps that all families share |
//! | `family` | what a family of kernels must answer |
//! | `hopper/`, `sm100/`, `sm120/`, `portable/` | the families |
//! | `families`, `devices`, `counters` | the list of them; which GPU runs which; its counters |
//! | `layer`, `linear` | the two backends |
//! | `self_test/` | own kernels beside the portable ones, before a chip that nobody ran them on is used |

mod counters;
mod device;
mod devices;
mod driver;
#[doc(hidden)]
pub mod facts;
mod families;
mod family;
mod forward;
mod hang;
mod hopper;
mod kernels;
mod launch;
mod layer;
mod linear;
mod linear_call;
mod memory;
mod plan;
mod portable;
mod prepare;
mod prepared;
mod route;
mod self_test;
mod shared_workspaces;
mod sm100;
mod sm120;
mod storage;
#[cfg(test)]
mod tests;
mod tiles;

pub use counters::{status_read, status_reset};
pub use devices::check_process;
pub use layer::CudaLayer;
pub use linear::CudaLinear;

use crate::call::{LayerBackend, LinearBackend};
use crate::config::{KernelChoice, LayerConfig, LinearConfig};
use crate::error::Result;

/// What computes a layer on a CUDA device. (`no_cuda.rs` is the same for a build without the feature `cuda`.)
pub fn layer(ordinal: i32, choice: KernelChoice, config: &LayerConfig) -> Result<Box<dyn LayerBackend>> {
    self_test::before_first_use(ordinal, choice, config.mode)?;
    Ok(Box::new(CudaLayer::new(ordinal, choice, config)?))
}

/// What computes a linear there.
pub fn linear(ordinal: i32, choice: KernelChoice, config: &LinearConfig) -> Result<Box<dyn LinearBackend>> {
    self_test::before_first_use(ordinal, choice, config.mode)?;
    Ok(Box::new(CudaLinear::new(ordinal, choice, config)?))
}
