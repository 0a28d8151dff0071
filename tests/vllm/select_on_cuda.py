# SPDX-License-Identifier: Apache-2.0
"""What vLLM would choose on an H100, asked on a machine without one: its real selection code over a stand-in platform.

    python tests/vllm/select_on_cuda.py

Prints one JSON line: for each case the class chosen, or the error. The library is told that it runs on CUDA, except in
the cases named refused.
"""

import json
import logging
import os
import sys
from unittest.mock import MagicMock

import torch
import vllm.platforms
from vllm.platforms.interface import DeviceCapability, Platform, PlatformEnum


class H100(Platform):
    """Answers of vLLM's CUDA platform that selection asks for."""

    _enum = PlatformEnum.CUDA
    device_name = "cuda"
    device_type = "cuda"
    dispatch_key = "CUDA"

    @classmethod
    def get_device_capability(cls, device_id=0):
        return DeviceCapability(9, 0)

    @classmethod
    def get_device_name(cls, device_id=0):
        return "NVIDIA H100 80GB HBM3"

    @classmethod
    def import_kernels(cls):
        pass


vllm.platforms._current_platform = H100()

import vllm._custom_ops

# Asked at import, of compiled code that is not here.
sys.modules["vllm.vllm_flash_attn"] = MagicMock()
for name in dir(vllm._custom_ops):
    if name.startswith("cutlass_") and "_supports_" in name:
        setattr(vllm._custom_ops, name, lambda *capability: True)

import vllm.model_executor.layers.fused_moe.oracle.nvfp4 as oracle
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.kernels import linear as vllm_linear
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import (
    FusedMoEConfig,
    FusedMoEParallelConfig,
    RoutingMethodType,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Dynamic, kNvfp4Static
from vllm.models.deepseek_v4.quant_config import DeepseekV4FP8Config

from nvfp4_moe import plugin
from nvfp4_moe.plugin import moe, support

logged: list[str] = []


class Logged(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())


def moe_config(**changes) -> FusedMoEConfig:
    """A DeepSeek-V4-Flash layer."""
    values = {
        "num_experts": 256,
        "experts_per_token": 6,
        "hidden_dim": 4096,
        "num_local_experts": 256,
        "num_logical_experts": 256,
        "activation": MoEActivation.SILU,
        "device": "cuda",
        "routing_method": RoutingMethodType.Custom,
        "moe_parallel_config": FusedMoEParallelConfig.make_no_parallel(),
        "in_dtype": torch.bfloat16,
        "swiglu_limit": 10.0,
        "intermediate_size": 2048,
    }
    return FusedMoEConfig(**values | changes)


def chosen(ask) -> str:
    """Class name of what was chosen, or the error's first line."""
    try:
        return ask()
    except Exception as error:  # vLLM raises ValueError, NotImplementedError and ImportError here
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def experts(activation_key=kNvfp4Dynamic, **changes) -> str:
    def ask():
        with moe.offered_to_oracle():
            return oracle.select_nvfp4_moe_backend(moe_config(**changes), kNvfp4Static, activation_key)[1].__name__

    return chosen(ask)


def layer(algorithm="NVFP4", **changes) -> dict:
    """A layer of DeepSeek-V4's mixed checkpoints (MXFP4: of the original), built as vLLM builds it: what serves it, and
    what the log says."""
    quantization = DeepseekV4FP8Config(is_checkpoint_fp8_serialized=True, weight_block_size=[128, 128])
    quantization._resolved_moe_quant_algo, quantization._resolved_expert_dtype = algorithm, "fp4"
    experts_layer = object.__new__(RoutedExperts)
    torch.nn.Module.__init__(experts_layer)
    experts_layer.moe_config = moe_config(**changes)
    logged.clear()
    method = experts_layer._get_quant_method("model.layers.1.ffn.experts", quantization, experts_layer.moe_config)
    return {"experts": method.experts_cls.__name__, "method": type(method).__name__, "logged": list(logged)}


def linear_kernel(backend: str = "auto", disabled: str = "") -> str:
    def ask():
        config = VllmConfig()
        config.kernel_config.linear_backend = backend
        os.environ["VLLM_DISABLED_KERNELS"] = disabled
        with set_current_vllm_config(config):
            return type(vllm_linear.init_nvfp4_linear_kernel()).__name__

    return chosen(ask)


def eplb() -> FusedMoEParallelConfig:
    config = FusedMoEParallelConfig.make_no_parallel()
    config.enable_eplb = True
    return config


def main() -> None:
    plugin.register()
    logger = logging.getLogger("vllm.nvfp4_moe")
    logger.addHandler(Logged())
    logger.setLevel(logging.INFO)  # 0.33 configures its logging when the engine starts
    refused = experts(), linear_kernel()  # what this machine really can do
    support.device_refusal = support.layer_refusal = lambda device_type, **options: None
    cases = {
        "refused": refused[0],
        "clamp": experts(),
        "no_clamp": experts(swiglu_limit=None),
        "w4a16": experts(activation_key=None),
        "marlin": experts(moe_backend="marlin"),
        "eplb": experts(moe_parallel_config=eplb()),
        "float16": experts(in_dtype=torch.float16),
        "gelu_no_mul": experts(activation=MoEActivation.GELU_NO_MUL),
        "layer": layer(),
        "layer_marlin": layer(moe_backend="marlin"),
        "layer_float16": layer(in_dtype=torch.float16),
        "original": layer("MXFP4"),
        "original_marlin": layer("MXFP4", moe_backend="marlin"),
        "original_split": layer("MXFP4", intermediate_size=2048 + 16),
        "linear_refused": refused[1],
        "linear": linear_kernel(),
        "linear_marlin": linear_kernel("marlin"),
        "linear_disabled": linear_kernel(disabled="Nvfp4MoeLinearKernel"),
    }
    print("CHOSEN " + json.dumps(cases | {"vllm": vllm.__version__, "patched_after": oracle_is_patched()}))


def oracle_is_patched() -> bool:
    """Is a replaced function still there?"""
    return any(of.backend_to_kernel_cls.__module__ != of.__name__ for of in moe.ORACLES.values())


if __name__ == "__main__":
    main()
