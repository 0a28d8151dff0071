# SPDX-License-Identifier: Apache-2.0
"""vLLM's layers of experts by their class: those that compute the same are served, others are named, once each."""

import pytest
import torch
from test_checkpoint_faults import _engine, not_active  # noqa: F401
from tiny_layers import (
    EXPERTS,
    FORMATS,
    HIDDEN,
    INTER,
    TOKENS,
    TOP_K,
    load_experts,
    make_experts,
    process,
    run_experts,
)
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

from nvfp4_moe.plugin import moe
from reference import generate
from reference.layer import ReferenceLayer, Swiglu, relative_l2


class TransformersRoutedExperts(RoutedExperts):
    """As vLLM's of this name, which differs in the names that files have for its tensors."""


class DbrxExperts(RoutedExperts):
    """Stands for vLLM's, which is in a model's file."""


class ChoosesByItself(RoutedExperts):
    """As Muse Spark's: its method comes from no quantisation config."""

    def _get_quant_method(self, prefix, quant_config, moe_config):
        return OwnMethod(moe_config)


class OwnMethod(UnquantizedFusedMoEMethod):
    def create_weights(self, layer, *args, **kwargs):
        for name, dtype in (("w13_weight", torch.uint8), ("w13_weight_scale", torch.float8_e4m3fn)):
            layer.register_parameter(name, torch.nn.Parameter(torch.zeros(1, dtype=dtype), requires_grad=False))


@pytest.mark.parametrize("format", FORMATS)
def test_a_class_that_only_loads_otherwise_gives_the_same_bits(format):
    layers = [make_experts(format, layer_class) for layer_class in (RoutedExperts, TransformersRoutedExperts)]
    for layer in layers:
        load_experts(layer, format)
    assert type(layers[1].quant_method) in moe.SPECIALISED.values()
    assert torch.equal(*(run_experts(process(layer)) for layer in layers))


def test_a_class_that_is_not_ours_is_named_with_the_reason(not_active):  # noqa: F811
    with pytest.raises((NotImplementedError, ValueError)):  # vLLM alone, which has no kernel here
        make_experts("modelopt", DbrxExperts)
    (line,) = not_active
    assert line == (
        "DbrxExperts is another class of experts than vLLM's RoutedExperts; its loader takes no scales of FP4 weights"
    )


def test_a_class_that_asks_nobody_is_named_too(not_active):  # noqa: F811
    layer = make_experts("modelopt", ChoosesByItself)
    assert type(layer.quant_method) is OwnMethod
    (line,) = not_active
    assert line.startswith("ChoosesByItself is another class of experts")


def test_experts_that_are_not_quantised_are_nobodys_business(not_active):  # noqa: F811
    layer = make_experts("", DbrxExperts)
    assert type(layer.quant_method) is UnquantizedFusedMoEMethod
    assert "weight_loader" not in vars(layer)
    assert not not_active


def test_gpt_oss_of_compressed_tensors_loads_and_computes():
    """As its files have it: an expert's gate and up in one tensor, rows in turn, with one global scale; biases."""
    gpt_oss = pytest.importorskip("vllm.model_executor.models.gpt_oss")
    layer_class = getattr(gpt_oss, "GptOssRoutedExperts", None)
    if layer_class is None:
        pytest.skip("this vLLM loads gpt-oss by its model alone")
    layer = make_experts("compressed", layer_class, activation=MoEActivation.SWIGLUOAI, has_bias=True)
    generator = torch.Generator().manual_seed(0)
    weights = generate.normal_weights(EXPERTS, HIDDEN, INTER, generator).with_biases(generator).with_interleaved_rows()
    weights.w13_global_scale[:, 1] = weights.w13_global_scale[:, 0]
    for expert in range(EXPERTS):
        for gemm in ("w13", "w2"):
            of = {name: getattr(weights, f"{gemm}{name}")[expert] for name in ("", "_block_scale", "_bias")}
            tensors = {
                "weight_packed": of[""],
                "weight_scale": of["_block_scale"].view(torch.float8_e4m3fn),
                "weight_global_scale": 1 / getattr(weights, f"{gemm}_global_scale").view(EXPERTS, -1)[expert, :1],
                "input_global_scale": torch.tensor([500.0]),
                "bias": of["_bias"],
            }
            for name, tensor in tensors.items():
                parameter = getattr(layer, f"{gemm}_{name}")
                parameter.weight_loader(
                    parameter,
                    tensor,
                    f"x.{gemm}_{name}",
                    shard_id=f"gpt_oss_{gemm}",
                    expert_id=expert,
                    return_success=True,
                )
    out = run_experts(process(layer))
    inputs = generate.tokens(TOKENS, HIDDEN, generator := torch.Generator().manual_seed(1))
    topk_weights = generate.random_topk_weights(TOKENS, TOP_K, generator)
    ids = generate.random_ids(TOKENS, EXPERTS, TOP_K, generator)
    expected = ReferenceLayer(weights, Swiglu(7.0, 1.702, 1.0)).forward(inputs, ids.long(), topk_weights).out
    assert relative_l2(out, expected) < 5e-3


@pytest.mark.parametrize(("scales", "is_ours"), [("static", True), ("calibrated", False)])
def test_the_same_bits_in_every_batch_are_ours_to_serve(monkeypatch, not_active, scales, is_ours):  # noqa: F811
    """vLLM asks its experts for that; calibration is refused by name, because the bits change once."""
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    monkeypatch.setenv("NVFP4_MOE_MODE", "nvfp4")
    monkeypatch.setenv("NVFP4_MOE_SCALES", scales)
    if is_ours:
        assert type(make_experts("modelopt").quant_method) in moe.SPECIALISED.values()
        assert not not_active
        return
    with pytest.raises((NotImplementedError, ValueError)):  # vLLM alone, which has no kernel here
        make_experts("modelopt")
    (line,) = not_active
    assert line.startswith("VLLM_BATCH_INVARIANT is set, and NVFP4_MOE_SCALES is calibrated")
