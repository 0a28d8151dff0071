# SPDX-License-Identifier: Apache-2.0
"""The wheel and the source distribution, as a user meets them. Without a wheel of `make wheel` this is skipped."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import nvfp4_moe

ROOT = Path(__file__).parents[1]
WHEELS = sorted((ROOT / "dist").glob("*.whl"))
OP = "nvfp4_moe/nvfp4_moe_torch.so"
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
MOST_BYTES = 16 << 20
COMPILERS = ["cc", "gcc", "c++", "g++", "clang", "ld", "cargo", "rustc", "nvcc", "cmake", "ninja"]

pytestmark = pytest.mark.skipif(not WHEELS, reason="no wheel in dist/: make wheel")


def run(*words: object, **options) -> str:
    done = subprocess.run(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def platform() -> str:
    """manylinux_2_34_x86_64, or of whatever glibc this machine's is."""
    assert len(WHEELS) == 1, f"one wheel serves all: {WHEELS}"
    match = re.fullmatch(r"nvfp4_moe-[\d.]+-py3-none-([\w.]+)\.whl", WHEELS[0].name)
    assert match, WHEELS[0].name
    return match[1].split(".")[0]


@pytest.mark.parametrize("version", PYTHONS)
def test_pip_takes_the_wheel_for_each_python(version, tmp_path):
    assert platform().startswith("manylinux_2_")
    asked = ["--python-version", version, "--platform", platform(), "--only-binary", ":all:", "--target", tmp_path]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", *asked]
    run(*pip, WHEELS[0])


def test_the_wheel_is_stripped_and_exports_nothing(tmp_path):
    with zipfile.ZipFile(WHEELS[0]) as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < MOST_BYTES
        op = Path(archive.extract(OP, tmp_path))
    assert ".debug_" not in run("readelf", "--sections", "--wide", op)
    symbols = run("readelf", "--dyn-syms", "--wide", op)
    assert not re.search(r"(GLOBAL|WEAK) +DEFAULT +(?!UND)\d+ ", symbols)


def clean_environment(folder: Path) -> tuple[Path, dict[str, str]]:
    """A new environment with this one's torch, in which nothing can be compiled; its Python."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin/python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {"PATH": str(folder / "bin"), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    assert [name for name in COMPILERS if shutil.which(name, path=environment["PATH"])] == []
    return python, environment


def test_the_wheel_runs_where_nothing_can_be_compiled(tmp_path):
    python, environment = clean_environment(tmp_path / "environment")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    run(*pip, WHEELS[0], env=environment)
    example = shutil.copy(ROOT / "examples/layer.py", tmp_path)
    assert run(python, example, env=environment, cwd=tmp_path).endswith("layer.py: correct\n")
    version = run(python, "-m", "nvfp4_moe", "--version", env=environment, cwd=tmp_path)
    assert version == f"nvfp4-moe {nvfp4_moe.__version__} (cpu hopper portable sm100 sm120)\n"


def test_the_source_distribution_builds(tmp_path):
    """Without kernels, unoptimised, and over the crates that test_readme.py compiled: whether all files are in it."""
    pytest.importorskip("build")
    run(sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path, ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = [name.partition("/")[2] for name in files.getnames()]
    assert not [name for name in names if name.startswith((".venv", "target", "build", ".peers"))]
    environment = os.environ | {
        "NVFP4_MOE_CPU_ONLY": "1",
        "CARGO_PROFILE_RELEASE_LTO": "off",
        "CARGO_PROFILE_RELEASE_OPT_LEVEL": "0",
        "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
        "CARGO_PROFILE_RELEASE_DEBUG": "0",
    }
    settings = f"--config-settings=cmake.define.NVFP4_MOE_CARGO_TARGET={ROOT / 'build/readme/target'}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", settings]
    run(*pip, archive, env=environment, cwd=tmp_path)
    assert (tmp_path / "site" / OP).exists()


@pytest.mark.parametrize("file", ["docs/release.md", "Containerfile"])
def test_the_recipes_steps_are_there(file):
    targets = set(re.findall(r"\bmake ([a-z][a-z-]*)", (ROOT / file).read_text()))
    assert targets >= {"wheel"}
    for target in targets:
        run("make", "--dry-run", target, cwd=ROOT)
