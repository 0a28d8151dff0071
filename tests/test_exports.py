# SPDX-License-Identifier: Apache-2.0
"""Files that other people's tools wrote (tests/checkpoints/exports), against what the tools' own code decodes."""

import json
import re
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nvfp4_moe import Checkpoint
from reference import gates, nvfp4
from reference.layer import GeluTanh, ReferenceLayer, Relu2, Swiglu, relative_l2
from reference.rounding import RoundedLayer

sys.path.append(str(Path(__file__).with_name("checkpoints")))
from export_models import EXPERTS, HIDDEN, INTER, TOP_K
from make_exports import probe

EXPORTS = Path(__file__).with_name("checkpoints") / "exports"
# name: layers that are read; (layer, what is said about it) of those that are not
CASES = {
    "modelopt-default": ([0], None),
    "modelopt-w4a16": ([0], None),
    "modelopt-experts-only": ([0], None),
    "modelopt-fp8-attention": ([0], None),
    "modelopt-without-layer-1": ([0], (1, "its experts hold weight BF16")),
    "modelopt-bf16-experts": ([], (0, "its experts hold weight BF16")),
    "modelopt-ernie": ([1], (0, "1 FP4 MoE layers, 1 to 1")),
    "modelopt-hunyuan": ([0], None),
    "modelopt-llama4-stacked": ([0], None),
    "modelopt-mixtral": ([0], None),
    "modelopt-deepseek-v3": ([1], (0, "1 FP4 MoE layers, 1 to 1")),
    "modelopt-glm4-moe": ([1], (0, "1 FP4 MoE layers, 1 to 1")),
    "modelopt-minimax-m3": ([0], None),
    "modelopt-nemotron-h": ([1], (0, "1 FP4 MoE layers, 1 to 1")),
    "modelopt-gemma4": ([0], None),
    "modelopt-gpt-oss": ([0], None),
    "gpt-oss-mxfp4": ([0], None),
    "compressed-tensors-nvfp4": ([0], None),
    "compressed-tensors-nvfp4a16": ([0], None),
}
WITHOUT_INPUT_SCALES = ("modelopt-w4a16", "compressed-tensors-nvfp4a16", "gpt-oss-mxfp4")
OAI = Swiglu(7.0, 1.702, 1.0)
ACTIVATIONS = {
    "modelopt-minimax-m3": OAI,
    "modelopt-nemotron-h": Relu2(),
    "modelopt-gemma4": GeluTanh(),
    "modelopt-gpt-oss": OAI,
    "gpt-oss-mxfp4": OAI,
}
NAMES = {"gate_proj": "(gate_proj|w1)", "up_proj": "(up_proj|w3)", "down_proj": "(down_proj|w2)"}


@pytest.fixture
def export(request, tmp_path) -> Path:
    with tarfile.open(EXPORTS / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_every_export_is_read_here():
    assert {path.name.removesuffix(".tar.xz") for path in EXPORTS.glob("*.tar.xz")} == set(CASES)


@pytest.mark.parametrize("export", CASES, indirect=True)
def test_decoded_weights_are_the_exporters(export, request):
    """Each row of each expert's matrices, times a fixed vector, in float64; or the sentence that refuses the layer."""
    layers, refused = CASES[request.node.callspec.params["export"]]
    checkpoint, stored = Checkpoint(export), json.loads((export / "reference.json").read_text())
    assert [layer["layer"] for layer in checkpoint.survey["layers"]] == layers
    for layer in layers:
        decoded = decode(checkpoint.read_layer(layer))
        for expert in range(EXPERTS):
            for matrix in decoded:
                (name,) = [n for n in stored if re.search(rf"\.{layer}\..*\.{expert}\.{NAMES[matrix]}$", n)]
                expected = torch.tensor(stored.pop(name), dtype=torch.float64)
                product = decoded[matrix][expert] @ probe(decoded[matrix].shape[-1])
                assert torch.allclose(product, expected, rtol=1e-6, atol=1e-6 * expected.abs().max())
    assert not stored, "every matrix that the exporter decodes was read"
    if refused:
        with pytest.raises((RuntimeError, ValueError), match=refused[1]):
            checkpoint.layer_info(refused[0])


def decode(weights) -> dict[str, torch.Tensor]:
    """float64 [E, rows, columns] by the exporters' names."""
    w13 = nvfp4.decode_blocks(weights.w13, weights.w13_block_scale).double()
    w2 = nvfp4.decode_blocks(weights.w2, weights.w2_block_scale).double()
    scales = weights.w13_global_scale.double()
    names = ("gate_proj", "up_proj")[2 - scales.shape[1] :]  # without a gate, up alone
    halves = zip(names, w13.chunk(len(names), dim=1), scales.unbind(1), strict=True)
    decoded = {name: half * scale[:, None, None] for name, half, scale in halves}
    return decoded | {"down_proj": w2 * weights.w2_global_scale.double()[:, None, None]}


@pytest.mark.parametrize("export", ["modelopt-gpt-oss", "gpt-oss-mxfp4"], indirect=True)
def test_biases_are_the_files(export):
    """bf16, those of gate and up in turn."""
    with safe_open(export / "model.safetensors", "pt") as file:
        bias = {
            name: file.get_tensor(f"model.layers.0.mlp.experts.{name}_bias") for name in ("gate_up_proj", "down_proj")
        }
    weights = Checkpoint(export).read_layer(0)
    gate_first = torch.cat([bias["gate_up_proj"][:, ::2], bias["gate_up_proj"][:, 1::2]], dim=1)
    assert torch.equal(weights.w13_bias, gate_first)
    assert torch.equal(weights.w2_bias, bias["down_proj"])


@pytest.mark.parametrize("export", [name for name, (layers, _) in CASES.items() if layers], indirect=True)
def test_a_layer_of_an_export_computes(export, request):
    """Sizes, top-k and input scales are found under each config's own names; out is the float64 reference's."""
    name = request.node.callspec.params["export"]
    (layer,) = CASES[name][0]
    checkpoint = Checkpoint(export)
    info = checkpoint.layer_info(layer)
    top_k = 1 if "llama4" in name else TOP_K
    assert (info.hidden_size, info.intermediate_size, info.num_experts, info.top_k) == (HIDDEN, INTER, EXPERTS, top_k)
    assert (info.w13_input_scale > 0 and info.w2_input_scale > 0) == (name not in WITHOUT_INPUT_SCALES)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, HIDDEN, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:top_k] for _ in range(5)]).int()
    weights = torch.rand(5, top_k, generator=generator)
    out = checkpoint.make_layer(layer, mode="bf16")(x, ids, weights)
    read, activation = checkpoint.read_layer(layer), ACTIVATIONS.get(name, Swiglu())
    assert relative_l2(out, ReferenceLayer(read, activation).forward(x, ids, weights).out) < 5e-3

    rounded = checkpoint.make_layer(layer, mode="fp8", fp8_max_error=0.04)
    wanted = RoundedLayer(read, activation).forward(x, ids, weights, "fp8")
    assert relative_l2(rounded(x, ids, weights), wanted.out) < gates.bound(wanted, "fp8", "cpu")
    error = rounded.weight_error().rel_l2
    assert error < 0.04
    assert (error == 0) == (name == "gpt-oss-mxfp4")  # whose scales are powers of two
