//! Turns `include/nvfp4_moe.h` into Rust declarations, so that drift between header and code does not compile.

mod build_kernels;

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=rust/build.rs");
    println!("cargo:rerun-if-changed=include/nvfp4_moe.h");
    println!("cargo:rerun-if-env-changed=LIBCLANG_PATH");
    find_libclang();

    // Types and constants apart from functions: the exports define the functions, and the two are compared.
    write_bindings("header.rs", |builder| builder.ignore_functions().derive_default(true).layout_tests(true));
    write_bindings("prototypes.rs", |builder| builder.blocklist_type(".*").blocklist_var(".*"));
    write_kernel_params();
    build_kernels::build(&out_dir());
}

fn out_dir() -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default())
}

/// What Rust hands to kernels is what `kernels/all_params.h` says.
fn write_kernel_params() {
    let mut builder = bindgen::Builder::default()
        .header("kernels/all_params.h")
        .allowlist_file(".*params\\.h")
        .derive_default(true)
        .layout_tests(false);
    if let Some(include) = command_line("cc", &["-print-file-name=include"]) {
        builder = builder.clang_arg(format!("-isystem{include}"));
    }
    let bindings = builder.generate().unwrap_or_else(|e| panic!("kernels/all_params.h: {e}"));
    bindings.write_to_file(out_dir().join("params.rs")).unwrap_or_else(|e| panic!("params.rs: {e}"));
}

fn write_bindings(file: &str, choose: impl FnOnce(bindgen::Builder) -> bindgen::Builder) {
    let mut builder = bindgen::Builder::default()
        .header("include/nvfp4_moe.h")
        .allowlist_file(".*nvfp4_moe\\.h")
        .blocklist_type("CUstream_st")
        .opaque_type("nvfp4_moe_(layer|linear|checkpoint)");
    // PyPI's libclang and Debian's libclang1 come without stddef.h: lend them the C compiler's.
    if let Some(include) = command_line("cc", &["-print-file-name=include"]) {
        builder = builder.clang_arg(format!("-isystem{include}"));
    }
    let bindings = choose(builder).generate().unwrap_or_else(|e| panic!("include/nvfp4_moe.h: {e}"));
    let out = out_dir().join(file);
    bindings.write_to_file(&out).unwrap_or_else(|e| panic!("{}: {e}", out.display()));
}

/// bindgen loads libclang at run time. Where neither LIBCLANG_PATH nor the system has one, take that of a Python
/// package (`pip install libclang`), looking into the project's `.venv` first, so that plain `cargo build` works.
fn find_libclang() {
    if env::var_os("LIBCLANG_PATH").is_some() {
        return;
    }
    let code = "import clang, os; print(os.path.join(list(clang.__path__)[0], 'native'))";
    for python in [".venv/bin/python", "python3"] {
        if let Some(dir) = command_line(python, &["-c", code])
            && PathBuf::from(&dir).join("libclang.so").exists()
        {
            // SAFETY: build scripts start single-threaded and nothing has read the environment concurrently.
            unsafe { env::set_var("LIBCLANG_PATH", dir) };
            return;
        }
    }
}

fn command_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
