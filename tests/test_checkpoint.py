# SPDX-License-Identifier: Apache-2.0
"""Checkpoints through the op: every format gives the same layer, and wrong requests are refused by name."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import nvfp4_moe
from reference import gates, nvfp4
from reference.layer import Gelu, GeluTanh, Relu2, Situ, Swiglu, SwigluStep, relative_l2
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
    with pytest.raises(RuntimeError, match="layer is 17; the checkpoint has 2 FP4 MoE layers"):
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
            None,
            None,
            0,
            0,
            checkpoint.id,
        )


# ---- Other namings and configs: what the layer computes, against float64 on the tensors as they were written -------

STEM = "model.layers.0.mlp"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
PARTS = ("weight", "weight_scale", "weight_scale_2", "input_scale")


@pytest.fixture(scope="module")
def layer0(make) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and config of one layer in ModelOpt's form under Hugging Face's names."""
    directory = make("hf", "modelopt", "--different-gate-up")
    tensors = load_file(directory / "model.safetensors")
    only = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{STEM}.experts.")}
    return only, json.loads((directory / "config.json").read_text())


def written(directory: Path, tensors: dict[str, torch.Tensor], config: dict, **changes) -> Path:
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config | changes))
    return directory


def stacked(tensors: dict[str, torch.Tensor], projections: tuple[str, ...], part: str) -> torch.Tensor:
    """[E, rows of the projections, columns], or the scales [E, projections]."""
    of_expert = [[tensors[f"{STEM}.experts.{e}.{name}.{part}"] for name in projections] for e in range(E)]
    if of_expert[0][0].dim() == 0:
        return torch.stack([torch.stack(scales) for scales in of_expert])
    # safetensors and torch.cat do not take every dtype: bytes do.
    joined = torch.stack([torch.cat([t.view(torch.uint8) for t in one]) for one in of_expert])
    return joined.view(of_expert[0][0].dtype)


def per_expert(pattern: str):
    """A naming with a tensor for each expert: `pattern` has {e}, {name} and {part}."""

    def rename(tensors):
        keys = [(e, name, part) for e in range(E) for name in PROJECTIONS for part in PARTS]
        return {pattern.format(e=e, name=n, part=p): tensors[f"{STEM}.experts.{e}.{n}.{p}"] for e, n, p in keys}

    return rename


def in_stacks(pattern: str, matrices: dict[str, tuple[str, ...]]):
    """A naming with a tensor for all experts: `pattern` has {name} and {part}."""

    def stack(tensors):
        names = [(name, parts, part) for name, parts in matrices.items() for part in PARTS]
        return {
            pattern.format(name=n, part=part).removesuffix("_weight"): stacked(tensors, parts, part)
            for n, parts, part in names
        }

    return stack


FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
APART = {name: (name,) for name in PROJECTIONS}
NAMINGS = {
    "mixer": per_expert("backbone.layers.0.mixer.experts.{e}.{name}.{part}"),
    "no block": per_expert("model.language_model.layers.0.experts.{e}.{name}.{part}"),
    "projection first": per_expert("model.layers.0.mlp.experts.{name}.{e}.{part}"),
    "fused": in_stacks("language_model.model.layers.0.feed_forward.experts.{name}_{part}", FUSED),
    "stacked": in_stacks("model.layers.0.mlp.experts.{name}.{part}", FUSED),
    "moe": in_stacks("model.language_model.layers.0.moe.{name}.{part}", APART),
}


def oracle(tensors: dict[str, torch.Tensor], swiglu: Swiglu, x, ids, topk_weights) -> torch.Tensor:
    """The layer in float64, from the tensors by their first names."""

    def matrix(expert: int, name: str) -> torch.Tensor:
        if f"{STEM}.experts.{expert}.{name}.weight" not in tensors:
            return torch.zeros(INTER, H, dtype=torch.float64)  # no gate
        packed, scale, global_scale = (tensors[f"{STEM}.experts.{expert}.{name}.{part}"] for part in PARTS[:3])
        return nvfp4.decode_blocks(packed, scale.view(torch.uint8)).double() * global_scale.double()

    experts = [[matrix(e, name) for name in PROJECTIONS] for e in range(E)]
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, slots in enumerate(ids.tolist()):
        for k, expert in enumerate(slots):
            gate_bias, up_bias, down_bias = (
                tensors.get(f"{STEM}.experts.{expert}.{name}.bias", torch.zeros(())).double() for name in PROJECTIONS
            )
            gate, up, down = experts[expert]
            h = swiglu(gate @ x[token].double() + gate_bias, up @ x[token].double() + up_bias)
            out[token] += topk_weights[token, k].double() * (down @ h + down_bias)
    return out


