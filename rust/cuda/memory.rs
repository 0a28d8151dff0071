// SPDX-License-Identifier: Apache-2.0
//! Device memory: allocated and freed beside any capture, and never lost where the driver refuses to free it.

use super::device::Device;
use super::driver::{self, DeviceAddress, Relaxed};
use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::fmt::Display;
use std::sync::Arc;

/// What the driver refused to free, for the next attempt.
pub type Unfreed = Mutex<Vec<DeviceAddress>>;

impl Device {
    /// Device memory that lives as long as its owner.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Buffer> {
        let during = format_args!("Allocating {bytes} bytes on CUDA device {}", self.ordinal);
        Ok(Buffer { device: self.clone(), address: self.take(bytes, during)? })
    }

    /// Device memory that [`Device::give_back`] ends. Enters the device.
    pub fn take(&self, bytes: usize, during: impl Display) -> Result<DeviceAddress> {
        let _entered = self.enter()?;
        let _relaxed = Relaxed::capture()?;
        self.free_the_unfreed();
        driver::allocate(bytes, during)
    }

    /// Free what [`Device::take`] gave, once no work uses it; what the driver refuses is kept, and freed with the next attempt.
    ///
    /// # Safety
    /// It is given back once, and nothing that starts later uses it.
    pub unsafe fn give_back(&self, address: DeviceAddress) -> Result<()> {
        // SAFETY: the caller's promise is the same.
        let freed = unsafe { self.free(address) };
        freed.map_err(|error| {
            self.unfreed.lock().push(address);
            let kept = "The memory is kept, and freed where a later allocation or free succeeds.";
            Error::Cuda(format!("{error} {kept}"))
        })
    }

    unsafe fn free(&self, address: DeviceAddress) -> Result<()> {
        let _entered = self.enter()?;
        let _relaxed = Relaxed::capture()?;
        self.free_the_unfreed();
        let during = format_args!("Freeing memory of CUDA device {}", self.ordinal);
        // SAFETY: allocated by take and freed once, as the caller promises.
        unsafe { driver::free(address, during) }
    }

    /// The device is entered, and captures go on beside.
    fn free_the_unfreed(&self) {
        // SAFETY: each was given back, and no attempt to free it has succeeded.
        self.unfreed.lock().retain(|address| unsafe { driver::free(*address, "Freeing once more") }.is_err());
    }
}

/// Device memory of one owner, freed when dropped.
#[derive(Debug)]
pub struct Buffer {
    device: Arc<Device>,
    address: DeviceAddress,
}

impl Buffer {
    /// Its first byte.
    pub fn pointer<T>(&self) -> *mut T {
        self.address as *mut T
    }

    /// Free it now, and say whether the driver did. It has no memory after that.
    pub fn free(&mut self) -> Result<()> {
        match std::mem::take(&mut self.address) {
            0 => Ok(()),
            // SAFETY: allocated by Device::allocate, and given back once.
            address => unsafe { self.device.give_back(address) },
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let _ = self.free(); // whoever wants to know has asked before
    }
}
