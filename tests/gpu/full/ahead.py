# SPDX-License-Identifier: Apache-2.0
"""Runs whose processes import at once, but take the GPU one after another.

vLLM's imports take 20 s a run and need no GPU. So all runs start together, and the process that would touch the GPU
waits, after its imports, until the file named by FULL_TURN exists. `serve_full.py` makes the files, one at a time.
"""

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

# What DeepSeek-V4's worker imports after the plugins; a module that another version of vLLM lacks only costs its time.
MODULES = (
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.models.deepseek_v4.nvidia.model",
    "vllm.model_executor.kernels.mhc.tilelang_kernels",
    "vllm.v1.attention.backends.mla.indexer",
)
LONGEST_S = 900
WAITING = "FULL_WAITING"
"""A variable: how the name of a process begins that waits. Where ranks are several, their engine touches no GPU."""


def turn() -> Path | None:
    """The file that a process waits for, if any."""
    name = os.environ.get("FULL_TURN")
    return Path(name) if name else None


def wait() -> None:
    """In a process that vLLM spawned: import, then wait for the turn. Elsewhere nothing."""
    file, name = turn(), multiprocessing.current_process().name
    if file is not None:
        faulthandler.register(signal.SIGUSR1)  # who stops a process asks where it is
    if file is None or multiprocessing.parent_process() is None or not name.startswith(os.environ.get(WAITING, "")):
        return
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    limit = time.monotonic() + LONGEST_S
    file.with_suffix(".waiting").touch()
    while not file.exists():
        if time.monotonic() > limit:
            raise TimeoutError(f"{file} does not exist after {LONGEST_S} s; it must, once it is this run's turn.")
        time.sleep(0.05)


def began() -> float | None:
    """`time.time()` of the turn's beginning, if there are turns."""
    file = turn()
    return file.stat().st_mtime if file else None
