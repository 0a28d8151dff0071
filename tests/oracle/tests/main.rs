// SPDX-License-Identifier: Apache-2.0
//! What C++ and Rust both state, compared. One program, because each that links the library optimises it anew.

mod format;
#[path = "../../rust/golden_files.rs"]
mod golden_files;
mod layout;
mod segments;
mod sm100;
mod sm120;
mod tiles;
