// SPDX-License-Identifier: Apache-2.0
//! Workspaces for calls that bring none: a call takes an idle one and gives it back, or makes one. So there are as many as
//! calls ever ran at once, each of the largest size that was asked of it, and no call waits for another.

use crate::call::Workspace;
use crate::error::{Error, Result};
use crate::process::PerProcess;
use crate::workspace::{WORKSPACE_ALIGNMENT, check_workspace};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Those that no call uses.
static IDLE: PerProcess<Mutex<Vec<Scratch>>> = PerProcess::new();

fn idle() -> MutexGuard<'static, Vec<Scratch>> {
    IDLE.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Run `body` with `size` bytes at a 256-byte aligned address: the caller's own workspace, or, where `own` has none, one
/// of the library's.
///
/// # Errors
/// [`Error::WorkspaceTooSmall`] and [`Error::InvalidArgument`] (alignment) of the caller's workspace;
/// [`Error::OutOfMemory`].
pub fn with_workspace<R>(own: Workspace, size: u64, body: impl FnOnce(*mut u8) -> R) -> Result<R> {
    if own.pointer.is_null() {
        let scratch = take(size as usize)?;
        let result = body(scratch.aligned());
        give_back(scratch);
        return Ok(result);
    }
    check_workspace(own, size)?;
    Ok(body(own.pointer))
}

/// An idle one that is large enough, or a new one in the place of one that is not.
fn take(size: usize) -> Result<Scratch> {
    let too_small = {
        let mut idle = idle();
        match idle.iter().rposition(|scratch| scratch.size() >= size) {
            Some(at) => return Ok(idle.swap_remove(at)),
            None => idle.pop(),
        }
    };
    drop(too_small); // before the new one is made: contents mean nothing between calls
    Scratch::new(size)
}

fn give_back(scratch: Scratch) {
    let mut idle = idle();
    if idle.try_reserve(1).is_ok() {
        idle.push(scratch);
    }
}

/// Memory of our own, which reads as zeros until it is written.
struct Scratch {
    memory: *mut u8,
    layout: Layout,
}

// SAFETY: memory that its owner alone uses.
unsafe impl Send for Scratch {}

impl Scratch {
    /// Aligned by hand, because the system clears memory of its own alignment without touching it.
    fn new(size: usize) -> Result<Self> {
        let refused = Error::OutOfMemory { name: "workspace_size", len: size, bytes: size };
        let with_slack = size.saturating_add(WORKSPACE_ALIGNMENT as usize);
        let Ok(layout) = Layout::from_size_align(with_slack, 16) else { return Err(refused) };
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() { Err(refused) } else { Ok(Scratch { memory, layout }) }
    }

    fn size(&self) -> usize {
        self.layout.size() - WORKSPACE_ALIGNMENT as usize
    }

    fn aligned(&self) -> *mut u8 {
        self.memory.wrapping_add(self.memory.align_offset(WORKSPACE_ALIGNMENT as usize))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout, and freed once.
        unsafe { dealloc(self.memory, self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Workspace = Workspace { pointer: std::ptr::null_mut(), size: 0 };

    /// Once a deadlock: a thread that waits for its own workers may be handed another call to work on.
    #[test]
    fn a_call_within_a_call_has_another_workspace() {
        let inner = |outer: *mut u8| {
            with_workspace(NONE, 1 << 10, |inner| {
                assert_ne!(inner, outer);
                assert!([inner, outer].iter().all(|base| base.addr().is_multiple_of(256)));
            })
        };
        with_workspace(NONE, 1 << 12, inner).unwrap().unwrap();
    }

    #[test]
    fn more_than_there_is_is_refused_with_its_bytes() {
        let error = with_workspace(NONE, 1 << 60, |_| ()).unwrap_err();
        assert_eq!(error, Error::OutOfMemory { name: "workspace_size", len: 1 << 60, bytes: 1 << 60 });
    }
}
