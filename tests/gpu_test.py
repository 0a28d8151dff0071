#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every test of a GPU: `gpu_test.py [--jobs 8] [--gpus 0,1] [--only sanitizers]`; PASS or FAIL.

    tests       pytest, in parts; the part that watches the GPU's free memory by itself
    scripts     cudagraph_test.py, and layertest.py for both models, every mode, and other kinds of experts
    sanitizers  compute-sanitizer's four tools over gpu_sanitize.py; of racecheck docs/kernels.md#racecheck

One after another unless --jobs says more; then logs in build/gpu-test are what says what happened. Needs torch, pytest,
compute-sanitizer, and the op in vllm_plugin/.
"""

import argparse
import os
import sys
import time

from side_by_side import ROOT, Command, Report

LIMIT_S = 580.0
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda or test_gpu"]
TESTS = {
    "few": ["test_gpu_few"],
    "matrix": ["test_layer_matrix"],
    "gpu": ["test_gpu", "test_gpu_experts", "test_gpu_wait", "test_shared_output", "test_linear"],
    "laws": ["test_layer_laws", "test_fp8", "test_fp8_rounded", "test_mxfp4", "test_batch_invariance"],
}
LAYERTESTS = {
    "flash": "--device cuda --shape flash",
    "pro": "--device cuda --shape pro",
    "fp8": "--device cuda --shape flash --mode bf16,fp8",
    "rounded": "--device cuda --shape flash --mode bf16,fp8 --fp8-max-error 0.04",
    "portable": "--device cuda-portable --shape flash",
    "relu2": "--device cuda --shape flash --mode bf16,nvfp4,fp8 --activation relu2",
    "interleaved": "--device cuda --shape flash --mode bf16,nvfp4,fp8 --interleaved --bias",
}
SANITIZERS = {"memcheck": ["small", "rings"], "racecheck": ["small"], "initcheck": ["small", "rings"],
              "synccheck": ["small", "rings"]}  # fmt: skip


def pytest_of(names: list[str]) -> list[str]:
    return [*PYTEST, *(f"tests/{name}.py" for name in names)]


def script(name: str, *arguments: str) -> list[str]:
    return [sys.executable, f"tests/{name}.py", *arguments]


def sanitizer(tool: str, parts: list[str]) -> Command:
    words = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *script("gpu_sanitize", *parts)]
    return Command(tool, words, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "gpu_sanitize: done")


def commands() -> dict[str, list[Command]]:
    """By their kind."""
    life = Command("life", pytest_of(["test_gpu_life"]), alone=True)
    return {
        "tests": [life, *(Command(part, pytest_of(names)) for part, names in TESTS.items())],
        "scripts": [
            Command("cudagraph", script("cudagraph_test"), must_say="PASS"),
            *(Command(f"layertest {of}", script("layertest", *it.split())) for of, it in LAYERTESTS.items()),
        ],
        "sanitizers": [sanitizer(tool, parts) for tool, parts in SANITIZERS.items()],
    }


def main() -> int:
    """See the top of this file."""
    kinds = commands()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="at a time")
    parser.add_argument("--gpus", default="", help="their numbers, with commas")
    parser.add_argument("--only", default=",".join(kinds), help="with commas")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - set(kinds):
        parser.error(f"--only has {', '.join(sorted(unknown))}; it must be of {', '.join(kinds)}.")
    if arguments.jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "2")
    report, started = Report(ROOT / "build/gpu-test", LIMIT_S), time.monotonic()
    gpus = [it for it in arguments.gpus.split(",") if it]
    report.run([command for kind in wanted for command in kinds[kind]], arguments.jobs, gpus)
    return report.close("make gpu-test", time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
