// SPDX-License-Identifier: Apache-2.0
//! The CUDA devices of this process.

use super::device::Device;
use super::family::Family;
use super::kernels::IMAGES;
use super::{driver, families};
use crate::config::KernelChoice;
use crate::error::{Error, Result};
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Devices in use. They stay until the process ends: layers share their modules, and graphs their workspace.
static DEVICES: Lazy<Mutex<HashMap<i32, Arc<Device>>>> = Lazy::new(Mutex::default);

/// The process that first asked for a device; 0: none has.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Refuse a forked child of the process that uses CUDA: the driver's contexts do not follow into it, and a call there may
/// hang. Asked before any lock, which another thread of the parent may have held.
pub fn check_process() -> Result<()> {
    let this = std::process::id();
    match PROCESS.load(Relaxed) {
        0 => Ok(()),
        first if first == this => Ok(()),
        first => Err(Error::Cuda(format!(
            "process is {this}, forked from {first}; CUDA works only in the process that first used it. Start workers by \
             spawn, or before the first CUDA layer."
        ))),
    }
}

/// The device, opened when first asked for.
pub fn get(ordinal: i32) -> Result<Arc<Device>> {
    check_process()?;
    let mut devices = DEVICES.lock();
    if let Some(device) = devices.get(&ordinal) {
        return Ok(device.clone());
    }
    let device = Arc::new(open(ordinal)?);
    devices.insert(ordinal, device.clone());
    Ok(device)
}

/// The device, and the family of kernels that was asked for there.
pub fn with_family(ordinal: i32, choice: KernelChoice) -> Result<(Arc<Device>, &'static dyn Family)> {
    let device = get(ordinal)?;
    let family = families::choose(ordinal, choice, device.capability)?;
    Ok((device, family))
}

fn open(ordinal: i32) -> Result<Device> {
    let unsupported = |reason: &str| Error::Unsupported(format!("device_kind is CUDA (device {ordinal}); {reason}."));
    if IMAGES.is_empty() {
        return Err(unsupported("this build has no CUDA kernels, because nvcc was not found. Build with CUDA 13"));
    }
    if !driver::is_present() {
        return Err(unsupported("libcuda.so.1 could not be loaded. Install NVIDIA's driver, or use the CPU"));
    }
    PROCESS.store(std::process::id(), Relaxed);
    let properties = driver::properties(ordinal)?;
    let (major, minor) = properties.capability;
    if (major, minor) < (8, 0) {
        let rule = format!("its compute capability is {major}.{minor}; the kernels need 8.0 or later. Use the CPU");
        return Err(unsupported(&rule));
    }
    Device::open(ordinal, properties, families::tables(properties.capability))
}
