# SPDX-License-Identifier: Apache-2.0
"""Weights of `--load-format dummy`: values that mean nothing, by which people measure memory and speed.

vLLM fills scales with numbers of either sign, or leaves integers as they are. The library refuses such scales of a
checkpoint, and rightly, so they are told apart: what vLLM's dummy loader writes is the same each time.
"""

import torch
from vllm.model_executor.model_loader.weight_utils import initialize_single_dummy_weight

BLOCK_SCALE, WEIGHT_SCALE, INPUT_SCALE = 1.0, 1e-3, 1e-2
SIGN = 0x80
LOOKED_AT = 4096


def looks_dummy(block_scale: torch.Tensor) -> bool:
    """A quick look: no block scale of a checkpoint has a sign, and half of a dummy's have one."""
    return bool((as_bytes(block_scale).flatten()[:LOOKED_AT] & SIGN).any())


def is_dummy(parameter: torch.nn.Parameter) -> bool:
    """Does it hold just what vLLM's dummy loader writes there?"""
    again = torch.nn.Parameter(torch.empty_like(parameter.data.as_subclass(torch.Tensor)), requires_grad=False)
    if hasattr(parameter, "dummy_weight_value"):
        again.dummy_weight_value = parameter.dummy_weight_value
    initialize_single_dummy_weight(again)
    return torch.equal(as_bytes(again), as_bytes(parameter))


def make_usable(
    layer: torch.nn.Module, block: tuple[str, ...], weight: tuple[str, ...], input: tuple[str, ...]
) -> None:
    """Give a dummy layer's scales, by the names of its parameters, values that a checkpoint could have."""
    for names, value in ((block, BLOCK_SCALE), (weight, WEIGHT_SCALE), (input, INPUT_SCALE)):
        for name in names:
            if hasattr(layer, name):
                stored = 1 / value if name.endswith("_global_scale") else value  # compressed-tensors' naming encodes
                getattr(layer, name).data.as_subclass(torch.Tensor).fill_(stored)


def as_bytes(parameter: torch.Tensor) -> torch.Tensor:
    """The bytes of it."""
    return parameter.data.as_subclass(torch.Tensor).contiguous().view(torch.uint8)
