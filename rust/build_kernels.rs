// SPDX-License-Identifier: Apache-2.0
//! Compiles `kernels/` to fat binaries that the library embeds. Without nvcc the build is CPU-only, and says so.

use std::path::{Path, PathBuf};
use std::{env, fs, process::Command};

/// A source file under `kernels/`, without `.cu`, and the GPUs it is compiled for. The folder says which: a family's own
/// GPUs, or every supported one.
const MODULES: [(&str, &[&str]); 13] = [
    ("route/route", EVERY_GPU),
    ("quantize/quantize", EVERY_GPU),
    ("calibrate/amax", EVERY_GPU),
    ("combine/combine", EVERY_GPU),
    ("prepare/alphas", EVERY_GPU),
    ("prepare/check", EVERY_GPU),
    ("portable/activation", EVERY_GPU),
    ("portable/gemm", EVERY_GPU),
    ("portable/prepare", EVERY_GPU),
    ("hopper/gemm", HOPPER),
    ("hopper/prepare", HOPPER),
    ("hopper/quantize_fp8", HOPPER),
    ("hopper/scales_fp8", HOPPER),
];
const EVERY_GPU: &[&str] = &["80", "90", "100f", "120f"];
const HOPPER: &[&str] = &["90a"];

/// Write `kernels.rs` (the list of modules) and, where there is an nvcc, the fat binaries it includes.
pub fn build(out: &Path) {
    println!("cargo:rerun-if-changed=rust/build_kernels.rs");
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rustc-check-cfg=cfg(nvfp4_kernels)");
    let Some(nvcc) = find_nvcc() else {
        println!(
            "cargo:warning=nvcc was not found: building for the CPU only (set NVFP4_MOE_CUDA_HOME to a CUDA 13 toolkit)"
        );
        return write_list(out, &[]);
    };
    println!("cargo:rustc-cfg=nvfp4_kernels");
    // Two at a time: a GEMM takes nvcc half a gigabyte and ten seconds.
    for pair in MODULES.chunks(2) {
        std::thread::scope(|scope| {
            for (source, targets) in pair {
                scope.spawn(|| compile(&nvcc, source, targets, out));
            }
        });
    }
    write_list(out, &MODULES.map(|(source, _)| source));
}

fn compile(nvcc: &Path, source: &str, targets: &[&str], out: &Path) {
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin", "-Xfatbin", "-compress-all", "-Xptxas", "-v"]);
    for target in targets {
        command.arg("-gencode").arg(format!("arch=compute_{target},code=sm_{target}"));
    }
    command.arg(format!("kernels/{source}.cu")).arg("-o").arg(fatbin(out, source));
    let output = command.output().unwrap_or_else(|e| panic!("{}: {e}", nvcc.display()));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nvcc failed on kernels/{source}.cu\n{text}");
    if let Some(line) = text.lines().find(|line| spills(line)) {
        panic!("kernels/{source}.cu: {line}: registers must suffice; local memory costs bandwidth\n{text}");
    }
}

/// Does this line of `ptxas -v` report local memory, or wgmma that had to be serialised?
fn spills(line: &str) -> bool {
    let stack = line.contains("bytes stack frame")
        && !line.trim_start().starts_with("0 bytes stack frame, 0 bytes spill stores");
    stack || line.contains("(C75") || line.contains("warning")
}

fn fatbin(out: &Path, source: &str) -> PathBuf {
    out.join(source.replace('/', "_")).with_extension("fatbin")
}

fn write_list(out: &Path, sources: &[&str]) {
    let entries: String = sources
        .iter()
        .map(|source| {
            let (name, path) = (source, fatbin(out, source));
            format!("    Image {{ name: {name:?}, bytes: include_bytes!({:?}) }},\n", path.display().to_string())
        })
        .collect();
    let text = format!("/// Every module of this build.\npub static IMAGES: &[Image] = &[\n{entries}];\n");
    fs::write(out.join("kernels.rs"), text).unwrap_or_else(|e| panic!("kernels.rs: {e}"));
}

/// NVFP4_MOE_CUDA_HOME, CUDA_HOME, the Python packages of CUDA 13 (`.venv` first), then /usr/local/cuda.
fn find_nvcc() -> Option<PathBuf> {
    let mut homes: Vec<PathBuf> = Vec::new();
    for variable in ["NVFP4_MOE_CUDA_HOME", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
        homes.extend(env::var_os(variable).map(PathBuf::from));
    }
    let code = "import importlib.util as u; print(list(u.find_spec('nvidia.cu13').submodule_search_locations)[0])";
    for python in [".venv/bin/python", "python3"] {
        homes.extend(super::command_line(python, &["-c", code]).map(PathBuf::from));
    }
    homes.push(PathBuf::from("/usr/local/cuda"));
    homes.into_iter().map(|home| home.join("bin/nvcc")).find(|nvcc| nvcc.exists())
}
