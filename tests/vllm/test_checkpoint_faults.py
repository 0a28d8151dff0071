# SPDX-License-Identifier: Apache-2.0
"""Layers and linears of real vLLM, filled as its loaders fill them: dummies, tensors that never come, other types."""

from dataclasses import replace

import pytest
import tiny_layers
import torch
from tiny_layers import (
    EXPERTS,
    FORMATS,
    HIDDEN,
    INTER,
    NAME,
    TOKENS,
    TOP_K,
    fill_with_dummies,
    load_experts,
    make_experts,
    make_linear,
    process,
    run_experts,
)
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEParallelConfig

from nvfp4_moe.plugin import input_scales, log
from reference import generate
from reference.layer import GeluTanh, ReferenceLayer, Swiglu, SwigluStep, relative_l2


@pytest.fixture(scope="module", autouse=True)
def _engine():
    with tiny_layers.engine():
        yield


@pytest.fixture
def warned(monkeypatch):
    lines = []
    monkeypatch.setattr(input_scales.logger, "warning", lambda text, *values: lines.append(text % values))
    return lines


@pytest.fixture
def not_active(monkeypatch):
    lines = []
    monkeypatch.setattr(log, "experts_refused", lambda reason, weights="NVFP4": lines.append(reason))
    monkeypatch.setattr(log, "linears_refused", lines.append)
    return lines


@pytest.mark.parametrize("mode", ["bf16", "nvfp4"])
@pytest.mark.parametrize("format", FORMATS)
def test_dummy_experts_load_and_run(monkeypatch, format, mode):
    monkeypatch.setenv("NVFP4_MOE_MODE", mode)
    layer = make_experts(format)
    fill_with_dummies(layer)
    assert run_experts(process(layer)).isfinite().all()


@pytest.mark.parametrize("format", FORMATS)
def test_loaded_experts_run(format):
    layer = make_experts(format)
    load_experts(layer, format)
    out = run_experts(process(layer))
    assert out.isfinite().all()
    assert out.any()


def expected(activation: Swiglu, **biases: torch.Tensor) -> torch.Tensor:
    """What run_experts should give with what load_experts brings, in float64."""
    weights = replace(generate.normal_weights(EXPERTS, HIDDEN, INTER, torch.Generator().manual_seed(0)), **biases)
    generator = torch.Generator().manual_seed(1)
    x = generate.tokens(TOKENS, HIDDEN, generator)
    topk_weights = generate.random_topk_weights(TOKENS, TOP_K, generator)
    ids = generate.random_ids(TOKENS, EXPERTS, TOP_K, generator)
    return ReferenceLayer(weights, activation).forward(x, ids.long(), topk_weights).out


@pytest.mark.parametrize(("name", "activation"), [("GELU_TANH", GeluTanh()), ("SWIGLUSTEP", SwigluStep(7.0))])
@pytest.mark.parametrize("format", FORMATS)
def test_other_activations_are_ours_and_compute(monkeypatch, format, name, activation):
    """Experts without a gate are not here: vLLM makes none on a CPU."""
    monkeypatch.setenv("NVFP4_MOE_MODE", "bf16")
    layer = make_experts(format, activation=MoEActivation[name])
    load_experts(layer, format)
    assert relative_l2(run_experts(process(layer)), expected(activation)) < 5e-3


@pytest.mark.parametrize("format", FORMATS)
def test_biases_are_parameters_that_must_be_loaded(monkeypatch, format):
    monkeypatch.setenv("NVFP4_MOE_MODE", "bf16")
    layer = make_experts(format, has_bias=True)
    load_experts(layer, format)
    generator = torch.Generator().manual_seed(2)
    shapes = {"w13_bias": 2 * INTER, "w2_bias": HIDDEN}
    biases = {name: torch.randn(EXPERTS, rows, generator=generator).bfloat16() for name, rows in shapes.items()}
    layer.w13_bias.data.copy_(biases["w13_bias"])
    with pytest.raises(ValueError, match=rf"{NAME}: w2_bias of experts 0, 1, 2, 3 is missing"):
        process(layer)
    layer.w2_bias.data.copy_(biases["w2_bias"])
    assert relative_l2(run_experts(process(layer)), expected(Swiglu(), **biases)) < 5e-3