def assert_computes(tensors, swiglu: Swiglu, layer: nvfp4_moe.Layer) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(9, H, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(E, generator=generator)[:K] for _ in range(9)])
    topk_weights = torch.rand(9, K, generator=generator)
    assert relative_l2(layer(x, ids, topk_weights), oracle(tensors, swiglu, x, ids, topk_weights)) <= gates.REL_L2


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_computes_the_same_layer(layer0, tmp_path, naming):
    tensors, config = layer0
    checkpoint = nvfp4_moe.Checkpoint(written(tmp_path, NAMINGS[naming](tensors), config))
    assert_computes(tensors, Swiglu(), checkpoint.make_layer(0, mode="bf16"))
    assert checkpoint.survey["skipped"] == checkpoint.survey["refused"] == []


@pytest.mark.parametrize(
    ("changes", "swiglu"),
    [
        ({"hidden_act": "silu"}, Swiglu()),
        ({"hidden_act": "silu", "swiglu_limit": 2.0}, Swiglu(2.0)),
        (
            {"hidden_act": "swigluoai", "swiglu_limit": 2.0, "swiglu_alpha": 1.5, "swiglu_beta": 0.5},
            Swiglu(2.0, 1.5, 0.5),
        ),
        ({"model_type": "minimax_m3", "hidden_act": "swigluoai", "swiglu_limit": 7.0}, Swiglu(7.0, 1.702, 1.0)),
        ({"model_type": "gpt_oss", "hidden_act": "silu"}, Swiglu(7.0, 1.702, 1.0)),
        ({"hidden_activation": "gelu_pytorch_tanh"}, GeluTanh()),
        ({"hidden_act": "gelu"}, Gelu()),
        ({"model_type": "step3p5", "hidden_act": "silu", "swiglu_limits": [2.0, 0.0]}, SwigluStep(2.0)),
        (
            {"hidden_act": "situ", "activation_situ_beta": 4.0, "activation_situ_linear_beta": 25.0},
            Situ(25.0, beta=4.0),
        ),
    ],
)
def test_the_config_decides_what_is_computed(layer0, tmp_path, changes, swiglu):
    tensors, config = layer0
    checkpoint = nvfp4_moe.Checkpoint(written(tmp_path, tensors, config, **changes))
    info = checkpoint.layer_info(0)
    assert (info.activation, info.swiglu_limit, info.swiglu_beta) == (swiglu.name, swiglu.limit, swiglu.beta)
    assert info.swiglu_alpha == pytest.approx(swiglu.alpha)
    assert_computes(tensors, swiglu, checkpoint.make_layer(0, mode="bf16"))


@pytest.mark.parametrize("key", ["situ_beta", "activation_limit", "hidden_act_params", "gate_limit", "expert_clamp"])
def test_a_parameter_that_is_not_known_is_refused_by_its_name(layer0, tmp_path, key):
    checkpoint = nvfp4_moe.Checkpoint(written(tmp_path, *layer0, **{key: {"of": 7.0}}))
    with pytest.raises(RuntimeError, match=f"{key} in config.json is .*; this library computes silu"):
        checkpoint.layer_info(0)


