// SPDX-License-Identifier: Apache-2.0
//! The build script's search for nvcc, among stand-ins that only say a version.

#[path = "../../rust/build_nvcc.rs"]
mod build_nvcc;

use build_nvcc::{Absent, HOME, PYTHON_CUDA, Places, find};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{Permissions, create_dir_all, set_permissions, write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One machine at a time: a program that another test starts holds, until it runs, every file that is open here.
/// A script that was being written then cannot be run ("Text file busy").
static ONE: Mutex<()> = Mutex::new(());

/// A machine: its environment, and folders in a temporary one.
struct Machine {
    root: tempfile::TempDir,
    variables: HashMap<&'static str, OsString>,
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    fn new() -> Self {
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let root = tempfile::tempdir().expect("a folder");
        let variables = HashMap::from([("PATH", root.path().join("none").into_os_string())]);
        Machine { root, variables, _alone: alone }
    }

    /// An nvcc of this version at `folder/nvcc`.
    fn nvcc(&self, folder: &str, version: &str) -> PathBuf {
        let path = self.root.path().join(folder).join("nvcc");
        self.program(&path, &format!("echo 'Cuda compilation tools, release {version}, V{version}.88'"));
        path
    }

    fn program(&self, path: &Path, script: &str) {
        create_dir_all(path.parent().expect("a parent")).expect("a folder");
        write(path, format!("#!/bin/sh\n{script}\n")).expect("a script");
        set_permissions(path, Permissions::from_mode(0o755)).expect("permissions");
    }

    fn set(mut self, name: &'static str, folder: &str) -> Self {
        self.variables.insert(name, self.root.path().join(folder).into_os_string());
        self
    }

    fn find(&self) -> Result<PathBuf, Absent> {
        let (variable, root) = (|name: &str| self.variables.get(name).cloned(), self.root.path());
        find(&Places { variable: &variable, project: &root.join("project"), system: &root.join("usr/local") })
    }
}

#[test]
fn each_place_is_looked_at() {
    for (variable, value, folder) in [
        ("CUDA_HOME", "toolkit", "toolkit/bin"),
        ("CUDA_PATH", "toolkit", "toolkit/bin"),
        ("PATH", "toolkit/bin", "toolkit/bin"),
        (PYTHON_CUDA, "site/nvidia/cu13", "site/nvidia/cu13/bin"),
        (HOME, "own", "own/bin"),
        ("OTHER", "", "usr/local/cuda/bin"),
        ("OTHER", "", "usr/local/cuda-13.2/bin"),
    ] {
        let machine = Machine::new().set(variable, value);
        let nvcc = machine.nvcc(folder, "13.1");
        assert_eq!(machine.find().expect(folder), nvcc);
    }
}

/// The project's environment and the active one have an interpreter that says where its packages are.
#[test]
fn environments_of_python_are_asked() {
    for environment in ["project/.venv", "active"] {
        let machine = Machine::new().set("VIRTUAL_ENV", "active");
        let nvcc = machine.nvcc("packages/nvidia/cu13/bin", "13.0");
        let home = nvcc.ancestors().nth(2).expect("a home");
        let python = machine.root.path().join(environment).join("bin/python3");
        machine.program(&python, &format!("echo {}", home.display()));
        assert_eq!(machine.find().expect(environment), nvcc);
    }
}

#[test]
fn another_version_is_passed_by_and_named_with_both_numbers() {
    let machine = Machine::new().set("PATH", "bin");
    let old = machine.nvcc("bin", "12.8");
    let absent = machine.find().expect_err("12.8 cannot");
    let folder = old.parent().expect("a folder").display().to_string();
    assert_eq!(absent.wrong, [format!("nvcc is 12.8 in {folder}; it must be 13")]);
    let new = machine.nvcc("usr/local/cuda-13.0/bin", "13.0");
    assert_eq!(machine.find().expect("the newer one"), new);
}

/// A compiler that cannot be asked is named with the reason, not as one of another version.
#[test]
fn one_that_does_not_run_is_named_with_the_reason() {
    for (script, why) in
        [("exit 3", "exit status: 3"), ("echo nvcc", "`--version` names no release"), ("kill -9 $$", "signal: 9")]
    {
        let machine = Machine::new().set("PATH", "bin");
        machine.program(&machine.root.path().join("bin/nvcc"), script);
        let absent = machine.find().expect_err("it says no version");
        assert!(absent.wrong[0].contains(why), "{why}: {}", absent.wrong[0]);
    }
}

#[test]
fn the_projects_variable_is_the_only_place_where_it_is_set() {
    let machine = Machine::new().set(HOME, "nowhere").set("PATH", "bin");
    machine.nvcc("bin", "13.0");
    let absent = machine.find().expect_err("nothing else is looked at");
    assert!(absent.wrong.is_empty());
    assert!(absent.searched.starts_with("NVFP4_MOE_CUDA_HOME="), "{}", absent.searched);
}

#[test]
fn where_there_is_none_the_places_are_named() {
    let absent = Machine::new().find().expect_err("there is none");
    assert!(absent.wrong.is_empty());
    for place in ["CUDA_HOME", "CUDA_PATH", "PATH", "nvidia/cu13", "usr/local/cuda*"] {
        assert!(absent.searched.contains(place), "{place}: {}", absent.searched);
    }
}
