//! Version and last error.

use super::{LAST_ERROR, copy_text, header};
use std::ffi::c_char;

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn nvfp4_moe_version() -> u32 {
    header::NVFP4_MOE_VERSION_MAJOR * 10_000 + header::NVFP4_MOE_VERSION_MINOR * 100 + header::NVFP4_MOE_VERSION_PATCH
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
