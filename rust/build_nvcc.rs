// SPDX-License-Identifier: Apache-2.0
//! Where nvcc is, and whether it can compile `kernels/`: the project's only search. CMake adds what its Python has.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The kernels and the driver's interface are CUDA 13's.
pub const MAJOR: u32 = 13;
/// What is searched first, and alone where it is set.
pub const HOME: &str = "NVFP4_MOE_CUDA_HOME";
/// `nvidia/cu13` of the Python that CMake runs for, which pip's isolation may hide from this script.
pub const PYTHON_CUDA: &str = "NVFP4_MOE_PYTHON_CUDA";

/// Why there is none: what was found and is of another version, else nothing at all.
#[derive(Debug)]
pub struct Absent {
    pub wrong: Vec<String>,
    pub searched: String,
}

/// Where to look.
pub struct Places<'a> {
    /// Reads the environment.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The checkout, which may have a `.venv`.
    pub project: &'a Path,
    /// Where toolkits are installed, as `/usr/local`.
    pub system: &'a Path,
}

/// The first nvcc of the right version.
pub fn find(places: &Places<'_>) -> Result<PathBuf, Absent> {
    let (candidates, searched) = match (places.variable)(HOME) {
        Some(home) => (vec![Path::new(&home).join("bin/nvcc")], format!("{HOME}={}", Path::new(&home).display())),
        None => (candidates(places), everywhere(places.system)),
    };
    let mut wrong = Vec::new();
    for path in candidates.into_iter().filter(|path| path.is_file()) {
        let is = match version(&path) {
            Ok(version) if major(&version) == Some(MAJOR) => return Ok(path),
            Ok(version) => version,
            Err(why) => format!("of no known version ({why})"),
        };
        let line = format!("nvcc is {is} in {}; it must be {MAJOR}", folder(&path).display());
        if !wrong.contains(&line) {
            wrong.push(line);
        }
    }
    Err(Absent { wrong, searched })
}

fn everywhere(system: &Path) -> String {
    format!("CUDA_HOME, CUDA_PATH, PATH, nvidia/cu13 of Python's packages and {}/cuda*", system.display())
}

fn candidates(places: &Places<'_>) -> Vec<PathBuf> {
    let variable = places.variable;
    let path = variable("PATH").unwrap_or_default();
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(PathBuf::from);
    let mut found: Vec<PathBuf> = homes.map(|home| home.join("bin/nvcc")).collect();
    found.extend(std::env::split_paths(&path).map(|folder| folder.join("nvcc")));
    found.extend(python_homes(places, &path).into_iter().map(|home| home.join("bin/nvcc")));
    found.extend(toolkits(places.system).into_iter().map(|home| home.join("bin/nvcc")));
    found
}

/// CUDA 13 as Python packages: CMake's Python, the project's `.venv`, the active environments, the first on PATH.
fn python_homes(places: &Places<'_>, path: &OsString) -> Vec<PathBuf> {
    let variable = places.variable;
    let mut homes: Vec<PathBuf> = variable(PYTHON_CUDA).map(PathBuf::from).into_iter().collect();
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).map(PathBuf::from);
    let environments = std::iter::once(places.project.join(".venv")).chain(active);
    let first = std::env::split_paths(path).map(|folder| folder.join("python3")).find(|python| python.is_file());
    for python in environments.map(|folder| folder.join("bin/python3")).chain(first).filter(|python| python.is_file()) {
        let code = "import importlib.util as u; print(list(u.find_spec('nvidia.cu13').submodule_search_locations)[0])";
        homes.extend(output(&python, &["-c", code]).ok().map(|line| PathBuf::from(line.trim())));
    }
    homes
}

/// `cuda`, then every `cuda-*`, the newest first.
fn toolkits(system: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(system).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> =
        entries.filter(|path| path.file_name().is_some_and(|it| it.to_string_lossy().starts_with("cuda"))).collect();
    found.sort();
    found.reverse();
    found.insert(0, system.join("cuda"));
    found
}

/// `13.0` of `Cuda compilation tools, release 13.0, V13.0.88`, or why it is not known.
fn version(nvcc: &Path) -> Result<String, String> {
    let text = output(nvcc, &["--version"])?;
    let named = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    named.map(|version| version.trim().to_owned()).ok_or_else(|| "`--version` names no release".to_owned())
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// What the program printed, or why it did not run to its end.
fn output(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(output.status.to_string());
    }
    String::from_utf8(output.stdout).map_err(|error| error.to_string())
}
