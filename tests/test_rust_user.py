# SPDX-License-Identifier: Apache-2.0
"""A Rust project that embeds the library: from the files that `cargo package` takes, beside newer dependencies."""

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build/rust-user"
# Each is newer than what Cargo.lock has, which exact pins would refuse.
NEWER = {"rayon": "1.12.0", "serde": "1.0.229", "serde_json": "1.0.154"}
PROJECT = """
[package]
name = "user"
version = "0.0.0"
edition = "2024"

[dependencies]
nvfp4-moe = {{ path = "{library}", default-features = false }}
{dependencies}

[workspace]
"""
PROGRAM = """
use nvfp4_moe::config::{LayerConfig, Mode};
use nvfp4_moe::host::{HostLayer, LayerTensors, bf16};

fn main() -> Result<(), nvfp4_moe::error::Error> {
    let config = LayerConfig::on_cpu(Mode::Bf16, 64, 32, 4, 2);
    let tensors = LayerTensors::zeros(config.shape());
    let layer = HostLayer::new(config, tensors)?;
    let (x, mut out) = ([bf16::ONE; 64], [bf16::ZERO; 64]);
    layer.forward(&x, &[0, 1], None, &mut out)
}
"""


def cargo(*words: str, cwd: Path) -> str:
    """Its output; from the registry's cache where that has all, else from the registry."""
    environment = os.environ | {"CARGO_TARGET_DIR": str(BUILD / "target")}
    for offline in ("true", "false"):
        done = subprocess.run(
            ["cargo", *words],
            cwd=cwd,
            env=environment | {"CARGO_NET_OFFLINE": offline},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def package() -> Path:
    """The crate as it would be published, unpacked."""
    shutil.rmtree(BUILD / "package", ignore_errors=True)
    (BUILD / "package").mkdir(parents=True)
    cargo("package", "--package", "nvfp4-moe", "--no-verify", "--allow-dirty", "--quiet", cwd=ROOT)
    (crate,) = (BUILD / "target/package").glob("nvfp4-moe-*.crate")
    with tarfile.open(crate) as files:
        files.extractall(BUILD / "package")
    return BUILD / "package" / crate.name.removesuffix(".crate")


def test_the_package_has_what_is_needed_and_no_more(package):
    tops = {path.name for path in package.iterdir()}
    assert tops >= {"rust", "kernels", "include", "README.md", "LICENSE", "Cargo.toml"}
    assert tops & {"tests", "docs", "cpp", "vllm_plugin", "Makefile"} == set()


def test_newer_dependencies_are_newer():
    lock = dict(re.findall(r'name = "([\w-]+)"\nversion = "([^"]+)"', (ROOT / "Cargo.lock").read_text()))
    numbers = {name: [tuple(map(int, v.split("."))) for v in (lock[name], NEWER[name])] for name in NEWER}
    assert all(locked < newer for locked, newer in numbers.values()), numbers


def test_a_project_with_newer_dependencies_builds(package):
    user = BUILD / "user"
    (user / "src").mkdir(parents=True, exist_ok=True)
    dependencies = "\n".join(f'{name} = "{version}"' for name, version in NEWER.items())
    (user / "Cargo.toml").write_text(PROJECT.format(library=package, dependencies=dependencies))
    (user / "src/main.rs").write_text(PROGRAM)
    output = cargo("check", cwd=user)
    assert "warning" not in output, output
    tree = cargo("tree", "--prefix", "none", cwd=user)
    assert not re.search(r"^(clap|cudarc) ", tree, re.MULTILINE), "a project without the features gets their crates"
