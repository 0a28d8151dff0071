//! The workspace that calls share when they bring none: one for the process, grown to the largest need.

use crate::error::{Error, Result};
use crate::workspace::WORKSPACE_ALIGNMENT;
use once_cell::sync::Lazy;
use parking_lot::Mutex;

#[repr(C, align(256))]
#[derive(Clone, Copy)]
struct Line([u8; WORKSPACE_ALIGNMENT as usize]);

static SHARED: Lazy<Mutex<Vec<Line>>> = Lazy::new(|| Mutex::new(Vec::new()));

/// Run `body` with `size` bytes at a 256-byte aligned address: the caller's own workspace, or, where `own` is NULL, the
/// shared one, held locked meanwhile.
///
/// # Errors
/// [`Error::WorkspaceTooSmall`] and [`Error::InvalidArgument`] (alignment) of the caller's workspace.
pub fn with_workspace<R>(own: *mut u8, own_size: u64, size: u64, body: impl FnOnce(*mut u8) -> R) -> Result<R> {
    if own.is_null() {
        let mut shared = SHARED.lock();
        let lines = size.div_ceil(WORKSPACE_ALIGNMENT) as usize;
        if shared.len() < lines {
            *shared = Vec::new(); // free before growing: contents mean nothing between calls
            *shared = vec![Line([0; WORKSPACE_ALIGNMENT as usize]); lines];
        }
        return Ok(body(shared.as_mut_ptr().cast()));
    }
    check_workspace(own, own_size, size)?;
    Ok(body(own))
}

/// The rules for a workspace that a caller brings, on every device.
pub fn check_workspace(own: *mut u8, own_size: u64, size: u64) -> Result<()> {
    let misaligned = own.addr() as u64 % WORKSPACE_ALIGNMENT;
    if misaligned != 0 {
        let rule = format!("it must be a multiple of {WORKSPACE_ALIGNMENT}, and is {misaligned} past one");
        return Err(Error::argument("workspace", format!("{own:p}"), rule, "Align the allocation."));
    }
    if own_size < size {
        let remedy = "Ask nvfp4_moe_layer_workspace_size or nvfp4_moe_linear_workspace_size for this many tokens.";
        return Err(Error::WorkspaceTooSmall { what: "workspace_size", given: own_size, needed: size, remedy });
    }
    Ok(())
}
