// SPDX-License-Identifier: Apache-2.0
//! Scratch memory: one walk computes sizes and places, so that they cannot disagree.

use crate::call::Workspace;
use crate::error::{Error, Result};
use std::marker::PhantomData;

/// Workspaces, and every region in them, start at a multiple of this.
pub const WORKSPACE_ALIGNMENT: u64 = 256;

/// `len` values of `T` at a byte offset of the workspace.
#[derive(Debug)]
pub struct Region<T> {
    /// Bytes from the start of the workspace; a multiple of [`WORKSPACE_ALIGNMENT`].
    pub offset: u64,
    /// Number of values.
    pub len: usize,
    marker: PhantomData<T>,
}

impl<T> Clone for Region<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Region<T> {}

impl<T> Default for Region<T> {
    /// No values.
    fn default() -> Self {
        Region { offset: 0, len: 0, marker: PhantomData }
    }
}

impl<T> Region<T> {
    /// The region's first value in a workspace at `base`.
    pub fn pointer(&self, base: *mut u8) -> *mut T {
        base.wrapping_add(self.offset as usize).cast()
    }
}

/// Lays regions out one after another.
#[derive(Debug, Default, Clone)]
pub struct Walk {
    end: u64,
}

impl Walk {
    /// The next region.
    pub fn region<T>(&mut self, len: usize) -> Region<T> {
        let region = Region { offset: self.end, len, marker: PhantomData };
        self.end = (self.end + (len * size_of::<T>()) as u64).next_multiple_of(WORKSPACE_ALIGNMENT);
        region
    }

    /// Bytes walked so far: the size of the workspace.
    pub fn size(&self) -> u64 {
        self.end
    }
}

/// The rules for a workspace that a caller brings, on every device.
pub fn check_workspace(own: Workspace, size: u64) -> Result<()> {
    let (own, own_size) = (own.pointer, own.size);
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
