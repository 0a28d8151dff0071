// SPDX-License-Identifier: Apache-2.0
//! Compiles `kernels/` to fat binaries that the library embeds. A build that was asked for CUDA has it or fails; only a
//! machine without any sign of CUDA gets one for the CPU alone, and a warning.

use super::build_nvcc::{self, Absent, HOME, MAJOR, PYTHON_CUDA, Places};
use std::path::{Path, PathBuf};
use std::{env, fs, process::Command};

/// `1`: build for the CPU alone, whatever is installed.
const CPU_ONLY: &str = "NVFP4_MOE_CPU_ONLY";
/// `1`: slower kernels whose stages compute-sanitizer's racecheck understands (docs/kernels.md).
const RACECHECK: &str = "NVFP4_MOE_RACECHECK";
/// CUDA's version in the torch that CMake builds the op for, which is a sign that CUDA is wanted.
const TORCH_CUDA: &str = "NVFP4_MOE_TORCH_CUDA";

/// A source file under `kernels/`, without `.cu`, and the GPUs it is compiled for. The folder says which: a family's own
/// GPUs, or every supported one.
const MODULES: [(&str, &[&str]); 21] = [
    ("route/route", EVERY_GPU),
    ("quantize/quantize", EVERY_GPU),
    ("calibrate/amax", EVERY_GPU),
    ("combine/combine", EVERY_GPU),
    ("prepare/alphas", EVERY_GPU),
    ("prepare/check", EVERY_GPU),
    ("portable/activation", EVERY_GPU),
    ("portable/gemm", EVERY_GPU),
    ("portable/prepare", EVERY_GPU),
    ("hopper/few", HOPPER),
    ("hopper/gemm", HOPPER),
    ("hopper/gemm_rounded", HOPPER),
    ("hopper/prepare", HOPPER),
    ("hopper/quantize_fp8", HOPPER),
    ("hopper/rounding", HOPPER),
    ("hopper/scales_fp8", HOPPER),
    ("sm100/gemm", SM100),
    ("sm100/prepare", SM100),
    ("sm100/rows", SM100),
    ("sm120/gemm", SM120),
    ("sm120/prepare", SM120),
];
const EVERY_GPU: &[&str] = &["80", "90", "100f", "120f"];
const HOPPER: &[&str] = &["90a"];
const SM100: &[&str] = &["100f"];
const SM120: &[&str] = &["120f"];

/// Write `kernels.rs`, the list of modules, and the fat binaries that it includes; say what is built in.
pub fn build(out: &Path) {
    println!("cargo:rerun-if-changed=rust/build_kernels.rs");
    println!("cargo:rerun-if-changed=rust/build_nvcc.rs");
    println!("cargo:rerun-if-changed=kernels");
    let for_racecheck = is_set(RACECHECK, "kernels whose stages racecheck understands");
    let Some(nvcc) = choose_nvcc() else {
        println!("cargo:rustc-env=NVFP4_MOE_BUILT_IN=cpu");
        return write_list(out, &[]);
    };
    println!("cargo:rustc-env=NVFP4_MOE_BUILT_IN=cpu {}", families().join(" "));
    println!("cargo:rerun-if-changed={}", nvcc.display());
    // Two at a time: a GEMM takes nvcc half a gigabyte and ten seconds.
    for pair in MODULES.chunks(2) {
        std::thread::scope(|scope| {
            for (source, targets) in pair {
                scope.spawn(|| compile(&nvcc, source, targets, for_racecheck, out));
            }
        });
    }
    write_list(out, &MODULES.map(|(source, _)| source));
}

/// The families of kernels: folders with parameters of their own.
fn families() -> Vec<&'static str> {
    let mut folders: Vec<_> = MODULES.iter().filter_map(|(source, _)| source.split('/').next()).collect();
    folders.sort_unstable();
    folders.dedup();
    folders.retain(|folder| Path::new("kernels").join(folder).join("params.h").exists());
    folders
}

/// The compiler of the kernels; none for a build without them. Ends the build where it would do less than it was asked.
fn choose_nvcc() -> Option<PathBuf> {
    for variable in [CPU_ONLY, RACECHECK, HOME, "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() || is_set(CPU_ONLY, "no CUDA kernels") {
        return None;
    }
    let project = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let places = Places { variable: &|name| env::var_os(name), project: &project, system: Path::new("/usr/local") };
    let absent = match build_nvcc::find(&places) {
        Ok(nvcc) => return Some(nvcc),
        Err(absent) => absent,
    };
    // Without kernels, look again when the places change; with them nothing is missed.
    for variable in ["PATH", "VIRTUAL_ENV", "CONDA_PREFIX", PYTHON_CUDA, TORCH_CUDA] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let torch = env::var(TORCH_CUDA).ok();
    if absent.wrong.is_empty() && torch.is_none() && env::var_os(HOME).is_none() {
        println!("cargo:warning=nvcc was not found: building for the CPU only (searched: {})", absent.searched);
        return None;
    }
    println!("cargo::error={}", refusal(&absent, torch));
    std::process::exit(1);
}

/// Is a variable 1? Ends the build where it is neither that nor 0.
fn is_set(variable: &str, meaning: &str) -> bool {
    match env::var(variable).as_deref() {
        Err(_) | Ok("" | "0") => false,
        Ok("1") => true,
        Ok(value) => {
            println!("cargo::error={variable} is {value}; it must be 1 ({meaning}) or 0. Set one of them.");
            std::process::exit(1);
        }
    }
}

/// What is wrong with every nvcc, or that there is none; why one is wanted; what to do.
fn refusal(absent: &Absent, torch: Option<String>) -> String {
    let found = match absent.wrong.as_slice() {
        [] => format!("nvcc is nowhere (searched: {}); it must be {MAJOR}", absent.searched),
        wrong => wrong.join(", "),
    };
    let why = torch.map_or_else(String::new, |cuda| format!(" (torch has CUDA {cuda}, so kernels are wanted)"));
    format!(
        "{found}{why}. Set {HOME} to a CUDA {MAJOR} toolkit, or {CPU_ONLY}=1 to build without CUDA kernels. \
         docs/building.md has the packages."
    )
}

fn compile(nvcc: &Path, source: &str, targets: &[&str], for_racecheck: bool, out: &Path) {
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin", "-Xfatbin", "-compress-all", "-Xptxas", "-v"]);
    if for_racecheck {
        command.arg(format!("-D{RACECHECK}"));
    }
    for target in targets {
        command.arg("-gencode").arg(format!("arch=compute_{target},code=sm_{target}"));
    }
    command.arg(format!("kernels/{source}.cu")).arg("-o").arg(fatbin(out, source));
    let output = command.output().unwrap_or_else(|e| panic!("{}: {e}", nvcc.display()));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nvcc failed on kernels/{source}.cu\n{text}");
    // What racecheck runs may be slow.
    if let Some(line) = text.lines().find(|line| !for_racecheck && spills(line)) {
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
