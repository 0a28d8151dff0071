//! The C ABI: `include/nvfp4_moe.h` in Rust. Exports hold no logic: a [`guard`] around one call.

mod checkpoint;
mod checks;
mod format;
mod layer;
mod linear;
mod prototypes;
mod status;

pub(crate) use checks::*;

/// The exported functions, for Rust callers: tests, benchmarks, fuzz targets.
pub mod exports {
    pub use super::checkpoint::*;
    pub use super::format::*;
    pub use super::layer::*;
    pub use super::linear::*;
    pub use super::status::*;
}

use crate::error::{Error, Result};
use std::cell::RefCell;
use std::ffi::c_char;
use std::mem::{MaybeUninit, size_of};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The header's types and constants, as bindgen reads them.
#[allow(non_camel_case_types, missing_docs, clippy::undocumented_unsafe_blocks)]
pub mod header {
    /// A CUDA stream; NULL on the CPU.
    pub enum CUstream_st {}

    include!("../bindings/header.rs");
}

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

fn status_code(error: &Error) -> i32 {
    (match error {
        Error::InvalidArgument(_) => header::NVFP4_MOE_INVALID_ARGUMENT,
        Error::Unsupported(_) => header::NVFP4_MOE_UNSUPPORTED,
        Error::WorkspaceTooSmall { .. } => header::NVFP4_MOE_WORKSPACE_TOO_SMALL,
        Error::NotPrepared(_) => header::NVFP4_MOE_NOT_PREPARED,
        Error::Checkpoint(_) => header::NVFP4_MOE_CHECKPOINT,
        Error::Io(_) => header::NVFP4_MOE_IO,
        Error::Cuda(_) => header::NVFP4_MOE_CUDA,
        Error::Internal(_) => header::NVFP4_MOE_INTERNAL,
    }) as i32
}

/// Run one export: errors and panics become a status code and the thread's last error.
pub(crate) fn guard(body: impl FnOnce() -> Result<()>) -> i32 {
    // Every handle's state stays consistent across an unwind: outputs are written last, locks do not poison.
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(Error::Internal(format!("internal error: {}. Please report it.", text.unwrap_or("panic without a text"))))
    });
    match result {
        Ok(()) => header::NVFP4_MOE_OK as i32,
        Err(error) => {
            LAST_ERROR.with(|last| *last.borrow_mut() = error.to_string());
            status_code(&error)
        }
    }
}

/// Copy `text` into a C buffer of `size` bytes, NUL-terminated and cut at a character; returns its full length.
///
/// # Safety
/// `buf` must be NULL or writable for `size` bytes.
pub(crate) unsafe fn copy_text(text: &str, buf: *mut c_char, size: usize) -> usize {
    if !buf.is_null() && size > 0 {
        let len = text.floor_char_boundary(size - 1);
        // SAFETY: len < size, and the caller vouches for size bytes; text and buf cannot overlap (text is ours).
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), buf.cast(), len);
            *buf.add(len) = 0;
        }
    }
    text.len()
}

/// A public struct: plain integers, floats and pointers, `struct_size` first, for which zero bytes are a value.
///
/// # Safety
/// The type must be `repr(C)`, without padding, valid for any bytes, and start with a `u32` struct size.
pub(crate) unsafe trait Struct: Copy {
    /// Its name in the header.
    const NAME: &'static str;
    /// `size_of` it in the first release; callers never send less.
    const FIRST_SIZE: usize;
}

/// Copy a caller's struct, older (shorter: the rest is 0) or newer (longer: its tail must be 0).
///
/// # Safety
/// `pointer` must be NULL or readable for 4 bytes and for as many as its first 4 say.
pub(crate) unsafe fn read_struct<T: Struct>(pointer: *const T) -> Result<T> {
    const { assert!(T::FIRST_SIZE >= 8 && T::FIRST_SIZE <= size_of::<T>()) };
    let name = T::NAME;
    if pointer.is_null() {
        return Err(Error::argument(name, "NULL", "it must point to a struct", "Pass its address."));
    }
    // SAFETY: not NULL, and readable for 4 bytes by contract; alignment is not assumed.
    let size = unsafe { pointer.cast::<u32>().read_unaligned() } as usize;
    if size < T::FIRST_SIZE || size > 4096 {
        return Err(Error::argument(
            format_args!("{name}.struct_size"),
            size,
            format_args!("this library knows {} bytes", size_of::<T>()),
            format_args!("Set it to sizeof({name})."),
        ));
    }
    let known = size.min(size_of::<T>());
    let bytes = pointer.cast::<u8>();
    // SAFETY: the caller's struct is readable for `size` bytes, of which known..size is the tail.
    let tail = unsafe { std::slice::from_raw_parts(bytes.add(known), size - known) };
    if let Some(at) = tail.iter().position(|byte| *byte != 0) {
        return Err(Error::argument(
            format_args!("{name} byte {}", known + at),
            tail[at],
            format_args!("this library knows {} bytes of the struct and the rest must be 0", size_of::<T>()),
            "Use a newer library, or leave the newer field unset.",
        ));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` fits both sides; T is valid for any bytes (trait contract).
    unsafe {
        std::ptr::copy_nonoverlapping(bytes, value.as_mut_ptr().cast(), known);
        Ok(value.assume_init())
    }
}
