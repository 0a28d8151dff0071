// SPDX-License-Identifier: Apache-2.0
//! Counters that kernels of a device add to.

use super::devices;
use crate::call::Stream;
use crate::error::Result;
use crate::status::DeviceStatus;

/// Read the counters of a device; waits for the stream.
#[allow(clippy::not_unsafe_ptr_arg_deref)] // the stream is a handle, which the driver checks
pub fn status_read(ordinal: i32, stream: Stream) -> Result<DeviceStatus> {
    let device = devices::get(ordinal)?;
    let _entered = device.enter()?;
    // SAFETY: the device's own block.
    let status = unsafe { device.read(device.status(), stream) }?;
    // The low half of first_bad is the token; all ones mean none.
    let first_bad_token = if status.first_bad == u64::MAX { -1 } else { i64::from(status.first_bad as u32) };
    Ok(DeviceStatus {
        saturated_blocks: status.saturated_blocks,
        nonfinite_values: status.nonfinite_values,
        out_of_range_ids: status.out_of_range_ids,
        first_bad_token,
    })
}

/// Zero the counters of a device.
#[allow(clippy::not_unsafe_ptr_arg_deref)] // the driver checks this handle, too
pub fn status_reset(ordinal: i32, stream: Stream) -> Result<()> {
    let device = devices::get(ordinal)?;
    let _entered = device.enter()?;
    device.clear_status(stream)
}
