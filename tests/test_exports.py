# SPDX-License-Identifier: Apache-2.0
"""Files that other people's tools wrote (tests/checkpoints/exports), against what the tools' own code decodes."""

import json
import re
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from nvfp4_moe import Checkpoint
from reference import gates, nvfp4
from reference.layer import ReferenceLayer, relative_l2
from reference.rounding import RoundedLayer

sys.path.append(str(Path(__file__).with_name("checkpoints")))
from make_exports import EXPERTS, HIDDEN, INTER, TOP_K, probe

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
    "modelopt-llama4-stacked": ([], (0, "output features first")),
    "compressed-tensors-nvfp4": ([0], None),
    "compressed-tensors-nvfp4a16": ([0], None),
}
WITHOUT_INPUT_SCALES = ("modelopt-w4a16", "compressed-tensors-nvfp4a16")


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
            for matrix in ("gate_proj", "up_proj", "down_proj"):
                (name,) = [n for n in stored if re.search(rf"\.{layer}\..*\.{expert}\.{matrix}$", n)]
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
    gate, up = w13.chunk(2, dim=1)
    scale = weights.w13_global_scale.double()
    return {
        "gate_proj": gate * scale[:, 0, None, None],
        "up_proj": up * scale[:, 1, None, None],
        "down_proj": w2 * weights.w2_global_scale.double()[:, None, None],
    }


@pytest.mark.parametrize("export", [name for name, (layers, _) in CASES.items() if layers], indirect=True)
def test_a_layer_of_an_export_computes(export, request):
    """Sizes, top-k and input scales are found under each config's own names; out is the float64 reference's."""
    name = request.node.callspec.params["export"]
    (layer,) = CASES[name][0]
    checkpoint = Checkpoint(export)
    info = checkpoint.layer_info(layer)
    assert (info.hidden_size, info.intermediate_size, info.num_experts, info.top_k) == (HIDDEN, INTER, EXPERTS, TOP_K)
    assert (info.w13_input_scale > 0 and info.w2_input_scale > 0) == (name not in WITHOUT_INPUT_SCALES)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, HIDDEN, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in range(5)]).int()
    weights = torch.rand(5, TOP_K, generator=generator)
    out = checkpoint.make_layer(layer, mode="bf16")(x, ids, weights)
    read = checkpoint.read_layer(layer)
    assert relative_l2(out, ReferenceLayer(read).forward(x, ids, weights).out) < 5e-3

    rounded = checkpoint.make_layer(layer, mode="fp8", fp8_max_error=0.04)
    wanted = RoundedLayer(read).forward(x, ids, weights, "fp8")
    assert relative_l2(rounded(x, ids, weights), wanted.out) < gates.bound(wanted, "fp8", "cpu")
    assert 0 < rounded.weight_error().rel_l2 < 0.04
