# SPDX-License-Identifier: Apache-2.0
"""MXFP4 experts, as in the original DeepSeek-V4 and gpt-oss: loaded by vLLM, then cast to NVFP4 without loss.

What a cast cannot hold is found only when the weights are there. Such a layer goes back to vLLM as vLLM alone would
have it, and the log says so.
"""

import torch
import vllm.model_executor.layers.fused_moe.oracle.mxfp4 as oracle
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_w4a4_mxfp4,
)
from vllm.model_executor.layers.quantization.mxfp4 import GptOssMxfp4MoEMethod, Mxfp4MoEMethod
from vllm.model_executor.layers.quantization.utils.quant_utils import kMxfp4Static

from nvfp4_moe import cast_mxfp4
from nvfp4_moe.mxfp4 import MX_BLOCK_SIZE

from . import log, moe
from .experts import in_turn, whole_blocks

CompressedTensorsMethod = compressed_tensors_moe_w4a4_mxfp4.CompressedTensorsW4A4Mxfp4MoEMethod

GEMMS = ("w13", "w2")


def mxfp4_method(base: type, codes: str) -> type:
    """What methods for MXFP4 do alike; `codes` ends the name of the parameters that hold e2m1 codes."""

    class LibraryMxfp4Method(moe.library_method(base)):
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
                scales = {gemm: cast(layer, gemm, codes) for gemm in GEMMS}
            except ValueError as refusal:
                if self.moe_kernel is not None:
                    raise ValueError(
                        f"{layer.layer_name}: {refusal} These weights were loaded again, and graphs hold the layer as "
                        "it was. Start vLLM anew with them."
                    ) from None
                give_back(self, layer, f"{layer.layer_name}: {refusal}")
                return
            for gemm, (block_scale, global_scale) in scales.items():
                held = {"weight": getattr(layer, f"{gemm}_{codes}").data, "weight_scale": block_scale}
                delattr(layer, f"{gemm}_{codes}")
                delattr(layer, f"{gemm}_weight_scale")
                for name, data in (held | {"weight_scale_2": global_scale}).items():
                    layer.register_parameter(f"{gemm}_{name}", torch.nn.Parameter(data, requires_grad=False))
            self.make_kernel(layer)

    return LibraryMxfp4Method


class Mxfp4MoE(mxfp4_method(Mxfp4MoEMethod, "weight")):
    """DeepSeek-V4 as its authors publish it."""


class GptOssMxfp4MoE(mxfp4_method(GptOssMxfp4MoEMethod, "weight")):
    """gpt-oss: rows of gate and up take turns, and there are biases."""

    def maybe_roundup_sizes(self, hidden_size, intermediate_size_per_partition, act_dtype, moe_parallel_config):
        """A rank's part is whole blocks, as vLLM's loader of gpt-oss deals them; the last has fewer, and zeros."""
        hidden_size, intermediate = super().maybe_roundup_sizes(
            hidden_size, intermediate_size_per_partition, act_dtype, moe_parallel_config
        )
        return hidden_size, whole_blocks(intermediate)


class CompressedTensorsMxfp4MoE(mxfp4_method(CompressedTensorsMethod, "weight_packed")):
    """compressed-tensors' mxfp4-pack-quantized."""


def projections(moe_config) -> int:
    """Matrices in w13: gate and up, or up alone."""
    return 2 if moe_config.is_act_and_mul else 1


def cast(layer: torch.nn.Module, gemm: str, codes: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Block scales [E, rows, columns / 16], and a global scale for each matrix: [E, 2] or [E, 1] of w13, [E] of w2."""
    names, matrices = (codes, "weight_scale"), projections(layer.moe_config) if gemm == "w13" else 1
    packed, scale = (getattr(layer, f"{gemm}_{name}").data.as_subclass(torch.Tensor) for name in names)
    try:
        if matrices > 1 and in_turn(layer.moe_config):
            halves = [cast_mxfp4(packed[:, half::2], scale[:, half::2]) for half in range(2)]
            block_scale, global_scale = (torch.stack(parts, at) for parts, at in zip(zip(*halves), (2, 1)))
        else:
            block_scale, global_scale = cast_mxfp4(*(tensor.unflatten(1, (matrices, -1)) for tensor in (packed, scale)))
    except ValueError as refusal:
        raise ValueError(f"{gemm}_weight_{refusal}") from None
    return block_scale.flatten(1, 2), global_scale if gemm == "w13" else global_scale[:, 0]


def give_back(method: FusedMoEMethodBase, layer: torch.nn.Module, reason: str) -> None:
    """Make the method what vLLM alone makes of the layer, and let it take the weights as they were loaded."""
    alone = method.build_alone()
    sizes = layer.w13_weight_scale.shape[2] * MX_BLOCK_SIZE, layer.w13_weight_scale.shape[1] // projections(method.moe)
    wanted = alone.maybe_roundup_sizes(*sizes, method.moe.in_dtype, method.moe.moe_parallel_config)
    if tuple(wanted) != sizes:
        raise ValueError(
            f"{reason} vLLM's own kernel wants hidden and intermediate size {list(wanted)} instead of {list(sizes)}, "
            "and the weights are loaded by now. Set NVFP4_MOE_DISABLE=1."
        )
    method.__class__ = type(alone)
    vars(method).update(vars(alone))
    log.experts_refused(reason, "MXFP4")
    method.process_weights_after_loading(layer)


def install() -> None:
    """Offer our experts to vLLM's oracle for MXFP4, as `moe.py` does to that for NVFP4."""
    moe.ORACLES["MXFP4"] = oracle
    moe.UNASKED[CompressedTensorsMethod] = "MXFP4", kMxfp4Static
    moe.SPECIALISED |= {
        Mxfp4MoEMethod: Mxfp4MoE,
        GptOssMxfp4MoEMethod: GptOssMxfp4MoE,
        CompressedTensorsMethod: CompressedTensorsMxfp4MoE,
    }
