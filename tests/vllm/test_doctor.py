# SPDX-License-Identifier: Apache-2.0
"""`python -m nvfp4_moe doctor env` beside vLLM: its answer for a checkpoint is what vLLM then does with it."""

import subprocess
import sys

import pytest
import tiny_deepseek_v4

DEEPSEEK_LAYERS = len(tiny_deepseek_v4.COMPRESS_RATIOS)


def doctor(model, *arguments: str) -> tuple[int, str]:
    """(exit status, report)."""
    command = [sys.executable, "-m", "nvfp4_moe", "doctor", "env", *map(str, (model, *arguments))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def served(report: str) -> dict[str, tuple[int, str]]:
    """Modules with stars for numbers -> (how many, backend)."""
    lines = [line.split(maxsplit=3) for line in report.splitlines() if " x " in line]
    return {name: (int(count), rest.split(":")[0].split()[-1]) for count, _, name, rest in lines}


@pytest.mark.parametrize("flavour", tiny_deepseek_v4.NVFP4_FLAVOURS)
def test_deepseek_v4(deepseek_v4, flavour):
    status, report = doctor(deepseek_v4[flavour])
    assert status == 0
    assert "plugin     active" in report
    assert "device     cpu: usable" in report
    backends = served(report)
    ours = {name: count for name, (count, backend) in backends.items() if backend == "nvfp4_moe"}
    assert ours == {"layers.*.ffn.experts": DEEPSEEK_LAYERS}
    assert backends["layers.*.attn.wo_a"] == (DEEPSEEK_LAYERS, "vllm")


def test_the_users_backend_wins(deepseek_v4):
    status, report = doctor(deepseek_v4["mixed"], "--moe-backend", "marlin")
    assert status == 0
    assert served(report)["layers.*.ffn.experts"] == (DEEPSEEK_LAYERS, "vllm")
