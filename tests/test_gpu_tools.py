# SPDX-License-Identifier: Apache-2.0
"""What `make gpu-serve` and `make gpu-bench` start with, on a machine that has neither a GPU nor vLLM."""

import json
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import save_file

from gpu import serve, tiny_qwen3
from nvfp4_moe import Checkpoint

ROOT = Path(__file__).parents[1]


def test_the_tiny_model_is_a_checkpoint_that_the_library_takes(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_qwen3.CONFIG))
    save_file(tiny_qwen3.tensors(), tmp_path / "model.safetensors")
    layer = Checkpoint(str(tmp_path)).layer_info(tiny_qwen3.LAYERS - 1)
    assert (layer.hidden_size, layer.intermediate_size, layer.num_experts) == (512, 256, 16)


@pytest.mark.parametrize("bundle", [None, Path("/bundle")])
def test_each_model_has_its_run(bundle, tmp_path, monkeypatch):
    """The command lines, with and without a bundle; what they start is there, where it is ours."""
    seen = []
    monkeypatch.setattr(serve.Runs, "command", lambda self, name, command, *_: seen.append((name, command)) or False)
    runs = serve.Runs(bundle, tmp_path)
    runs.make_models()
    for model in runs.models:
        for run in serve.RUNS:
            assert runs.serve(tmp_path / model, run) is None
    scripts = {Path(command[1]) for _, command in seen}
    assert len(seen) == 1 + len(runs.models) * len(serve.RUNS)
    assert all(script.parent == bundle if bundle else script.exists() for script in scripts), scripts


@pytest.mark.parametrize("target", ["gpu-serve", "gpu-bench"])
def test_no_bundle_is_needed(target):
    lines = subprocess.run(
        ["make", "--dry-run", target, "BUNDLE=none", "GPU_PY=/an/own/python"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    commands = [line for line in lines if line.startswith("/an/own/python ")]
    assert commands
    assert all((ROOT / command.split()[1]).exists() for command in commands)
    assert not any("setup.sh" in line for line in lines)
