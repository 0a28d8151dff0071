"""What forward asks of the CUDA driver, seen through a stand-in libcuda: launches, and nothing else."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "target" / "release" / "libnvfp4_moe.a"
FOLDER = ROOT / "tests" / "mock_libcuda"
# The context decides the device of a NULL stream, so it is looked at, and set where it is another one.
ALLOWED = {"cuLaunchKernel", "cuCtxGetCurrent", "cuCtxSetCurrent"}


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> dict[str, list[str]]:
    """The calls of each forward, by its title."""
    if not LIBRARY.exists():
        pytest.skip("cargo build --release comes first")
    build = tmp_path_factory.mktemp("mock")
    for name in ("libcuda.so.1", "libcuda.so"):
        subprocess.run(["cc", "-shared", "-fPIC", FOLDER / "mock.c", "-o", build / name], check=True)
    program = build / "driver_calls"
    libraries = [LIBRARY, "-lpthread", "-ldl", "-lm"]
    include = ["-std=c11", "-I", ROOT / "include"]
    subprocess.run(["cc", *include, FOLDER / "driver_calls.c", "-o", program, *libraries], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(build)}
    result = subprocess.run([program], env=environment, stderr=subprocess.PIPE, text=True)
    if result.returncode == 77:
        pytest.skip(f"this build has no kernels: {result.stderr.splitlines()[-1]}")
    assert result.returncode == 0, result.stderr[-2000:]
    found, title = {}, None
    for line in result.stderr.splitlines():
        if line.startswith("begin "):
            title = line.removeprefix("begin ")
            found[title] = []
        elif line == "end":
            title = None
        elif title:
            found[title].append(line.removeprefix("call "))
    return found


def test_forward_launches_and_does_nothing_else(calls):
    assert len(calls) == 12
    for title, made in calls.items():
        assert set(made) <= ALLOWED, title
        assert "cuLaunchKernel" in made, title


def test_few_tokens_take_four_launches(calls):
    """Route, GEMM1, GEMM2, combine; in mode nvfp4 both GEMMs' inputs are quantised before."""
    assert calls["forward, mode 1, 1 tokens"].count("cuLaunchKernel") == 4
    assert calls["forward, mode 2, 1 tokens"].count("cuLaunchKernel") == 6
    assert calls["linear, mode 1"].count("cuLaunchKernel") == 1
