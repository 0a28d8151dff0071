# SPDX-License-Identifier: Apache-2.0
"""A wait in vain on a GPU ends by a trap, and says in the host's memory where it stood (kernels/common/wait.cuh)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, str]:
    """What the program says, by the words before the colon."""
    nvcc = shutil.which("nvcc") or str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin/nvcc")
    if not Path(nvcc).exists():
        pytest.skip("no nvcc on this machine")
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("mbarrier.try_wait needs compute capability 9.0")
    program = tmp_path_factory.mktemp("wait") / "wait"
    source = Path(__file__).parent / "gpu/wait.cu"
    subprocess.run([nvcc, "-std=c++17", "-O3", "-arch=native", source, "-o", program], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    print(*lines, sep="\n")
    return dict(line.split(": ", 1) for line in lines)


def test_gpu_wait_in_vain_leaves_a_record_and_traps(said):
    assert (said["waits that succeed"], said["record before"]) == ("no error", "kernel 0")
    assert said["record"] == "kernel 42 block 2 barrier 7 parity 0"
    assert 100 <= int(said["milliseconds"]) < 200
    assert said["wait in vain"] == said["afterwards"] != "no error"


def test_gpu_wait_that_succeeds_costs_a_jump(said):
    bounded, bare = (int(words.split()[1]) for words in said["cycles"].split(", "))
    assert bounded <= bare + 25
