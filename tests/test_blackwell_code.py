# SPDX-License-Identifier: Apache-2.0
"""What nvcc made of the kernels for Blackwell: the instructions that they are for, and what a chip has room for."""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
# Of a module: instructions that it must have; shared memory that a CTA may opt in for; KiB of the library, at most.
MODULES = {
    "sm100_gemm": (("UTCOMMA", "UTCHMMA", "UTCCP", "UTCBAR", "LDTM", "STTM", "UBLKCP"), 232448, 100),
    "sm120_gemm": (("OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X", "HMMA.16816.F32.BF16", "UBLKCP"), 101376, 300),
}


@pytest.fixture(params=MODULES)
def module(request) -> str:
    if not (ROOT / "kernels" / request.param.replace("_", "/")).with_suffix(".cu").exists():
        pytest.skip(f"{request.param} has no source")
    return request.param


@pytest.fixture
def fatbin(module) -> Path:
    """The newest that cargo made."""
    made = sorted(TARGET.glob(f"release/build/nvfp4-moe-*/out/{module}.fatbin"), key=lambda path: path.stat().st_mtime)
    if not made:
        pytest.skip("the library was built without kernels")
    return made[-1]


def cuobjdump(*words: object) -> str:
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia/cu13/bin"
    path = f"{packages}{os.pathsep}{os.environ['PATH']}"
    if not shutil.which("cuobjdump", path=path):
        pytest.skip("no cuobjdump")
    command = ["cuobjdump", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}).stdout


def test_the_tensor_core_is_used(module, fatbin):
    code = cuobjdump("-sass", fatbin)
    for instruction in MODULES[module][0]:
        assert re.search(rf"\b{re.escape(instruction)}\b", code), instruction


def test_nothing_is_kept_in_local_memory(fatbin):
    usage = re.findall(r"STACK:(\d+) .*LOCAL:(\d+)", cuobjdump("-res-usage", fatbin))
    assert usage
    assert set(usage) == {("0", "0")}


def test_shared_memory_is_within_the_chips(module):
    header = (ROOT / "kernels" / module.split("_")[0] / "params.h").read_text()
    found = re.findall(r"#define \w+_SHARED_BYTES (\d+)", header)
    assert found
    assert max(map(int, found)) <= MODULES[module][1]


def test_the_module_stays_small(module, fatbin):
    """Larger is no mistake, but a choice: raise the number with what it is for."""
    assert fatbin.stat().st_size <= MODULES[module][2] * 1024
