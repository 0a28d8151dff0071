// SPDX-License-Identifier: Apache-2.0
//! Exports about the library: version, last error, instruction set, threads.

use super::header::*;
use super::{copy_text, guard, guard_value, last_error, size_of_field};
use crate::error::Error;
use crate::{cpu, threads};
use std::ffi::c_char;

/// The numbers of the header that this library was built with.
#[unsafe(no_mangle)]
pub extern "C" fn nvfp4_moe_version() -> u32 {
    NVFP4_MOE_VERSION_MAJOR * 10_000 + NVFP4_MOE_VERSION_MINOR * 100 + NVFP4_MOE_VERSION_PATCH
}

/// The calling thread's.
///
/// # Safety
/// `buf` must be NULL or writable for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_last_error(buf: *mut c_char, size: usize) -> usize {
    // SAFETY: buf is NULL or writable for size bytes.
    guard_value(0, || unsafe { copy_text(&last_error(), buf, size) })
}

/// The name of the best one that this CPU has.
///
/// # Safety
/// `buf` must be NULL or writable for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_cpu_isa(buf: *mut c_char, size: usize) -> usize {
    // SAFETY: buf is NULL or writable for size bytes.
    guard_value(0, || unsafe { copy_text(cpu::isa::best().name, buf, size) })
}

/// What the build script found an nvcc for.
///
/// # Safety
/// `buf` must be NULL or writable for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvfp4_moe_build_info(buf: *mut c_char, size: usize) -> usize {
    // SAFETY: buf is NULL or writable for size bytes.
    guard_value(0, || unsafe { copy_text(crate::BUILT_IN, buf, size) })
}

/// More than any machine has cores.
const MAX_THREADS: usize = 1024;

/// Replaces the pool that later calls run in.
#[unsafe(no_mangle)]
pub extern "C" fn nvfp4_moe_set_num_threads(num_threads: i32) -> i32 {
    guard(|| {
        let num_threads = size_of_field("num_threads", num_threads)?;
        if num_threads > MAX_THREADS {
            let rule = format!("it must be 0 (one for each core) to {MAX_THREADS}");
            return Err(Error::argument("num_threads", num_threads, rule, "Pass the cores you want used."));
        }
        threads::set_num_threads(num_threads);
        Ok(())
    })
}
