// SPDX-License-Identifier: Apache-2.0
//! Compiles the CUDA kernels. A machine without nvcc needs cargo and a C linker only: what bindgen reads out of the C
//! headers is committed in `rust/bindings/`, and `tests/rust/bindings.rs` keeps it equal to them.

mod build_kernels;

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=rust/build.rs");
    build_kernels::build(&PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()));
}

fn command_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
