# SPDX-License-Identifier: Apache-2.0
"""Layers and linears of real vLLM, filled as its loaders fill them: dummies, tensors that never come, other types."""

import contextlib
import inspect
import os

import pytest
import torch
import vllm.model_executor.model_loader.weight_utils as weight_utils
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, RoutingMethodType
from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, ReplicatedLinear
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4Config

from nvfp4_moe import plugin
from nvfp4_moe.plugin import input_scales, log
from reference import generate

EXPERTS, TOP_K, HIDDEN, INTER, TOKENS = 4, 2, 128, 64, 5
NAME = "model.layers.0.mlp.experts"
NUMBERS = {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group", "symmetric": True}
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "quantization_status": "compressed",
    "ignore": [], "config_groups": {"group_0": {
        "weights": NUMBERS | {"dynamic": False}, "input_activations": NUMBERS | {"dynamic": "local"},
        "targets": ["Linear"], "format": "nvfp4-pack-quantized",
    }},
}  # fmt: skip
# The configuration, and what its checkpoints call things.
FORMATS = {
    "modelopt": (
        lambda: ModelOptNvFp4Config(is_checkpoint_nvfp4_serialized=True),
        {"weight": "weight", "global": "weight_scale_2", "input": "input_scale"},
    ),
    "compressed": (
        lambda: CompressedTensorsConfig.from_config(COMPRESSED),
        {"weight": "weight_packed", "global": "weight_global_scale", "input": "input_global_scale"},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _engine():
    """A vLLM that is about to build a model on one rank."""
    plugin.register()
    with set_current_vllm_config(VllmConfig()):
        with contextlib.suppress(AssertionError):  # another file's tests have made them
            port = 29000 + os.getpid() % 2000
            init_distributed_environment(1, 0, f"tcp://127.0.0.1:{port}", 0, "gloo")
            initialize_model_parallel(1, 1)
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


def make_experts(format: str, **changes):
    """vLLM's layer of routed experts, ours where the plugin has replaced it."""
    config = FusedMoEConfig(**{
        "num_experts": EXPERTS, "experts_per_token": TOP_K, "hidden_dim": HIDDEN, "intermediate_size": INTER,
        "num_local_experts": EXPERTS, "num_logical_experts": EXPERTS, "activation": MoEActivation.SILU, "device": "cpu",
        "routing_method": RoutingMethodType.Default, "in_dtype": torch.bfloat16,
        "moe_parallel_config": FusedMoEParallelConfig.make_no_parallel(), **changes,
    })  # fmt: skip
    arguments = dict(
        max_num_batched_tokens=64, top_k=TOP_K, global_num_experts=EXPERTS, num_redundant_experts=0,
        num_expert_group=None, moe_parallel_config=config.moe_parallel_config, placement_strategy="linear",
        enable_eplb=False,
    )  # fmt: skip
    known = inspect.signature(ExpertMapManager.__init__).parameters
    manager = ExpertMapManager(**{name: value for name, value in arguments.items() if name in known})
    return op_registry_oot["RoutedExperts"](
        layer_name=NAME,
        params_dtype=torch.bfloat16,
        moe_config=config,
        quant_config=FORMATS[format][0](),
        expert_map_manager=manager,
    )


def load_experts(layer, format: str, skip=lambda expert, name: False, **values: float) -> None:
    """What a checkpoint's files bring, expert by expert, but what is to be skipped; `values` of input scales."""
    weights = generate.normal_weights(EXPERTS, HIDDEN, INTER, torch.Generator().manual_seed(0))
    names, parameters = FORMATS[format][1], dict(layer.named_parameters())
    stored = (lambda scale: 1 / scale) if format == "compressed" else (lambda scale: scale)
    e4m3 = torch.float8_e4m3fn
    for expert in range(EXPERTS):
        for shard, gemm in (("w1", "w13"), ("w3", "w13"), ("w2", "w2")):
            part = {"w1": slice(0, INTER), "w3": slice(INTER, 2 * INTER), "w2": slice(None)}[shard]
            scale = getattr(weights, f"{gemm}_global_scale")[expert]
            scale = scale[int(shard == "w3")] if gemm == "w13" else scale
            tensors = {
                names["weight"]: getattr(weights, gemm)[expert, part],
                "weight_scale": getattr(weights, f"{gemm}_block_scale").view(e4m3)[expert, part],
                names["global"]: stored(scale),
                names["input"]: stored(torch.tensor(values.get(f"{shard}_{expert}", 0.002))),
            }
            for name, tensor in tensors.items():
                if skip(expert, f"{shard}.{name}"):
                    continue
                parameter = parameters[f"{gemm}_{name}"]
                parameter.weight_loader(
                    parameter, tensor, f"{expert}.{gemm}_{name}", shard_id=shard, expert_id=expert, return_success=True
                )


def run_experts(layer) -> torch.Tensor:
    """Finite?"""
    generator = torch.Generator().manual_seed(1)
    x = generate.tokens(TOKENS, HIDDEN, generator)
    out, nothing = torch.full_like(x, torch.nan), torch.empty(0, dtype=x.dtype)
    layer.quant_method.moe_kernel.fused_experts.apply(
        output=out, hidden_states=x, w1=None, w2=None,
        topk_weights=generate.random_topk_weights(TOKENS, TOP_K, generator),
        topk_ids=generate.random_ids(TOKENS, EXPERTS, TOP_K, generator), activation=layer.activation,
        global_num_experts=EXPERTS, expert_map=None, a1q_scale=None, a2_scale=None, workspace13=nothing,
        workspace2=nothing, expert_tokens_meta=None, apply_router_weight_on_input=False,
    )  # fmt: skip
    return out


def process(layer):
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def fill_with_dummies(layer) -> None:
    """As vLLM's DummyModelLoader does."""
    for parameter in layer.parameters():
        weight_utils.initialize_single_dummy_weight(parameter)


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


def make_linear(format: str, dtype: torch.dtype = torch.bfloat16, parts: int = 1):
    options = dict(bias=False, quant_config=FORMATS[format][0](), prefix="model.layers.0.qkv", params_dtype=dtype)
    if parts == 1:
        return ReplicatedLinear(HIDDEN, 96, **options)
    return MergedColumnParallelLinear(HIDDEN, [96] * parts, **options)


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
