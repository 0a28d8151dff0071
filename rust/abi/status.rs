//! Exports about the library and its devices: version, last error, threads, device status.

use super::header::*;
use super::{LAST_ERROR, Struct, copy_text, device_of, guard, null_error, read_struct, size_of_field};
use crate::config::Device;
use crate::error::Error;
use crate::status::CPU;
use crate::{cpu, cuda, threads};
use std::ffi::c_char;

// SAFETY: repr(C) by bindgen, without padding (the ABI test checks), any bytes are valid.
unsafe impl Struct for nvfp4_moe_device_status {
    const NAME: &'static str = "nvfp4_moe_device_status";
    const FIRST_SIZE: usize = 40;
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn nvfp4_moe_version() -> u32 {
    NVFP4_MOE_VERSION_MAJOR * 10_000 + NVFP4_MOE_VERSION_MINOR * 100 + NVFP4_MOE_VERSION_PATCH
}

/// See the header.
///
/// # Safety
/// `buf` must be NULL or writable for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_last_error(buf: *mut c_char, size: usize) -> usize {
    // SAFETY: the header's contract on buf.
    LAST_ERROR.with(|last| unsafe { copy_text(&last.borrow(), buf, size) })
}

/// See the header.
///
/// # Safety
/// `buf` must be NULL or writable for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_cpu_isa(buf: *mut c_char, size: usize) -> usize {
    // SAFETY: the header's contract on buf.
    unsafe { copy_text(cpu::isa::best().name, buf, size) }
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn nvfp4_moe_set_num_threads(num_threads: i32) -> i32 {
    guard(|| {
        let num_threads = size_of_field("num_threads", num_threads)?;
        if num_threads > 1024 {
            let rule = "it must be 0 (one for each core) to 1024";
            return Err(Error::argument("num_threads", num_threads, rule, "Pass the cores you want used."));
        }
        threads::set_num_threads(num_threads)
    })
}

/// See the header.
///
/// # Safety
/// As the header states.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_device_status_read(
    device_kind: i32,
    device_ordinal: i32,
    out: *mut nvfp4_moe_device_status,
    stream: *mut CUstream_st,
) -> i32 {
    guard(|| {
        if out.is_null() {
            return Err(null_error("out"));
        }
        // SAFETY: the header's contract: readable, and its struct_size is set.
        let mut status = unsafe { read_struct(out.cast_const()) }?;
        let seen = match device_of(device_kind, device_ordinal)? {
            Device::Cpu => CPU.read(),
            Device::Cuda(ordinal, _) => cuda::status_read(ordinal, stream.cast())?,
        };
        status.saturated_blocks = seen.saturated_blocks;
        status.nonfinite_values = seen.nonfinite_values;
        status.out_of_range_ids = seen.out_of_range_ids;
        status.first_bad_token = seen.first_bad_token;
        // SAFETY: read_struct found at least the first release's size, which is all there is.
        unsafe { out.write_unaligned(status) };
        Ok(())
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn nvfp4_moe_device_status_reset(
    device_kind: i32,
    device_ordinal: i32,
    stream: *mut CUstream_st,
) -> i32 {
    guard(|| {
        match device_of(device_kind, device_ordinal)? {
            Device::Cpu => CPU.reset(),
            Device::Cuda(ordinal, _) => cuda::status_reset(ordinal, stream.cast())?,
        }
        Ok(())
    })
}
