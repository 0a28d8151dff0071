// SPDX-License-Identifier: Apache-2.0
//! What a layer or linear has on a device: its weights, once prepared, and a little state.

use super::device::{Buffer, Device};
use super::storage::{ExpertSlice, LinearStorage};
use crate::error::Result;
use std::ffi::c_void;
use std::sync::Arc;

/// What a layer or linear keeps on the device beside its weights.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct State {
    /// Largest finite inputs of GEMM1 and GEMM2 that calibration saw; -1 = none. A linear has the first.
    pub amax: [f32; 2],
    /// Scales that prepare refused.
    pub bad_scales: u64,
}

impl Default for State {
    fn default() -> Self {
        State { amax: [-1.0; 2], bad_scales: 0 }
    }
}

impl State {
    /// The amaxes that all streams saw; forgets them. Waits for the device's work.
    pub fn take_amax(device: &Device, state: *mut State) -> Result<[f32; 2]> {
        let _entered = device.enter()?;
        device.synchronize()?;
        // SAFETY: the state of a living layer or linear, which nothing writes now.
        let seen = unsafe { device.read(state.cast_const(), std::ptr::null_mut()) }?;
        // SAFETY: the same memory.
        unsafe { device.write(state, &[State::default()], std::ptr::null_mut()) }?;
        Ok(seen.amax)
    }

    /// Where a state at this address counts broken scales.
    pub fn bad_scales_at(state: *mut State) -> *mut u64 {
        state.wrapping_byte_add(std::mem::offset_of!(State, bad_scales)).cast()
    }

    /// Where a state at this address has the amax of GEMM1's input, or, with 1, of GEMM2's.
    pub fn amax_at(state: *mut State, gemm: usize) -> *mut f32 {
        state.wrapping_byte_add(std::mem::offset_of!(State, amax)).cast::<f32>().wrapping_add(gemm)
    }
}

/// A layer on its device.
#[derive(Debug)]
pub struct PreparedLayer {
    /// Where it is.
    pub device: Arc<Device>,
    /// How an expert's weights lie.
    pub slice: ExpertSlice,
    /// A [`State`].
    pub state: Buffer,
    /// Prepared weights; NULL before prepare.
    pub storage: *mut u8,
}

// SAFETY: `storage` is device memory that only kernels read.
unsafe impl Send for PreparedLayer {}
// SAFETY: shared use only launches kernels.
unsafe impl Sync for PreparedLayer {}

/// A linear on its device.
#[derive(Debug)]
pub struct PreparedLinear {
    /// Where it is.
    pub device: Arc<Device>,
    /// How its weight lies.
    pub layout: LinearStorage,
    /// A [`State`].
    pub state: Buffer,
    /// The prepared weight; NULL before prepare.
    pub storage: *mut u8,
    /// Was a bias given?
    pub has_bias: bool,
}

// SAFETY: `storage` is device memory that only kernels read.
unsafe impl Send for PreparedLinear {}
// SAFETY: shared use only launches kernels.
unsafe impl Sync for PreparedLinear {}

impl PreparedLinear {
    /// bf16 `[out_features]`, or NULL.
    pub fn bias(&self) -> *const c_void {
        let bias = self.layout.bias.pointer(self.storage);
        if self.has_bias { bias.cast_const().cast() } else { std::ptr::null() }
    }
}
