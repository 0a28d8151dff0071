# SPDX-License-Identifier: Apache-2.0
"""A program that needs a GPU runs its whole course on the CUDA of a machine without one, and compiles on the way."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ABSENT = Path(__file__).parent / "gpu/absent/absent.py"
PROGRAM = """
import torch, triton, triton.language as tl
assert torch.cuda.get_device_capability() == (9, 0)
x = torch.empty(1 << 36, dtype=torch.uint8, device="cuda")  # 64 GiB, which no machine of CI has
w = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    y = w @ w.t()
graph.replay()
assert torch.equal(y.cpu(), torch.zeros(64, 64, dtype=torch.bfloat16)), "nothing computes"
numbers = torch.arange(8.0)
assert torch.equal(numbers.cuda().cpu(), numbers), "copies are real"

@triton.jit
def kernel(x, size: tl.constexpr):
    tl.store(x + tl.arange(0, size), 1.0)

kernel[(1,)](w, size=32)
print("ran")
"""


@pytest.mark.skipif(not (torch.version.cuda or "").startswith("13."), reason="torch is not of CUDA 13")
def test_torch_and_triton_run_and_triton_compiles(tmp_path):
    pytest.importorskip("triton")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(ABSENT), "--work", str(tmp_path / "work"), "--", "env"]
    command += [f"TRITON_CACHE_DIR={tmp_path / 'cache'}", sys.executable, str(program)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "ran\n"), ran.stderr
    assert list(tmp_path.glob("cache/*/kernel.cubin"))
