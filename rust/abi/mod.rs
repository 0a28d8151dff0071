// SPDX-License-Identifier: Apache-2.0
//! The C ABI: `include/nvfp4_moe.h` in Rust. Exports hold no logic: a [`guard`] around one call.

mod checkpoint;
mod checks;
mod export_macro;
mod format;
mod guard;
mod handles;
mod layer;
mod library;
mod linear;
mod prototypes;
mod status;
mod structs;

use crate::memory::vec_for;
use checks::*;
use export_macro::exports;
use guard::{copy_text, guard, guard_value, last_error};
use handles::{Opaque, create, destroy, exclusive, shared};
use structs::{read_struct, write_struct};

/// The exported functions, for Rust callers: tests, benchmarks, fuzz targets. Left out of the documentation, because
/// `include/nvfp4_moe.h` is their manual.
#[doc(hidden)]
pub mod exports {
    pub use super::checkpoint::*;
    pub use super::format::*;
    pub use super::layer::*;
    pub use super::library::*;
    pub use super::linear::*;
    pub use super::status::*;
}

/// The header's types and constants, as bindgen reads them; the header documents them.
#[allow(non_camel_case_types, missing_docs, clippy::undocumented_unsafe_blocks)]
pub mod header {
    /// A CUDA stream; NULL on the CPU.
    pub enum CUstream_st {}
    /// A CUDA event.
    pub enum CUevent_st {}

    include!("../bindings/header.rs");
}