def test_an_activation_that_is_not_there_is_refused_and_the_advice_can_be_followed(layer0, tmp_path):
    tensors, config = layer0
    checkpoint = nvfp4_moe.Checkpoint(written(tmp_path, tensors, config, hidden_act="quick_gelu"))
    for refused in (checkpoint.layer_info, checkpoint.make_layer):
        with pytest.raises(RuntimeError, match=r"hidden_act in config.json is quick_gelu; .*pass activation, "):
            refused(0)
    assert checkpoint.read_layer(0).w13.shape == (E, 2 * INTER, H // 2)
    made = checkpoint.make_layer(0, mode="bf16", swiglu_limit=3.0, swiglu_alpha=1.2)
    assert_computes(tensors, Swiglu(3.0, 1.2), made)
    with pytest.raises(RuntimeError, match=r"hidden_act in config\.json"):  # what was described for the caller's own
        checkpoint.make_layer(0)


def test_experts_without_a_gate(layer0, tmp_path):
    """Nemotron-H's: up and down alone, in a latent space narrower than the model."""
    tensors, config = layer0
    ungated = {name: t for name, t in tensors.items() if "gate_proj" not in name}
    changes = {"model_type": "nemotron_h", "mlp_hidden_act": "relu2", "hidden_size": 4 * H, "moe_latent_size": H}
    checkpoint = nvfp4_moe.Checkpoint(written(tmp_path, ungated, config, **changes))
    assert checkpoint.read_layer(0).w13.shape == (E, INTER, H // 2)
    assert_computes(ungated, Relu2(), checkpoint.make_layer(0, mode="bf16"))
    assert "relu2, no gate" in checkpoint.inspect()


def test_biases_of_interleaved_stacks(layer0, tmp_path):
    """gpt-oss's: rows of gate and up take turns, and so do their biases."""
    tensors, config = layer0
    generator = torch.Generator().manual_seed(9)
    rows = {"gate_proj": INTER, "up_proj": INTER, "down_proj": H}
    biases = {
        f"{STEM}.experts.{e}.{name}.bias": torch.randn(n, generator=generator).bfloat16()
        for e in range(E)
        for name, n in rows.items()
    }
    stem = "model.layers.0.mlp.experts"
    files = in_stacks(stem + ".{name}_{part}", FUSED)(tensors)
    bias = lambda name: torch.stack([biases[f"{STEM}.experts.{e}.{name}.bias"] for e in range(E)])  # noqa: E731
    files[f"{stem}.gate_up_proj_bias"] = torch.cat([bias("gate_proj"), bias("up_proj")], dim=1)
    files[f"{stem}.down_proj_bias"] = bias("down_proj")
    for name in ("gate_up_proj", "gate_up_proj_weight_scale", "gate_up_proj_bias"):
        halves = files[f"{stem}.{name}"].view(torch.uint8 if "bias" not in name else torch.bfloat16).chunk(2, dim=1)
        in_turn = torch.stack(halves, dim=2).flatten(1, 2)
        files[f"{stem}.{name}"] = in_turn.view(files[f"{stem}.{name}"].dtype)
    checkpoint = nvfp4_moe.Checkpoint(written(tmp_path, files, config, model_type="gpt_oss"))
    assert checkpoint.layer_info(0).has_bias
    assert_computes(tensors | biases, Swiglu(7.0, 1.702, 1.0), checkpoint.make_layer(0, mode="bf16"))


def test_top_k_may_be_passed_where_the_config_has_none(layer0, tmp_path):
    tensors, config = layer0
    silent = {key: value for key, value in config.items() if key != "num_experts_per_tok"}
    checkpoint = nvfp4_moe.Checkpoint(written(tmp_path, tensors, silent))
    with pytest.raises(ValueError, match="Pass top_k to make_layer"):
        checkpoint.make_layer(0)
    assert_computes(tensors, Swiglu(), checkpoint.make_layer(0, mode="bf16", top_k=K))


def test_a_scale_that_nobody_measured_is_left_out_with_a_warning(layer0, tmp_path):
    tensors, config = layer0
    name = f"{STEM}.experts.1.down_proj.input_scale"
    others = [t for other, t in tensors.items() if re.search(r"down_proj.input_scale$", other) and other != name]
    for sentinel in (1.0, 3e5):
        checkpoint = nvfp4_moe.Checkpoint(written(tmp_path, tensors | {name: torch.tensor(sentinel)}, config))
        with pytest.warns(UserWarning, match=r"experts.1.down_proj.input_scale = (1|3e5)[,;].* is used"):
            checkpoint.make_layer(0)
        assert checkpoint.layer_info(0).w2_input_scale == max(float(scale) for scale in others)


def test_a_prefix_tells_two_towers_apart(layer0, tmp_path):
    tensors, config = layer0
    towers = {f"{tower}.{name}": t.clone() for tower in ("thinker", "talker") for name, t in tensors.items()}
    directory = written(tmp_path, towers, config)
    with pytest.raises(RuntimeError, match="open one tower by its prefix, such as t"):
        nvfp4_moe.Checkpoint(directory).layer_info(0)
    assert_computes(tensors, Swiglu(), nvfp4_moe.Checkpoint(directory, prefix="talker.").make_layer(0, mode="bf16"))
