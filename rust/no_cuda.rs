// SPDX-License-Identifier: Apache-2.0
//! In the place of [`crate::cuda`] where the crate is built without its feature `cuda`: every CUDA device is refused.

use crate::call::{LayerBackend, LinearBackend, Stream};
use crate::config::{KernelChoice, LayerConfig, LinearConfig};
use crate::error::{Error, Result};
use crate::status::DeviceStatus;

fn refused<T>(ordinal: i32) -> Result<T> {
    Err(Error::Unsupported(format!(
        "CUDA device is {ordinal}; this library was built without the feature `cuda`, so it must be the CPU. Build it with \
         that feature, which is one of the default ones, or pass the CPU."
    )))
}

/// Refuses.
pub fn layer(ordinal: i32, _choice: KernelChoice, _config: &LayerConfig) -> Result<Box<dyn LayerBackend>> {
    refused(ordinal)
}

/// Refuses.
pub fn linear(ordinal: i32, _choice: KernelChoice, _config: &LinearConfig) -> Result<Box<dyn LinearBackend>> {
    refused(ordinal)
}

/// Refuses.
pub fn status_read(ordinal: i32, _stream: Stream) -> Result<DeviceStatus> {
    refused(ordinal)
}

/// Refuses.
pub fn status_reset(ordinal: i32, _stream: Stream) -> Result<()> {
    refused(ordinal)
}
