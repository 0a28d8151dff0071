// SPDX-License-Identifier: Apache-2.0
//! How a call of C ends: with a status, and after a failure with the thread's last error.

use super::header;
use crate::error::{Error, Result};
use crate::panics::quietly;
use std::cell::RefCell;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Run one export: errors and panics become a status code and the thread's last error.
pub(crate) fn guard(body: impl FnOnce() -> Result<()>) -> i32 {
    // Every handle's state stays consistent across an unwind: outputs are written last, locks do not poison.
    let result = quietly(|| catch_unwind(AssertUnwindSafe(body))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(Error::Internal(format!("internal error: {}. Please report it.", text.unwrap_or("panic without a text"))))
    });
    match result {
        Ok(()) => header::NVFP4_MOE_OK as i32,
        Err(error) => {
            let code = status_code(&error);
            // A thread that is ending has no last error any more; its calls still have their status.
            let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = error.to_string());
            code
        }
    }
}

/// As [`guard`], for exports that answer with a value: `fallback` after a panic.
pub(crate) fn guard_value<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    quietly(|| catch_unwind(AssertUnwindSafe(body))).unwrap_or(fallback)
}

/// The thread's last error; empty where it never failed.
pub(crate) fn last_error() -> String {
    LAST_ERROR.try_with(|last| last.borrow().clone()).unwrap_or_default()
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
        Error::OutOfMemory { .. } => header::NVFP4_MOE_OUT_OF_MEMORY,
    }) as i32
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_internal_with_its_text() {
        assert_eq!(guard(|| panic!("row {} is missing", 7)), 8);
        assert!(last_error().contains("row 7 is missing"), "{}", last_error());
        assert_eq!(guard(|| panic!("no numbers")), 8);
        assert!(last_error().contains("no numbers"), "{}", last_error());
        assert_eq!(guard(|| Ok(())), 0);
        assert!(last_error().contains("no numbers"), "a success clears nothing");
        assert_eq!(guard(|| Err(Error::argument("k", 0, "it must be at least 1", "Pass top_k."))), 1);
        assert_eq!(last_error(), "k is 0; it must be at least 1. Pass top_k.");
        assert_eq!(guard_value(u64::MAX, || panic!("a value")), u64::MAX);
    }

    /// In a process of its own, whose stderr can be read: the host's panics are told there as before.
    #[test]
    fn a_panic_prints_nothing_and_the_hosts_still_do() {
        let mut child = std::process::Command::new("/proc/self/exe");
        let arguments = ["abi::guard::tests::panics_of_all_kinds", "--exact", "--ignored", "--nocapture"];
        let done = child.args(arguments).output().unwrap();
        let printed = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && printed.contains("a panic of the host's"), "{printed}");
        assert!(!printed.contains("a panic of ours") && !printed.contains("a panic of a worker"), "{printed}");
    }

    #[test]
    #[ignore = "run by a_panic_prints_nothing_and_the_hosts_still_do"]
    fn panics_of_all_kinds() {
        assert_eq!(guard(|| panic!("a panic of ours")), 8);
        assert_eq!(guard(|| crate::threads::run(|| panic!("a panic of a worker"))), 8);
        assert!(last_error().contains("a panic of a worker"), "{}", last_error());
        catch_unwind(|| panic!("a panic of the host's")).unwrap_err();
    }

    #[test]
    fn text_is_cut_at_a_character_and_terminated() {
        let text = "a\u{e9}b"; // 1 + 2 + 1 bytes
        for (size, wanted) in [(0, ""), (1, ""), (2, "a"), (3, "a"), (4, "a\u{e9}"), (5, text), (9, text)] {
            let mut buf = [0xff_u8; 9];
            // SAFETY: buf is as long as is said, or longer.
            assert_eq!(unsafe { copy_text(text, buf.as_mut_ptr().cast(), size) }, 4);
            let written = if size == 0 { 0 } else { wanted.len() + 1 };
            assert_eq!(&buf[..wanted.len()], wanted.as_bytes());
            assert!(size == 0 || buf[wanted.len()] == 0);
            assert!(buf[written..].iter().all(|byte| *byte == 0xff), "{buf:?}");
        }
        // SAFETY: NULL.
        assert_eq!(unsafe { copy_text(text, std::ptr::null_mut(), 9) }, 4);
    }
}
