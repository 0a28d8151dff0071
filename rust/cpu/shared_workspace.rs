// SPDX-License-Identifier: Apache-2.0
//! The workspace that calls share when they bring none: one for the process, grown to the largest need.

use crate::call::Workspace;
use crate::error::Result;
use crate::workspace::{WORKSPACE_ALIGNMENT, check_workspace};
use once_cell::sync::Lazy;
use parking_lot::Mutex;

#[repr(C, align(256))]
#[derive(Clone, Copy)]
struct Line([u8; WORKSPACE_ALIGNMENT as usize]);

static SHARED: Lazy<Mutex<Vec<Line>>> = Lazy::new(|| Mutex::new(Vec::new()));

/// Run `body` with `size` bytes at a 256-byte aligned address: the caller's own workspace, or, where `own` has none, the
/// shared one, held locked meanwhile.
///
/// # Errors
/// [`Error::WorkspaceTooSmall`] and [`Error::InvalidArgument`] (alignment) of the caller's workspace.
pub fn with_workspace<R>(own: Workspace, size: u64, body: impl FnOnce(*mut u8) -> R) -> Result<R> {
    if own.pointer.is_null() {
        let mut shared = SHARED.lock();
        let lines = size.div_ceil(WORKSPACE_ALIGNMENT) as usize;
        if shared.len() < lines {
            *shared = Vec::new(); // free before growing: contents mean nothing between calls
            *shared = vec![Line([0; WORKSPACE_ALIGNMENT as usize]); lines];
        }
        return Ok(body(shared.as_mut_ptr().cast()));
    }
    check_workspace(own, size)?;
    Ok(body(own.pointer))
}
