// SPDX-License-Identifier: Apache-2.0
//! Exports of the counters of a device.

use super::header::*;
use super::{device_of, exports, guard, read_struct, write_struct};
use crate::config::Device;
use crate::cuda;
use crate::error::Result;
use crate::status::{CPU, DeviceStatus};

fn read(device: Device, stream: *mut CUstream_st) -> Result<DeviceStatus> {
    match device {
        Device::Cpu => Ok(CPU.read()),
        Device::Cuda(ordinal, _) => cuda::status_read(ordinal, stream.cast()),
    }
}

fn reset(device: Device, stream: *mut CUstream_st) -> Result<()> {
    match device {
        Device::Cpu => CPU.reset(),
        Device::Cuda(ordinal, _) => cuda::status_reset(ordinal, stream.cast())?,
    }
    Ok(())
}

exports! {
    fn nvfp4_moe_device_status_read(
        device_kind: i32,
        device_ordinal: i32,
        out: *mut nvfp4_moe_device_status,
        stream: *mut CUstream_st,
    ) {
        read_struct(out.cast_const())?;
        let seen = read(device_of(device_kind, device_ordinal)?, stream)?;
        let status = nvfp4_moe_device_status {
            struct_size: 0, // stays the caller's
            reserved: 0,
            saturated_blocks: seen.saturated_blocks,
            nonfinite_values: seen.nonfinite_values,
            out_of_range_ids: seen.out_of_range_ids,
            first_bad_token: seen.first_bad_token,
        };
        write_struct(out, status);
        Ok(())
    }
}

/// Back to zero.
#[unsafe(no_mangle)]
pub extern "C" fn nvfp4_moe_device_status_reset(
    device_kind: i32,
    device_ordinal: i32,
    stream: *mut CUstream_st,
) -> i32 {
    guard(|| reset(device_of(device_kind, device_ordinal)?, stream))
}
