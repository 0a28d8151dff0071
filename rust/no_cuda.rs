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

/// Nothing to refuse: no process uses CUDA.
pub fn check_process() -> Result<()> {
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Device, Mode, ScalePolicy};

    #[test]
    fn every_cuda_device_is_refused_by_one_sentence() {
        let choice = KernelChoice::Own;
        let config = LayerConfig::on_cpu(Mode::Bf16, 16, 16, 1, 1);
        let one = LinearConfig {
            device: Device::Cuda(3, choice),
            mode: Mode::Bf16,
            scale_policy: ScalePolicy::Static,
            in_features: 16,
            out_features: 1,
            num_parts: 1,
            tile_rows: None,
        };
        let stream = std::ptr::null_mut();
        let refusals = [
            layer(3, choice, &config).err(),
            linear(3, choice, &one).err(),
            status_read(3, stream).err(),
            status_reset(3, stream).err(),
        ];
        assert_eq!(check_process(), Ok(()));
        for refusal in refusals {
            let text = refusal.expect("a refusal").to_string();
            assert!(text.starts_with("CUDA device is 3; this library was built without the feature `cuda`"), "{text}");
        }
    }
}
