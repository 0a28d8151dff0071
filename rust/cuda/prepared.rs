// SPDX-License-Identifier: Apache-2.0
//! What a layer or linear has on a device: its weights, once prepared, and a little state.

use super::device::Device;
use super::memory::Buffer;
use super::storage::{ExpertSlice, LinearStorage};
use crate::call::Readiness;
use crate::error::Result;
use std::ffi::c_void;
use std::sync::Arc;

/// What a layer or linear keeps on the device beside its weights. Kernels read it when they run: a graph computes with what is
/// here then, not with what was here when it was captured.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct State {
    /// Largest finite inputs of GEMM1 and GEMM2 that calibration saw; -1 = none. A linear has the first.
    pub amax: [f32; 2],
    /// What a static policy quantises these inputs with; NaN = none, so that a graph that is run without one shows it.
    pub input_scales: [f32; 2],
    /// Scales that prepare refused.
    pub bad_scales: u64,
}

impl State {
    /// Nothing seen; with these input scales, of which 0 is none.
    pub fn new(input_scales: [f32; 2]) -> Self {
        State { amax: [-1.0; 2], input_scales: on_device(input_scales), bad_scales: 0 }
    }

    /// In memory of its own, with nothing in it.
    pub fn allocate(device: &Arc<Device>) -> Result<Buffer> {
        let state = device.allocate(size_of::<State>())?;
        // SAFETY: memory of that size, which nothing uses yet.
        unsafe { device.write_aside(state.pointer(), &[State::new([0.0; 2])]) }?;
        Ok(state)
    }

    /// The amaxes that all streams saw; forgets them. Waits for the device's work.
    pub fn take_amax(device: &Device, state: *mut State) -> Result<[f32; 2]> {
        let _entered = device.enter()?;
        device.synchronize()?;
        // SAFETY: the state of a living layer or linear, of which nothing writes the amaxes now.
        unsafe {
            let amax: *mut [f32; 2] = State::amax_at(state, 0).cast();
            let seen = device.read(amax.cast_const(), std::ptr::null_mut())?;
            device.write(amax, &[State::new([0.0; 2]).amax], std::ptr::null_mut())?;
            Ok(seen)
        }
    }

    /// Quantise with these from now on; 0 is none. Waits until they are on the device, and for no stream of the caller's.
    pub fn set_input_scales(device: &Device, state: *mut State, input_scales: [f32; 2]) -> Result<()> {
        let target = State::input_scale_at(state, 0).cast_mut();
        // SAFETY: the state of a living layer or linear; a kernel reads an aligned float whole.
        unsafe { device.write_aside(target, &on_device(input_scales)) }
    }

    /// Where a state at this address counts broken scales.
    pub fn bad_scales_at(state: *mut State) -> *mut u64 {
        state.wrapping_byte_add(std::mem::offset_of!(State, bad_scales)).cast()
    }

    /// Where a state at this address has the amax of GEMM1's input, or, with 1, of GEMM2's.
    pub fn amax_at(state: *mut State, gemm: usize) -> *mut f32 {
        state.wrapping_byte_add(std::mem::offset_of!(State, amax)).cast::<f32>().wrapping_add(gemm)
    }

    /// The same of the input scale.
    pub fn input_scale_at(state: *mut State, gemm: usize) -> *const f32 {
        state.wrapping_byte_add(std::mem::offset_of!(State, input_scales)).cast::<f32>().wrapping_add(gemm)
    }
}

fn on_device(input_scales: [f32; 2]) -> [f32; 2] {
    input_scales.map(|scale| if scale == 0.0 { f32::NAN } else { scale })
}

/// Prepared weights in a caller's storage.
#[derive(Debug, Clone, Copy, Default)]
pub enum Weights {
    /// Never any.
    #[default]
    None,
    /// Some were being written when the driver failed.
    HalfWritten,
    /// At this address.
    At(DevicePointer),
}

/// Device memory that only kernels read, and prepare writes.
#[derive(Debug, Clone, Copy)]
pub struct DevicePointer(pub *mut u8);

// SAFETY: an address; whoever launches a kernel vouches for what is there.
unsafe impl Send for DevicePointer {}
// SAFETY: the same.
unsafe impl Sync for DevicePointer {}

impl Weights {
    /// Their first byte. The facade refuses calls of what has none.
    pub fn storage(self) -> *mut u8 {
        match self {
            Weights::At(DevicePointer(storage)) => storage,
            Weights::None | Weights::HalfWritten => std::ptr::null_mut(),
        }
    }

    /// As backends say it.
    pub fn readiness(self) -> Readiness {
        match self {
            Weights::None => Readiness::NeverPrepared,
            Weights::HalfWritten => Readiness::HalfWritten,
            Weights::At(_) => Readiness::Ready,
        }
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
    /// What prepare left.
    pub weights: Weights,
}

/// A linear on its device.
#[derive(Debug)]
pub struct PreparedLinear {
    /// Where it is.
    pub device: Arc<Device>,
    /// How its weight lies.
    pub layout: LinearStorage,
    /// A [`State`].
    pub state: Buffer,
    /// What prepare left.
    pub weights: Weights,
}

impl PreparedLinear {
    /// bf16 `[out_features]`; zeros where none was given.
    pub fn bias(&self) -> *const c_void {
        self.layout.bias.pointer(self.weights.storage()).cast_const().cast()
    }
}
