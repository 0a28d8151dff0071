// SPDX-License-Identifier: Apache-2.0
//! Compiles the CUDA kernels and names the shared library. A machine without nvcc needs cargo and a C linker only: what
//! bindgen reads out of the C headers is committed in `rust/bindings/`, and `tests/rust/bindings.rs` keeps it equal to them.

mod build_kernels;
mod build_nvcc;

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=rust/build.rs");
    build_kernels::build(&PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()));
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        // What programs ask for at run time: a name for each ABI, not for each release (nvfp4_moe.h, "ABI").
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libnvfp4_moe.so.0");
    }
}
