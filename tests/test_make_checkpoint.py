# SPDX-License-Identifier: Apache-2.0
"""The generated checkpoints hold the weights that they were made from, in the format that they say."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from checkpoints import make_checkpoint
from reference import nvfp4

FLAVOURS = [
    ("deepseek", "modelopt"),
    ("deepseek", "compressed-tensors"),
    ("deepseek", "deepseek-v4-mixed"),
    ("hf", "modelopt"),
    ("hf", "compressed-tensors"),
]


def make(out: Path, *more: str) -> Path:
    sizes = ["--hidden", "128", "--intermediate", "64", "--experts", "3"]
    make_checkpoint.main([str(out), *sizes, "--keep-unquantized", *more])
    return out


def read(directory: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def decode(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """A matrix in f64, by the suffixes that are there."""
    if f"{name}.weight_packed" in tensors:
        packed, global_scale = tensors[f"{name}.weight_packed"], 1 / tensors[f"{name}.weight_global_scale"]
    else:
        packed, global_scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale_2"]
    return nvfp4.decode_blocks(packed, tensors[f"{name}.weight_scale"]).double() * global_scale.double()


@pytest.mark.parametrize("lossless_cast", [False, True])
@pytest.mark.parametrize(("naming", "format"), FLAVOURS)
def test_quantised_weights_decode_to_the_unquantised(tmp_path, naming, format, lossless_cast):
    flags = ["--lossless-cast"] if lossless_cast else []
    out = make(tmp_path / "out", "--naming", naming, "--format", format, "--shards", "2", *flags)
    tensors, unquantized = read(out), read(out / "unquantized")
    assert len(unquantized) == 2 * 3 * 3
    for name, weight in unquantized.items():
        name = name.removesuffix(".weight")
        decoded, weight = decode(tensors, name), weight.double()
        cosine = torch.nn.functional.cosine_similarity(decoded.flatten(), weight.flatten(), dim=0)
        # MXFP4's scale is coarser: a power of two for 32 values.
        assert cosine >= (0.985 if lossless_cast else 0.99), (name, cosine)
        if lossless_cast:
            scales = tensors[f"{name}.weight_scale"].float()
            assert torch.equal(torch.log2(scales), torch.log2(scales).round())
            assert torch.equal(scales[:, 0::2], scales[:, 1::2])


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    a, b, other = (make(tmp_path / name, *seed) for name, seed in (("a", ()), ("b", ()), ("c", ("--seed", "1"))))
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert (a / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_gate_and_up_share_a_global_scale_unless_they_are_to_differ(tmp_path):
    for flags in ([], ["--lossless-cast"]):
        for different in ([], ["--different-gate-up"]):
            tensors = read(make(tmp_path / "-".join(["out", *flags, *different]), *flags, *different))
            gates = {name: scale for name, scale in tensors.items() if name.endswith("w1.weight_scale_2")}
            assert len(gates) == 6
            for name, scale in gates.items():
                assert (scale != tensors[name.replace(".w1.", ".w3.")]) == bool(different)


def test_deepseek_v4_has_what_is_not_nvfp4_beside_it(tmp_path):
    out = make(tmp_path / "out")
    tensors = read(out)
    assert tensors["layers.0.ffn.shared_experts.w1.weight"].dtype == torch.float8_e4m3fn
    assert tensors["mtp.0.ffn.experts.0.w1.scale"].dtype == torch.float8_e8m0fnu
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "fp8"
    assert config["quantization_config"]["moe_quant_algo"] == "NVFP4"
    assert config["swiglu_limit"] == 10.0
