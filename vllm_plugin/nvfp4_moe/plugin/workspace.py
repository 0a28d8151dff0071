# SPDX-License-Identifier: Apache-2.0
"""Scratch of the linears: one torch allocation for each GPU, made before vLLM measures memory.

The MoE's scratch is vLLM's own workspace (`experts.py`). On the CPU the library keeps one of its own.
"""

from collections.abc import Callable

import torch
from vllm.config import get_current_vllm_config

_workspaces: dict[torch.device, torch.Tensor] = {}


def reserve(device: torch.device, size_for: Callable[[int], int]) -> None:
    """Have room for the largest batch vLLM schedules; called while weights load, so that profiling counts it."""
    if device.type == "cpu":
        return
    size = size_for(get_current_vllm_config().scheduler_config.max_num_batched_tokens)
    if device not in _workspaces or _workspaces[device].numel() < size:
        _workspaces[device] = torch.empty(size, dtype=torch.uint8, device=device)


def of(device: torch.device) -> torch.Tensor | None:
    """The device's scratch; None on the CPU. Linears run one after another, so they share it."""
    return _workspaces.get(device)
