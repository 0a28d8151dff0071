# SPDX-License-Identifier: Apache-2.0
"""What `make gpu-serve` and `make gpu-bench` start with, on a machine that has neither a GPU nor vLLM."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gpu import serve, tiny_qwen3
from gpu.full import checkpoint, picture, process, step, weights
from gpu.full import model as full_model
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


@pytest.mark.parametrize("target", ["gpu-serve", "gpu-bench", "gpu-serve-full", "gpu-load", "gpu-soak"])
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


def test_ranks_share_all_but_their_experts():
    """The map of a rank's experts is the model's own, and stays."""
    ranks = []
    for rank in range(2):
        layer = torch.nn.Module()
        layer.experts, layer.gate = experts(), experts()
        layer.experts.register_buffer("_expert_map", torch.tensor([0, -1], dtype=torch.int32))
        model = torch.nn.Module()
        model.ffn = layer
        weights.fill_model(model, rank)
        ranks.append(model.ffn)
    assert torch.equal(ranks[0].gate.weight, ranks[1].gate.weight)
    assert not torch.equal(ranks[0].experts.w13_weight, ranks[1].experts.w13_weight)
    assert ranks[1].experts._expert_map.tolist() == [0, -1]


def test_the_full_model_has_the_published_number_of_layers():
    assert {size: len(full_model.config(size)["compress_ratios"]) for size in full_model.SIZES} == {
        "flash": 43,
        "pro": 61,
        "tiny": 4,
    }
    assert full_model.config("flash", 4)["num_hidden_layers"] == 4


TINY = {
    "hidden_size": 256,
    "moe_intermediate_size": 128,
    "n_routed_experts": 12,
    "num_attention_heads": 2,
    "q_lora_rank": 128,
    "o_lora_rank": 128,
    "o_groups": 2,
    "vocab_size": 100,
    "num_hash_layers": 1,
}


def test_a_checkpoint_to_load_has_the_tensors_of_one_that_vllm_serves(monkeypatch):
    """Names and shapes are those of the tiny DeepSeek-V4 whose flavours vLLM serves in CI."""
    monkeypatch.syspath_prepend(str(ROOT / "tests/vllm"))
    served = importlib.import_module("tiny_deepseek_v4")
    tiny, config = served.Model(), served.CONFIG | {"hc_mult": served.HC}
    wanted = {name: tuple(tensor.shape) for name, tensor in tiny.plain.items()}
    for name, tensor in tiny.fp8.items():
        rows, columns = tensor.shape
        wanted |= {f"{name}.weight": (rows, columns), f"{name}.scale": (rows // 128, columns // 128)}
    for pattern, tensor in tiny.experts.items():
        experts, rows, columns = tensor.shape
        for name in map(pattern.format, range(experts)):
            wanted |= {f"{name}.weight": (rows, columns // 2), f"{name}.weight_scale": (rows, columns // 16)}
            wanted |= {f"{name}.weight_scale_2": (), f"{name}.input_scale": ()}
    parts = [checkpoint.rest(config), *(checkpoint.layer(index, config) for index in range(4))]
    assert {name: shape for part in parts for name, _, shape in part} == wanted


def test_a_checkpoint_to_load_is_one_that_the_library_takes(tmp_path, monkeypatch):
    """Layers of every kind of attention."""
    monkeypatch.setattr(checkpoint, "POOL_BYTES", 1 << 20)
    config = full_model.config("flash", 4) | TINY
    size = checkpoint.write(tmp_path, config)
    assert checkpoint.bytes_of(config) < size < 1.2 * checkpoint.bytes_of(config)
    found = Checkpoint(str(tmp_path))
    for index in range(4):
        layer = found.layer_info(index)
        assert (layer.hidden_size, layer.intermediate_size, layer.num_experts) == (256, 128, 12)


def test_a_checkpoints_layers_are_as_many_as_fit():
    one, two = (checkpoint.bytes_of(full_model.config("flash", layers)) for layers in (1, 2))
    assert checkpoint.of_size("flash", (two + 1) / 1e9)["num_hidden_layers"] == 2
    assert 3.4 < (two - one) / 2**30 < 4
    with pytest.raises(ValueError, match="it must be at least"):
        checkpoint.of_size("flash", 1)


def test_a_stopped_process_takes_its_children_along(tmp_path):
    """A rank that outlives its engine holds the GPU's memory, and the next run does not start."""
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    begun = process.Process([sys.executable, "-c", f"{child}; time.sleep(60)"], dict(os.environ), tmp_path / "log")
    time.sleep(1)
    assert process.is_alive(begun.process.pid)
    start = time.monotonic()
    assert begun.wait(0.1) == "stopped after 0 s"
    assert not process.is_alive(begun.process.pid)
    assert time.monotonic() - start < process.GONE_S / 2, "nobody waits for who has ended already"


def test_kernels_on_two_streams_share_the_time():
    found = step.shares([(0, 10, "a"), (5, 15, "b"), (20, 30, "a"), (20, 30, "a"), (20, 30, "b")])
    assert found == pytest.approx({"a": 7.5 + 20 / 3, "b": 7.5 + 10 / 3})
    assert step.part_of("_combine_topk_swa_indices_kernel") == "attention"
    assert step.part_of("combine") == "experts"


def test_a_step_is_what_more_tokens_add_and_waiting_is_no_exchange():
    """Two steps of two ranks: the second rank comes 30 us late to the first exchange, and the prompt is left out."""
    prompt = [step.Kernel(0.0, 100.0, "gemm1"), step.Kernel(100.0, 900.0, "all_reduce")]

    def rank(*exchanges: float) -> list[step.Kernel]:
        starts = 2000.0, 3000.0
        steps = [
            (step.Kernel(start, 20.0, "gemm1"), step.Kernel(start + 20, us, "all_reduce"))
            for start, us in zip(starts, exchanges, strict=True)
        ]
        return prompt + [kernel for kernels in steps for kernel in kernels]

    found = step.taken_apart([rank(36.0, 6.0), rank(6.0, 8.0)], [prompt, prompt], 2)
    assert found["parts"] == pytest.approx({"experts": 20.0, "communication": 6.0, step.WAITING: 15.0})
    assert found["busy"]["any"] == pytest.approx(41.0)
    assert found["launches"]["all"] == 2


def test_a_steps_picture_has_what_no_kernel_filled():
    lines = [
        ("kernels_us experts", "8", 600),
        ("kernels_us any", "8", 700),
        ("step_ms", "8", 1.0),
        ("step_ms", "64", 2.0),
    ]
    read = [{"run": "ours", "quantity": what, "size": size, "median": str(value)} for what, size, value in lines]
    assert picture.steps(read) == {("ours", "8"): {"experts": 700.0, "no kernel": 300.0}}


def test_speeds_are_shown_by_number_of_sequences():
    lines = [("a", "tokens_per_s", "8", 100), ("b", "tokens_per_s", "8", 50), ("a", "step_ms", "8", 1)]
    read = [{"run": run, "quantity": what, "size": size, "median": str(value)} for run, what, size, value in lines]
    assert picture.speeds(read) == {"8": {"a": 100.0, "b": 50.0}}
