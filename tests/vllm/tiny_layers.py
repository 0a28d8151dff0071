# SPDX-License-Identifier: Apache-2.0
"""One layer of experts and one linear of real vLLM, filled as its loaders fill them."""

import contextlib
import inspect
import os

import torch
import vllm.model_executor.model_loader.weight_utils as weight_utils
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, RoutingMethodType
from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, ReplicatedLinear
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4Config

from nvfp4_moe import plugin
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


@contextlib.contextmanager
def engine():
    """A vLLM that is about to build a model on one rank."""
    plugin.register()
    with set_current_vllm_config(VllmConfig()):
        with contextlib.suppress(AssertionError):  # another file's tests have made them
            port = 29000 + os.getpid() % 2000
            init_distributed_environment(1, 0, f"tcp://127.0.0.1:{port}", 0, "gloo")
            initialize_model_parallel(1, 1)
        yield


def make_experts(format: str, layer_class: type = RoutedExperts, **changes):
    """vLLM's layer of routed experts."""
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
    return layer_class(
        layer_name=NAME,
        params_dtype=torch.bfloat16,
        moe_config=config,
        quant_config=FORMATS[format][0]() if format else None,
        expert_map_manager=manager,
    )


def load_experts(layer, format: str, skip=lambda expert, name: False, seed: int = 0, **values: float) -> None:
    """What a checkpoint's files bring, expert by expert, but what is to be skipped; `values` of input scales."""
    weights = generate.normal_weights(EXPERTS, HIDDEN, INTER, torch.Generator().manual_seed(seed))
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


def run_experts(layer, expert_map: torch.Tensor | None = None) -> torch.Tensor:
    """The same tokens and routing each time."""
    generator = torch.Generator().manual_seed(1)
    x = generate.tokens(TOKENS, HIDDEN, generator)
    out, nothing = torch.full_like(x, torch.nan), torch.empty(0, dtype=x.dtype)
    layer.quant_method.moe_kernel.fused_experts.apply(
        output=out, hidden_states=x, w1=None, w2=None,
        topk_weights=generate.random_topk_weights(TOKENS, TOP_K, generator),
        topk_ids=generate.random_ids(TOKENS, EXPERTS, TOP_K, generator), activation=layer.activation,
        global_num_experts=EXPERTS, expert_map=expert_map, a1q_scale=None, a2_scale=None, workspace13=nothing,
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


def make_linear(format: str, dtype: torch.dtype = torch.bfloat16, parts: int = 1):
    options = dict(bias=False, quant_config=FORMATS[format][0](), prefix="model.layers.0.qkv", params_dtype=dtype)
    if parts == 1:
        return ReplicatedLinear(HIDDEN, 96, **options)
    return MergedColumnParallelLinear(HIDDEN, [96] * parts, **options)


def load_linear(linear, format: str, parts: int = 1, skip: str = "", seed: int = 0) -> None:
    """What a checkpoint's files bring, part by part, but the last part's tensor that is to be skipped."""
    names, parameters = FORMATS[format][1], dict(linear.named_parameters())
    stored = (lambda scale: 1 / scale) if format == "compressed" else (lambda scale: scale)
    generator = torch.Generator().manual_seed(seed)
    for part in range(parts):
        codes, block_scale, scale = generate.quantize_matrix(
            torch.empty(96, HIDDEN, dtype=torch.bfloat16).normal_(generator=generator)
        )
        tensors = {
            names["weight"]: codes,
            "weight_scale": block_scale.view(torch.float8_e4m3fn),
            names["global"]: stored(torch.tensor(scale)),
            names["input"]: stored(torch.tensor(0.002 * (1 + seed))),
        }
        for name, tensor in tensors.items():
            if part < parts - 1 or name != skip:
                parameter = parameters[name]
                parameter.weight_loader(parameter, tensor, *((part,) if parts > 1 else ()))


def run_linear(linear) -> torch.Tensor:
    """Of the same tokens each time."""
    out = linear(generate.tokens(TOKENS, HIDDEN, torch.Generator().manual_seed(1)))
    return out[0] if isinstance(out, tuple) else out
