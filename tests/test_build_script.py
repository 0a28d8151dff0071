# SPDX-License-Identifier: Apache-2.0
"""The build script: what it refuses, what it builds without kernels, and what it says."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLKITS = list(Path("/usr/local").glob("cuda*"))
FEATURE = {"CARGO_FEATURE_CUDA": "1"}


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    program = tmp_path_factory.mktemp("build") / "script"
    subprocess.run(["rustc", "--edition", "2024", ROOT / "rust/build.rs", "-o", program], check=True)
    return program


def run(script: Path, folder: Path, **environment: str) -> tuple[int, str]:
    """Its status and output, in a project without `.venv`."""
    given = {"PATH": str(folder / "bin"), "OUT_DIR": str(folder), "CARGO_MANIFEST_DIR": str(folder)} | environment
    done = subprocess.run([script], env=given, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_a_missing_toolkit_is_refused_where_it_was_named(script, tmp_path):
    status, output = run(script, tmp_path, **FEATURE, NVFP4_MOE_CUDA_HOME="/nowhere")
    assert status == 1
    assert "cargo::error=nvcc is nowhere (searched: NVFP4_MOE_CUDA_HOME=/nowhere); it must be 13. Set " in output
    assert "or NVFP4_MOE_CPU_ONLY=1 to build without CUDA kernels" in output


@pytest.mark.skipif(bool(TOOLKITS), reason=f"this machine has {TOOLKITS}")
def test_a_torch_with_cuda_asks_for_kernels(script, tmp_path):
    status, output = run(script, tmp_path, **FEATURE, NVFP4_MOE_TORCH_CUDA="13.0")
    assert status == 1
    assert "it must be 13 (torch has CUDA 13.0, so kernels are wanted). Set NVFP4_MOE_CUDA_HOME" in output


@pytest.mark.skipif(bool(TOOLKITS), reason=f"this machine has {TOOLKITS}")
def test_an_older_nvcc_is_refused_with_both_numbers(script, tmp_path):
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.93'\n")
    nvcc.chmod(0o755)
    status, output = run(script, tmp_path, **FEATURE)
    assert status == 1
    assert f"cargo::error=nvcc is 12.8 in {nvcc.parent}; it must be 13. Set NVFP4_MOE_CUDA_HOME" in output


@pytest.mark.skipif(bool(TOOLKITS), reason=f"this machine has {TOOLKITS}")
def test_a_machine_without_cuda_gets_a_warning(script, tmp_path):
    status, output = run(script, tmp_path, **FEATURE)
    assert (status, "cargo:warning=nvcc was not found: building for the CPU only" in output) == (0, True)
    assert "NVFP4_MOE_BUILT_IN=cpu\n" in output


def test_the_cpu_alone_has_to_be_asked_for(script, tmp_path):
    status, output = run(script, tmp_path, **FEATURE, NVFP4_MOE_TORCH_CUDA="13.0", NVFP4_MOE_CPU_ONLY="1")
    assert (status, "NVFP4_MOE_BUILT_IN=cpu\n" in output, "warning" in output) == (0, True, False)
    status, output = run(script, tmp_path, **FEATURE, NVFP4_MOE_CPU_ONLY="yes")
    assert (status, "cargo::error=NVFP4_MOE_CPU_ONLY is yes; it must be 1" in output) == (1, True)
    status, output = run(script, tmp_path, **FEATURE, NVFP4_MOE_CPU_ONLY="1", NVFP4_MOE_RACECHECK="2")
    assert (status, "cargo::error=NVFP4_MOE_RACECHECK is 2; it must be 1" in output) == (1, True)
    status, output = run(script, tmp_path, NVFP4_MOE_TORCH_CUDA="13.0")  # without the feature `cuda`
    assert (status, "NVFP4_MOE_BUILT_IN=cpu\n" in output) == (0, True)


def test_cmake_sees_packages_that_an_isolated_build_hides(tmp_path, monkeypatch):
    """`python -m build` makes an environment of its own; the one that is active has torch and nvcc."""
    spec = importlib.util.spec_from_file_location("find_packages", ROOT / "cpp/find_packages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    packages = tmp_path / "lib/python3.12/site-packages"
    (packages / "nvidia/cu13").mkdir(parents=True)
    (packages / "torch").mkdir()
    (packages / "torch/version.py").write_text("__version__ = '2.12.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    monkeypatch.setattr(module.site, "getusersitepackages", lambda: "/nowhere")
    monkeypatch.setitem(os.environ, "VIRTUAL_ENV", str(tmp_path))
    assert module.find_package("nvidia/cu13") == packages / "nvidia/cu13"
    assert module.versions(module.find_package("torch/version.py").parent) == ("2.12.0", "13.0")
    (packages / "torch/version.py").write_text("__version__ = '2.12.0+cpu'\ncuda: Optional[str] = None\n")
    assert module.versions(packages / "torch") == ("2.12.0", "none")
