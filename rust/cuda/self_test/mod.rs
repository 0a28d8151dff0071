// SPDX-License-Identifier: Apache-2.0
//! The guard of a chip that no author ever ran the kernels on: before the first layer or linear is handed out there, its own
//! kernels compute what the portable ones compute on the same data, bit for bit, with every size of their tiles.
//!
//! Once for a device and a process, on a stream of no caller's, beside any capture; Hopper's kernels, forced, take under
//! 0.1 s (H200, 2026-11-30). What is different is refused with its numbers; what the driver refuses is an error, and the next
//! create tries again.

mod cases;
mod compare;
mod data;
#[cfg(test)]
mod tests;

use super::device::{Device, Verdict};
use super::devices;
use super::driver::Relaxed;
use super::families;
use super::family::Family;
use crate::config::{KernelChoice, Mode, ScalePolicy};
use crate::error::{Error, Result};
use cases::LinearCase;
use compare::{Bench, Outcome};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What the portable kernels have, too.
const COMPUTATIONS: [(Mode, ScalePolicy); 3] =
    [(Mode::Bf16, ScalePolicy::Static), (Mode::Nvfp4, ScalePolicy::Static), (Mode::Nvfp4, ScalePolicy::Dynamic)];

/// Test a device's own kernels, unless that was done, or its like was proved by those who made them.
pub fn before_first_use(ordinal: i32, choice: KernelChoice, mode: Mode) -> Result<()> {
    if choice != KernelChoice::Own {
        return Ok(());
    }
    let (device, family) = devices::with_family(ordinal, choice)?;
    if families::is_proved(device.capability) {
        return Ok(());
    }
    let mut verdict = device.verdict.lock();
    if verdict.is_none() {
        *verdict = Some(run(ordinal, &device, family, false)?);
    }
    match &*verdict {
        Some(Verdict::Wrong(difference)) => Err(wrong(ordinal, &device, difference)),
        _ if mode == Mode::Fp8 && family.check_mode(ordinal, mode).is_ok() => Err(unproved_fp8(ordinal, &device)),
        _ => Ok(()),
    }
}

/// The same on any device, whatever it is and however often it was asked.
pub fn forced(ordinal: i32, is_planted: bool) -> Result<()> {
    let (device, family) = devices::with_family(ordinal, KernelChoice::Own)?;
    match run(ordinal, &device, family, is_planted)? {
        Verdict::Right => Ok(()),
        Verdict::Wrong(difference) => Err(wrong(ordinal, &device, &difference)),
    }
}

fn run(ordinal: i32, device: &Arc<Device>, family: &'static dyn Family, is_planted: bool) -> Result<Verdict> {
    let _entered = device.enter()?;
    let _relaxed = Relaxed::capture()?;
    let bench = Bench { device: device.clone(), ordinal, family, is_planted };
    compare_all(&bench).map_err(|error| match error {
        Error::Cuda(text) => {
            Error::Cuda(format!("{text} It failed in the self-test. Pass 2 (cuda-portable) in a new process."))
        }
        other => other,
    })
}

/// Every layer and linear, in every mode that both families have.
fn compare_all(bench: &Bench) -> Result<Verdict> {
    let (layers, linear) = (cases::layers()?, LinearCase::new());
    let mut has_proved_finer_tiles = true;
    let mut linears = 0;
    let has = |(mode, _): &(Mode, ScalePolicy)| bench.family.check_mode(bench.ordinal, *mode).is_ok();
    for computation in COMPUTATIONS.into_iter().filter(has) {
        let mut compared = 0;
        let of_layers = layers.iter().map(|case| bench.compare_layer(case, computation));
        for (outcome, count) in
            of_layers.map(|outcome| (outcome, true)).chain([(bench.compare_linear(&linear, computation), false)])
        {
            match outcome? {
                Outcome::Refused => continue,
                Outcome::Different(text) => return Ok(Verdict::Wrong(text)),
                Outcome::EqualWithoutFiner => has_proved_finer_tiles = false,
                Outcome::Equal => {}
            }
            *(if count { &mut compared } else { &mut linears }) += 1;
        }
        if compared == 0 {
            return Ok(Verdict::Wrong(format!("mode {computation:?}: 0 layers could be compared; 1 must")));
        }
    }
    if linears == 0 {
        return Ok(Verdict::Wrong("0 linears could be compared; 1 must".to_owned()));
    }
    bench.device.has_proved_finer_tiles.store(has_proved_finer_tiles, Ordering::Relaxed);
    Ok(Verdict::Right)
}

fn wrong(ordinal: i32, device: &Device, difference: &str) -> Error {
    let (major, minor) = device.capability;
    Error::Unsupported(format!(
        "device_kind is 1 (own kernels), which fail their self-test on CUDA device {ordinal} (compute capability \
         {major}.{minor}): {difference}. Pass 2, the portable kernels (cuda-portable), and send this text to the authors."
    ))
}

fn unproved_fp8(ordinal: i32, device: &Device) -> Error {
    let (major, minor) = device.capability;
    Error::Unsupported(format!(
        "mode is 3 (fp8) on CUDA device {ordinal} (compute capability {major}.{minor}); it runs where the kernels were \
         proved, because the self-test has nothing to compare it with. Use mode nvfp4 or bf16."
    ))
}
