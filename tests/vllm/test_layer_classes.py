# SPDX-License-Identifier: Apache-2.0
"""vLLM's layers of experts by their class: those that compute the same are served, others are named, once each."""

import pytest
import torch
from test_checkpoint_faults import _engine, not_active  # noqa: F401
from tiny_layers import FORMATS, load_experts, make_experts, process, run_experts
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

from nvfp4_moe.plugin import moe


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
