// SPDX-License-Identifier: Apache-2.0
//! What bindgen reads out of the C headers is committed in `rust/bindings/`, so that building needs no libclang. Here it
//! is made again and compared; `UPDATE=1 cargo test --test bindings` writes it.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::{env, fs, process::Command};

const ABI_HEADER: &str = "include/nvfp4_moe.h";
/// Includes every header with parameters of kernels.
const KERNELS_HEADER: &str = "kernels/all_params.h";

/// What every binding starts from: the header's own declarations, and none of those it includes.
fn builder(header: &str, files: &str) -> bindgen::Builder {
    static LIBCLANG: Once = Once::new();
    LIBCLANG.call_once(find_libclang);
    let note = format!("// {header} in Rust, by bindgen. Made again by: UPDATE=1 cargo test --test bindings");
    bindgen::Builder::default()
        .header(header)
        .allowlist_file(files)
        .clang_args(compiler_headers().map(|folder| format!("-isystem{}", folder.display())))
        .disable_header_comment()
        .raw_line(note)
}

fn abi_builder() -> bindgen::Builder {
    let handles = "nvfp4_moe_(layer|linear|checkpoint)";
    let files = r".*include/nvfp4_moe(_checkpoint)?\.h";
    builder(ABI_HEADER, files).blocklist_type("CU(stream|event)_st").opaque_type(handles)
}

/// PyPI's libclang and Debian's libclang1 come without stddef.h: lend them the C compiler's.
fn compiler_headers() -> Option<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let compiler = cc::Build::new().target(&target).host(&target).opt_level(0).cargo_metadata(false).get_compiler();
    output_of(compiler.to_command().arg("-print-file-name=include")).map(PathBuf::from)
}

/// bindgen loads libclang at run time. Where LIBCLANG_PATH names none, take that of the Python package (in
/// tests/requirements.txt), of the project's `.venv` first; where there is none either, bindgen looks in the system.
fn find_libclang() {
    if env::var_os("LIBCLANG_PATH").is_some() {
        return;
    }
    let code = "import clang, os; print(os.path.join(list(clang.__path__)[0], 'native'))";
    let folders = [".venv/bin/python", "python3"].map(|python| output_of(Command::new(python).args(["-c", code])));
    if let Some(folder) = folders.into_iter().flatten().find(|folder| Path::new(folder).join("libclang.so").exists()) {
        // SAFETY: under the Once that every user of the environment in this program waits for.
        unsafe { env::set_var("LIBCLANG_PATH", folder) };
    }
}

fn output_of(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn check(file: &str, builder: bindgen::Builder) {
    let made = builder.generate().unwrap_or_else(|error| panic!("{file}: {error}")).to_string();
    let path = Path::new("rust/bindings").join(file);
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &made).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let committed = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let differs = committed.lines().zip(made.lines()).position(|(committed, made)| committed != made);
    assert!(
        made == committed,
        "{} is not what its header gives, from line {} on. Run: UPDATE=1 cargo test --test bindings",
        path.display(),
        differs.unwrap_or(committed.lines().count().min(made.lines().count())) + 1,
    );
}

/// Types and constants apart from functions: the exports define the functions, and prototypes.rs compares the two.
#[test]
fn types_and_constants_are_the_headers() {
    check("header.rs", abi_builder().ignore_functions().derive_default(true).layout_tests(true));
}

#[test]
fn prototypes_are_the_headers() {
    check("prototypes.rs", abi_builder().blocklist_type(".*").blocklist_var(".*"));
}

/// What Rust hands to kernels is what their headers say.
#[test]
fn kernel_params_are_the_headers() {
    check("kernel_params.rs", builder(KERNELS_HEADER, r".*params\.h").derive_default(true).layout_tests(false));
}

/// A build script that runs bindgen fails where there is no libclang.
#[test]
fn building_needs_no_libclang() {
    let manifest = include_str!("../../Cargo.toml");
    let build = manifest.split("[build-dependencies]").nth(1).unwrap_or_default();
    assert!(!build.split("\n[").next().unwrap_or_default().contains("bindgen"));
}
