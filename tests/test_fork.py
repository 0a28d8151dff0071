# SPDX-License-Identifier: Apache-2.0
"""Forked children, as DataLoader workers and multiprocessing are: the parent's threads do not exist there."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# What every program below has: a layer that has computed once, so that the library has threads; and a way to fork.
PREAMBLE = f"""
import os, resource, signal, sys, threading
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent / "vllm_plugin")!r}]
import torch, nvfp4_moe, runner
from reference import generate
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(7)
weights = generate.random_code_weights(8, 256, 192, generator)
layer = runner.make_layer(weights, num_experts=8, top_k=3)
x, ids = generate.tokens(40, 256, generator), generate.random_ids(40, 8, 3, generator)
expected = layer(x, ids)
def agrees():
    return torch.equal(layer(x, ids).view(torch.int16), expected.view(torch.int16))
def in_a_child(body):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that waits for ever is ended, and seen
        status = 1
        try:
            status = 0 if body() else 1
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
"""


def run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + program, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_a_child_computes_and_reads(tmp_path):
    sizes = ["--hidden", 64, "--intermediate", 32, "--experts", 4, "--layers", 1, "--top-k", 2]
    names = ["--naming", "hf", "--format", "modelopt"]
    make = [sys.executable, TESTS / "checkpoints" / "make_checkpoint.py", tmp_path, *map(str, sizes), *names]
    subprocess.run(make, check=True, capture_output=True)
    run(
        """
checkpoint = nvfp4_moe.Checkpoint(sys.argv[1])
w13 = checkpoint.read_layer(0).w13
in_a_child(agrees)
in_a_child(lambda: torch.equal(checkpoint.read_layer(0).w13, w13))
in_a_child(lambda: torch.equal(nvfp4_moe.Checkpoint(sys.argv[1]).read_layer(0).w13, w13))
def grandchild():
    nvfp4_moe.set_num_threads(2)
    in_a_child(agrees)
    return agrees()
in_a_child(grandchild)
assert agrees()
# While other threads of the parent are in the middle of calls.
stop = threading.Event()
def work():
    while not stop.is_set():
        layer(x, ids)
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]
for _ in range(20):
    in_a_child(agrees)
stop.set()
""",
        str(tmp_path),
    )


@pytest.mark.parametrize("workers", ["DataLoader", "Pool"])
def test_workers_of_torch_and_of_python_compute(workers):
    run(
        """
import multiprocessing
class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return agrees()
if sys.argv[1] == "DataLoader":
    results = list(torch.utils.data.DataLoader(Rows(), num_workers=2, batch_size=None, timeout=60))
else:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map_async(Rows().__getitem__, range(4)).get(60)
assert results == [True] * 4, results
""",
        workers,
    )


def test_without_a_thread_to_be_had_the_caller_computes():
    run(
        """
def without_threads():
    if os.geteuid() == 0:
        os.setuid(65534)  # root has as many as it likes
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        return agrees()
    return False
in_a_child(without_threads)
"""
    )
