# SPDX-License-Identifier: Apache-2.0
"""What `make gpu-serve` and `make gpu-bench` start with, on a machine that has neither a GPU nor vLLM."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gpu import serve, tiny_qwen3
from gpu.full import model as full_model
from gpu.full import weights
from nvfp4_moe import Checkpoint
from reference import nvfp4

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


def experts(columns: int = 64) -> torch.nn.Module:
    """Parameters as vLLM's model has them: two experts, a hash router, a linear of e4m3."""
    layer = torch.nn.Module()
    shapes = {
        "w13_weight": ((2, 8, columns // 2), torch.uint8),
        "w13_weight_scale": ((2, 8, columns // 16), torch.float8_e4m3fn),
        "w13_weight_scale_2": ((2, 2), torch.float32),
        "weight": ((16, columns), torch.bfloat16),
        "tid2eid": ((100, 6), torch.int32),
        "weight_scale_inv": ((2, 2), torch.float8_e8m0fnu),
    }
    for name, (shape, dtype) in shapes.items():
        layer.register_buffer(name, torch.empty(shape, dtype=dtype))
    return layer


def test_random_weights_are_valid_and_the_same_again():
    """Rows near 1 in size, scales that are powers of two and equal in pairs, distinct experts of each token."""
    layer, again = experts(), experts()
    weights.fill_model(layer, 0)
    weights.fill_model(again, 0)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), again.state_dict()[name].view(torch.uint8)), name
    scales = layer.w13_weight_scale.float()
    assert torch.equal(scales[..., ::2], scales[..., 1::2])
    assert (scales.log2() % 1 == 0).all()
    decoded = (
        nvfp4.decode_blocks(layer.w13_weight.flatten(0, 1), layer.w13_weight_scale.view(torch.uint8).flatten(0, 1))
        * layer.w13_weight_scale_2[0, 0]
    )
    assert 0.5 < decoded.square().sum(-1).mean() < 2
    assert all(len(set(row)) == 6 and max(row) < 16 for row in layer.tid2eid.tolist())


def test_the_full_model_has_the_published_number_of_layers():
    assert {size: len(full_model.config(size)["compress_ratios"]) for size in full_model.SIZES} == {
        "flash": 43,
        "pro": 61,
    }
    assert full_model.config("flash", 4)["num_hidden_layers"] == 4
