# SPDX-License-Identifier: Apache-2.0
"""What vLLM's parameters of one NVFP4 linear say, once vLLM has brought all checkpoint formats to one naming."""

import torch

from .input_scales import settle_and_warn


def data(parameter: torch.Tensor) -> torch.Tensor:
    """The data without vLLM's tensor subclass."""
    return parameter.data.as_subclass(torch.Tensor)


def name(layer) -> str:
    """The layer's in the model; a language model's head does not know its own."""
    return getattr(layer, "prefix", type(layer).__name__)


def keep(layer, part_scales: torch.Tensor, input_scales: dict[str, float]) -> None:
    """Note what vLLM is about to reduce: the parts' global scales, and their input scales by name; all decode."""
    layer.nvfp4_moe_part_scales = part_scales
    layer.nvfp4_moe_input_scales = input_scales


def are_kept(layer) -> bool:
    """Were they noted, that is, is the layer's quantisation method one that we know?"""
    return hasattr(layer, "nvfp4_moe_part_scales")


def global_scales(layer) -> torch.Tensor:
    """f32 [num_parts], decoding."""
    return layer.nvfp4_moe_part_scales


def input_scale(layer) -> float:
    """The checkpoint's decoding input scale, the largest that was measured of the parts; 0 if there is none."""
    return settle_and_warn(name(layer), "input_scale", layer.nvfp4_moe_input_scales)


def free_weights(layer, repacked: torch.Tensor) -> None:
    """Drop what prepare has repacked, and register what it became.

    A parameter, as vLLM's own kernels have: its sleep of level 2 drops it, where it would copy a buffer to the host,
    and a reload puts the same tensor back.
    """
    for name in ("weight", "weight_scale"):
        setattr(layer, name, torch.nn.Parameter(data(getattr(layer, name)).new_empty(0), requires_grad=False))
    layer.register_parameter("nvfp4_moe_storage", torch.nn.Parameter(repacked, requires_grad=False))
