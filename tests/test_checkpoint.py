"""Checkpoints through the op: every format gives the same layer, and wrong requests are refused by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nvfp4_moe
from reference import gates, nvfp4
from reference.layer import relative_l2
from reference.originals import read_originals

MAKE = Path(__file__).parent / "checkpoints" / "make_checkpoint.py"
E, H, INTER, K = 4, 64, 32, 2
FORMATS = [
    ("deepseek", "deepseek-v4-mixed"),
    ("deepseek", "modelopt"),
    ("hf", "modelopt"),
    ("hf", "compressed-tensors"),
]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """make(naming, format, *flags): the directory of a small checkpoint, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def directory(naming: str, fmt: str, *flags: str) -> Path:
        key = (naming, fmt, *flags)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("checkpoint")
            sizes = f"--hidden {H} --intermediate {INTER} --experts {E} --layers 2 --top-k {K}".split()
            command = [sys.executable, MAKE, made[key], "--naming", naming, "--format", fmt, "--keep-unquantized"]
            subprocess.run([*command, *sizes, *flags], check=True, capture_output=True)
        return made[key]

    return directory


@pytest.mark.parametrize(("naming", "fmt"), FORMATS)
def test_reading_a_layer_gives_what_was_quantised(make, naming, fmt):
    directory = make(naming, fmt, "--different-gate-up")
    checkpoint = nvfp4_moe.Checkpoint(directory)
    info = checkpoint.layer_info(1)
    assert (info.format, info.hidden_size, info.intermediate_size, info.num_experts, info.top_k) == (
        fmt,
        H,
        INTER,
        E,
        K,
    )
    assert info.swiglu_limit == (10.0 if naming == "deepseek" else 0.0)
    weights = checkpoint.read_layer(1, first_expert=1, num_experts=2)
    assert weights.w13_input_scale == info.w13_input_scale > 0
    gate, up = weights.w13_global_scale.unbind(1)
    assert (gate != up).all()
    w13, w2 = read_originals(directory, 1, 1, 2)
    scale = weights.w13_global_scale.repeat_interleave(INTER, dim=1)[..., None]
    for expert in range(2):
        decoded = nvfp4.decode_blocks(weights.w13[expert], weights.w13_block_scale[expert]) * scale[expert]
        assert relative_l2(decoded, w13[expert].double()) < 0.12  # 4 bits of normal values: 0.095
        decoded = nvfp4.decode_blocks(weights.w2[expert], weights.w2_block_scale[expert])
        assert relative_l2(decoded * weights.w2_global_scale[expert], w2[expert].double()) < 0.12


def test_formats_of_one_model_hold_the_same_weights(make):
    first, second, third = (nvfp4_moe.Checkpoint(make(*names)).read_layer(0) for names in FORMATS[1:])
    for other in (second, third):
        for name in ("w13", "w13_block_scale", "w2", "w2_block_scale"):
            assert torch.equal(getattr(first, name).view(torch.uint8), getattr(other, name).view(torch.uint8)), name
        for name in ("w13_global_scale", "w2_global_scale"):  # one format stores the inverse
            torch.testing.assert_close(getattr(first, name), getattr(other, name), rtol=1e-6, atol=0)


def test_a_layer_made_from_a_checkpoint_runs(make):
    checkpoint = nvfp4_moe.Checkpoint(make(*FORMATS[0]))
    whole = checkpoint.make_layer(0, mode="bf16")
    x, ids = torch.randn(9, H).bfloat16(), torch.stack([torch.randperm(E)[:K] for _ in range(9)])
    ranks = [checkpoint.make_layer(0, first_expert=first, num_experts=2, mode="bf16") for first in (0, 2)]
    total = sum(rank(x, ids).double() for rank in ranks)
    assert relative_l2(whole(x, ids), total) <= gates.REL_L2


def test_a_lossless_cast_is_recognised(make):
    assert nvfp4_moe.Checkpoint(make("deepseek", "modelopt", "--lossless-cast")).layer_info(0).lossless_cast
    assert not nvfp4_moe.Checkpoint(make("deepseek", "modelopt")).layer_info(0).lossless_cast


def test_inspect_reports_as_table_and_json(make):
    checkpoint = nvfp4_moe.Checkpoint(make(*FORMATS[0]))
    assert str(H) in checkpoint.inspect()
    assert json.loads(checkpoint.inspect(as_json=True))


def test_refusals(make, tmp_path):
    with pytest.raises(RuntimeError, match="no_such_directory"):
        nvfp4_moe.Checkpoint(tmp_path / "no_such_directory")
    checkpoint = nvfp4_moe.Checkpoint(make(*FORMATS[0]))
    with pytest.raises(RuntimeError, match="layer"):
        checkpoint.layer_info(17)
    with pytest.raises(RuntimeError, match=r"expert"):
        checkpoint.read_layer(0, first_expert=3, num_experts=2)
    weights = checkpoint.read_layer(0)
    with pytest.raises(RuntimeError, match=r"w2.shape is \[3, 64, 16\]; it must be \[L, H, I/2\] = \[4, 64, 16\]"):
        nvfp4_moe.ops.load().checkpoint_read_layer(
            weights.w13,
            weights.w13_block_scale,
            weights.w13_global_scale,
            weights.w2[:3],
            weights.w2_block_scale,
            weights.w2_global_scale,
            0,
            0,
            checkpoint.id,
        )