def test_ranks_that_share_experts_add_w2s_bias_once(monkeypatch):
    """vLLM's loader gives it to every rank, and the ranks' outputs are added."""
    monkeypatch.setenv("NVFP4_MOE_MODE", "bf16")
    generator = torch.Generator().manual_seed(2)
    shapes = {"w13_bias": 2 * INTER, "w2_bias": HIDDEN}
    biases = {name: torch.randn(EXPERTS, rows, generator=generator).bfloat16() for name, rows in shapes.items()}
    out = 0
    for rank in range(2):
        alone = FusedMoEParallelConfig.make_no_parallel()
        layer = make_experts("modelopt", has_bias=True, moe_parallel_config=replace(alone, tp_size=2, tp_rank=rank))
        load_experts(layer, "modelopt")
        halves = biases["w13_bias"].unflatten(1, (2, 2, -1))  # gate and up, ranks
        layer.w13_bias.data.copy_(halves[:, :, rank].flatten(1))
        layer.w2_bias.data.copy_(biases["w2_bias"])
        out = out + run_experts(process(layer)).double()
    assert relative_l2(out, expected(Swiglu(), **biases)) < 5e-3


@pytest.mark.parametrize("what", ["weight", "block", "global"])
@pytest.mark.parametrize("format", FORMATS)
def test_what_never_came_is_refused_by_expert_and_tensor(format, what):
    name = FORMATS[format][1].get(what, "weight_scale")
    layer = make_experts(format)
    load_experts(layer, format, skip=lambda expert, tensor: expert == 2 and tensor == f"w3.{name}")
    with pytest.raises(ValueError, match=rf"{NAME}: w13_{name} of expert 2 is missing"):
        process(layer)


def test_a_negative_block_scale_of_a_checkpoint_is_no_dummy():
    layer = make_experts("modelopt")
    load_experts(layer, "modelopt")
    layer.w2_weight_scale.data.view(torch.uint8)[1, 5, 2] = 0xB8
    with pytest.raises(ValueError, match=rf"{NAME}: .*block.scale.* -1 "):
        process(layer)
    layer.w13_weight_scale.data.view(torch.uint8)[0, 0, 0] = 0xB8
    with pytest.raises(ValueError, match=r"block.scale.* -1 "):
        process(layer)


@pytest.mark.parametrize("format", FORMATS)
def test_an_input_scale_that_never_came_or_means_nothing_is_named_and_left_out(monkeypatch, warned, format):
    monkeypatch.setenv("NVFP4_MOE_MODE", "nvfp4")
    name = FORMATS[format][1]["input"]
    layer = make_experts(format)
    load_experts(layer, format, lambda expert, tensor: expert == 2 and tensor.endswith(name), w1_0=1.0, w2_3=900.0)
    experts = process(layer).quant_method.moe_kernel.fused_experts
    assert run_experts(layer).isfinite().all()
    first, second = warned
    assert "w13_input_scale of expert 0 (w1) is 1, a placeholder; expert 2 (w1) is nan; expert 2 (w3) is nan" in first
    assert "w2_input_scale of expert 2 is nan; expert 3 is 900, where the largest of all others is 0.002" in second
    assert all("which is 0.002" in line for line in warned)
    assert experts.layer is not None


@pytest.mark.parametrize("changes", [{"in_dtype": torch.float16}, {"intermediate_size": 24}, {"hidden_dim": 72}])
def test_experts_that_the_library_does_not_serve_are_left_to_vllm(not_active, changes):
    """Which has no NVFP4 experts on a CPU, and says so in its own words."""
    with pytest.raises(NotImplementedError, match="No NvFp4 MoE backend supports"):
        make_experts("modelopt", **changes)
    assert len(not_active) == 1


# ---- Linears ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bf16", "nvfp4"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("format", FORMATS)
def test_dummy_linears_load_and_run(monkeypatch, format, parts, mode):
    monkeypatch.setenv("NVFP4_MOE_MODE", mode)
    linear = make_linear(format, parts=parts)
    fill_with_dummies(linear)
    out = process(linear)(torch.ones(3, HIDDEN, dtype=torch.bfloat16))
    assert (out[0] if isinstance(out, tuple) else out).isfinite().all()


def test_a_float16_linear_is_left_to_vllm(not_active):
    """Which has no NVFP4 linear on a CPU: the error says both."""
    linear = make_linear("modelopt", torch.float16)
    fill_with_dummies(linear)
    with pytest.raises(ValueError, match=r"dtype is torch.float16; .* vLLM says: Failed to find a kernel"):
        process(linear)
    assert len(not_active) == 1
