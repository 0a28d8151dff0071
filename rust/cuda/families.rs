// SPDX-License-Identifier: Apache-2.0
//! The list of families, and which GPU runs which.

use super::family::Family;
use super::hopper::Hopper;
use super::kernels::{NEUTRAL, Row};
use super::portable::Portable;
use super::sm100::Sm100;
use super::sm120::Sm120;
use crate::config::KernelChoice;
use crate::error::{Error, Result};

/// Every family. Its place is that of its table of kernels, counted from 1 (`Kernel::of`).
pub static ALL: [&dyn Family; 4] = [&Hopper, &Portable, &Sm100, &Sm120];

/// Compute capabilities on which those who made the kernels ran them; any other is tested before its first use.
const PROVED: [(i32, i32); 1] = [(9, 0)];

/// Is it one of these?
pub fn is_proved(capability: (i32, i32)) -> bool {
    PROVED.contains(&capability)
}

/// The tables of kernels of a GPU, in their places: the neutral one, then each family's, empty where it does not run.
pub fn tables(capability: (i32, i32)) -> impl Iterator<Item = &'static [Row]> {
    let families = ALL.into_iter();
    std::iter::once(NEUTRAL).chain(families.map(move |it| if it.runs_on(capability) { it.kernels() } else { &[] }))
}

/// The family that a choice names whatever the GPU; what it refuses, it refuses before a device is opened.
pub fn named(choice: KernelChoice) -> Option<&'static dyn Family> {
    match choice {
        KernelChoice::Portable => Some(&Portable),
        KernelChoice::Own => None,
    }
}

/// Which GPU runs what. Never other kernels in the place of those that were asked for: their numbers and layouts differ.
pub fn choose(ordinal: i32, choice: KernelChoice, capability: (i32, i32)) -> Result<&'static dyn Family> {
    let own = || ALL.into_iter().find(|family| family.is_own() && family.runs_on(capability));
    named(choice).or_else(own).ok_or_else(|| {
        let (major, minor) = capability;
        Error::Unsupported(format!(
            "device_kind is 1 (kernels made for the GPU); they need compute capability 9.0, 10.x or 12.x, and CUDA \
             device {ordinal} has {major}.{minor}. Pass 2, the portable kernels (cuda-portable), which need 8.0 or later."
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::kernels::{self, IMAGES};
    use crate::cuda::{hopper, portable, sm100, sm120};

    fn all_rows() -> impl Iterator<Item = &'static Row> {
        std::iter::once(NEUTRAL).chain(ALL.into_iter().map(Family::kernels)).flatten()
    }

    #[test]
    fn tables_and_modules_name_each_other() {
        assert_eq!(IMAGES.is_empty(), crate::BUILT_IN == "cpu");
        if IMAGES.is_empty() {
            return; // a build without nvcc
        }
        assert_eq!(crate::BUILT_IN.split(' ').count(), 1 + ALL.len(), "cpu, and each family");
        for row in all_rows() {
            assert!(IMAGES.iter().any(|image| image.name == row.module), "kernels/{}.cu was not built", row.module);
        }
        for image in IMAGES {
            assert!(all_rows().any(|row| row.module == image.name), "{} has no kernel", image.name);
        }
        let mut names: Vec<_> = all_rows().map(|row| row.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a kernel has one row");
    }

    #[test]
    fn kernels_find_themselves() {
        let tables: Vec<_> = std::iter::once(NEUTRAL).chain(ALL.into_iter().map(Family::kernels)).collect();
        let own = [hopper::PREPARE_TILES, portable::SWIGLU_ROWS, sm100::PREPARE_TILES, sm120::PREPARE_TILES];
        for kernel in [kernels::ROUTE_SMALL, kernels::PREPARE_ROW_ALPHAS].into_iter().chain(own) {
            let (table, index) = kernel.place();
            assert_eq!(tables[table][index].name, kernel.row().name);
        }
    }

    #[test]
    fn a_gpu_has_its_own_kernels_or_an_error() {
        for capability in [(9, 0), (10, 0), (10, 3), (12, 0), (12, 1)] {
            assert!(choose(0, KernelChoice::Own, capability).is_ok_and(Family::is_own));
            assert!(choose(0, KernelChoice::Portable, capability).is_ok_and(|family| !family.is_own()));
        }
        for capability in [(8, 0), (8, 9), (11, 0), (13, 0)] {
            assert!(choose(0, KernelChoice::Own, capability).is_err());
            assert!(choose(0, KernelChoice::Portable, capability).is_ok_and(|family| !family.is_own()));
        }
    }
}
