# SPDX-License-Identifier: Apache-2.0
"""MXFP4 experts, as DeepSeek-V4's authors publish them: loaded as vLLM loads them, then cast to NVFP4 without loss.

What a cast cannot hold is found only when the weights are there. Such a layer goes back to vLLM as vLLM alone would
have it, and the log says so.
"""

import torch
import vllm.model_executor.layers.fused_moe.oracle.mxfp4 as oracle
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.quantization.mxfp4 import Mxfp4MoEMethod

from nvfp4_moe import cast_mxfp4

from . import log, moe

HALVES = {"w13": 2, "w2": 1}
"""Matrices in a parameter, each of which gets its own factor."""


class Mxfp4MoE(moe.library_method(Mxfp4MoEMethod)):
    """vLLM's parameters: e2m1 codes and e8m0 bytes."""

    weights = "MXFP4"

    def maybe_roundup_sizes(self, hidden_size, intermediate_size_per_partition, act_dtype, moe_parallel_config):
        """None of the tiles of vLLM's own kernels; `experts.py` has refused what a block of 32 does not divide."""
        return FusedMoEMethodBase.maybe_roundup_sizes(
            self, hidden_size, intermediate_size_per_partition, act_dtype, moe_parallel_config
        )

    def check_loaded(self, layer):
        """Dummy weights are as they were marked: zeros, which can be served."""
        config = get_current_vllm_config_or_none()
        if config is None or config.load_config.load_format != "dummy":
            super().check_loaded(layer)

    def is_dummy(self, layer, missing):
        """Any byte may be a scale's."""
        return False

    def process_weights_after_loading(self, layer):
        """Cast, and go on as with NVFP4; or give the layer back."""
        self.check_loaded(layer)
        try:
            scales = {gemm: cast(layer, gemm) for gemm in HALVES}
        except ValueError as refusal:
            give_back(self, layer, f"{layer.layer_name}: {refusal}")
            return
        for gemm, (block_scale, global_scale) in scales.items():
            delattr(layer, f"{gemm}_weight_scale")
            for name, data in (("weight_scale", block_scale), ("weight_scale_2", global_scale)):
                layer.register_parameter(f"{gemm}_{name}", torch.nn.Parameter(data, requires_grad=False))
        self.make_kernel(layer)


def cast(layer: torch.nn.Module, gemm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Block scales [E, rows, columns / 16] and global scales, [E, 2] of w13 and [E] of w2; the codes stay."""
    halves = HALVES[gemm]
    tensors = (getattr(layer, f"{gemm}_{name}").data.as_subclass(torch.Tensor) for name in ("weight", "weight_scale"))
    try:
        block_scale, global_scale = cast_mxfp4(*(tensor.unflatten(1, (halves, -1)) for tensor in tensors))
    except ValueError as refusal:
        raise ValueError(f"{gemm}_weight_{refusal}") from None
    return block_scale.flatten(1, 2), global_scale if halves > 1 else global_scale[:, 0]


def give_back(method: Mxfp4MoE, layer: torch.nn.Module, reason: str) -> None:
    """Make the method what vLLM alone makes of the layer, and let it take the weights as they were loaded."""
    alone = method.build_alone()
    sizes = layer.w13_weight.shape[2] * 2, layer.w13_weight.shape[1] // 2
    wanted = alone.maybe_roundup_sizes(*sizes, method.moe.in_dtype, method.moe.moe_parallel_config)
    if tuple(wanted) != sizes:
        raise ValueError(
            f"{reason} vLLM's own kernel wants hidden and intermediate size {list(wanted)} instead of {list(sizes)}, "
            "and the weights are loaded by now. Set NVFP4_MOE_DISABLE=1."
        )
    method.__class__ = type(alone)
    vars(method).update(vars(alone))
    log.experts_refused(reason, Mxfp4MoE.weights)
    method.process_weights_after_loading(layer)


def install() -> None:
    """Offer our experts to vLLM's oracle for MXFP4, as `moe.py` does to that for NVFP4."""
    moe.ORACLES[Mxfp4MoE.weights] = oracle
    moe.SPECIALISED[Mxfp4MoEMethod] = Mxfp4MoE
