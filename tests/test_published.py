# SPDX-License-Identifier: Apache-2.0
"""Models that no exporter writes here, in the layout of their published files, against float64 of the files' values."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nvfp4_moe import Checkpoint
from reference import gates, generate, mxfp4, nvfp4
from reference.layer import Expert, PlainMatrix, ReferenceLayer, Situ, Swiglu, SwigluStep, relative_l2

E, K, H, INTER = 4, 2, 64, 32
SHAPES = {"gate": (INTER, H), "up": (INTER, H), "down": (H, INTER)}
W = {"gate": "w1", "up": "w3", "down": "w2"}
ROUTED = {"num_experts": E, "num_experts_per_token": K, "moe_intermediate_size": INTER, "hidden_act": "silu"}


def kimi_k3(matrices):
    """compressed-tensors' MXFP4, experts narrower than the model, and SiTU under a config that says silu."""
    stem = "language_model.model.layers.1.block_sparse_moe.experts"
    tensors = {
        f"{stem}.{e}.{W[name]}.{part}": tensor[e]
        for name, pair in matrices.items()
        for part, tensor in zip(("weight_packed", "weight_scale"), pair, strict=True)
        for e in range(E)
    }
    text = ROUTED | {
        "model_type": "kimi_linear", "hidden_size": 2 * H, "routed_expert_hidden_size": H, "activation_situ_beta": 4.0,
        "activation_situ_linear_beta": 25.0, "quantization_config": {"format": "mxfp4-pack-quantized"},
    }  # fmt: skip
    vision = {"model_type": "kimi_k3_vision", "hidden_size": 32, "projector_hidden_act": "gelu"}
    return tensors, {"model_type": "kimi_k3", "text_config": text, "vision_config": vision}, 1, Situ(25.0, beta=4.0)


def deepseek_v41(matrices):
    """DeepSeek-V4's tensors under a config with towers, and a layer for prediction beside."""
    tensors = {}
    for stem in ("layers.0.ffn", "mtp.0.ffn"):
        for name, (codes, scale) in matrices.items():
            for e in range(E):
                tensors[f"{stem}.experts.{e}.{W[name]}.weight"] = codes[e].view(torch.int8)
                tensors[f"{stem}.experts.{e}.{W[name]}.scale"] = scale[e].view(torch.float8_e8m0fnu)
    text = ROUTED | {"model_type": "deepseek_v41_text", "hidden_size": H, "swiglu_limit": 10.0, "n_routed_experts": E}
    config = {
        "model_type": "deepseek_v41", "text_config": text, "vision_config": {"hidden_size": 32, "hidden_act": "gelu"},
        "quantization_config": {"quant_method": "fp8", "expert_dtype": "fp4", "weight_block_size": [32, 32]},
    }  # fmt: skip
    return tensors, config, 0, Swiglu(10.0)


def step(matrices):
    """Experts stacked in a block that is called moe, and a limit of its own for each layer, after SiLU."""
    tensors = {
        f"model.layers.1.moe.{name}_proj.{part}": tensor
        for name, pair in matrices.items()
        for part, tensor in zip(("weight_packed", "weight_scale"), pair, strict=True)
    }
    config = ROUTED | {
        "model_type": "step3p5", "hidden_size": H, "moe_num_experts": E, "moe_top_k": K,
        "swiglu_limits": [0.0, 2.0], "swiglu_limits_shared": [0.0, 16.0],
        "quantization_config": {"format": "mxfp4-pack-quantized"},
    }  # fmt: skip
    return tensors, config, 1, SwigluStep(2.0)


class Layer(ReferenceLayer):
    """The experts' matrices [E, rows, columns] as they are in the files."""

    def __init__(self, values: dict[str, torch.Tensor], activation: Swiglu):
        self.values, self.swiglu = values, activation

    def expert(self, index: int) -> Expert:
        return Expert(*(PlainMatrix(self.values[name][index]) for name in SHAPES))


@pytest.mark.parametrize("published", [kimi_k3, deepseek_v41, step])
def test_a_published_layer_is_read_exactly_and_computes(tmp_path, published):
    generator = torch.Generator().manual_seed(11)
    matrices = {name: mxfp4.random_matrices((E, *shape), generator) for name, shape in SHAPES.items()}
    tensors, config, layer, activation = published(matrices)
    save_file(
        {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(tmp_path)
    info, weights = checkpoint.layer_info(layer), checkpoint.read_layer(layer)
    assert (info.format, info.hidden_size, info.intermediate_size, info.top_k) == ("mxfp4", H, INTER, K)

    values = {name: mxfp4.decode(*pair) for name, pair in matrices.items()}
    w13 = nvfp4.decode_blocks(weights.w13, weights.w13_block_scale).double().chunk(2, dim=1)
    scales = [*weights.w13_global_scale.double().unbind(1), weights.w2_global_scale.double()]
    read = [*w13, nvfp4.decode_blocks(weights.w2, weights.w2_block_scale).double()]
    for matrix, scale, expected in zip(read, scales, values.values(), strict=True):
        assert torch.equal(matrix * scale[:, None, None], expected)

    x, ids = generate.tokens(5, H, generator), generate.random_ids(5, E, K, generator)
    topk_weights = generate.random_topk_weights(5, K, generator)
    out = checkpoint.make_layer(layer, mode="bf16")(x, ids, topk_weights)
    expected = Layer(values, activation).forward(x, ids.long(), topk_weights).out
    assert relative_l2(out, expected) <= gates.REL_L2
