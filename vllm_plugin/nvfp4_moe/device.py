# SPDX-License-Identifier: Apache-2.0
"""What the kernels of a device saw, and the settings of the CPU backend."""

from typing import NamedTuple

import torch

from .ops import OPS


class DeviceStatus(NamedTuple):
    """Counters of one device since the last reset, over all layers and linears."""

    saturated_blocks: int
    """Activation blocks whose scale passed 448 and was held there: the input scale is too small."""
    nonfinite_values: int
    """NaN or infinite activations that the quantiser met."""
    out_of_range_ids: int
    """topk_ids below -1 or >= num_experts, and expert_map entries below -1 or >= num_local_experts."""
    first_bad_token: int
    """Token, in its call, of the first such event; -1 if there was none."""


def is_portable(device: torch.device | str) -> bool:
    """Does it name a GPU's portable kernels, as "cuda-portable" and "cuda-portable:1" do?"""
    return str(device).startswith("cuda-portable")


def resolve_device(device: torch.device | str) -> torch.device:
    """The torch device with its index: "cuda" and "cuda-portable" mean torch's current GPU."""
    device = torch.device(str(device).replace("cuda-portable", "cuda"))
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def read_device_status(device: torch.device | str = "cpu") -> DeviceStatus:
    """Read the counters; on CUDA this waits for the current stream."""
    return DeviceStatus(*OPS.device_status_read(resolve_device(device)))


def reset_device_status(device: torch.device | str = "cpu") -> None:
    """Set the counters to zero, in order on the current stream."""
    OPS.device_status_reset(resolve_device(device))


def set_num_threads(num_threads: int) -> None:
    """Limit the CPU worker threads of this process; 0 is one for each core. Results do not depend on it."""
    OPS.set_num_threads(num_threads)


def build_info() -> str:
    """What was built in: "cpu hopper portable sm100 sm120", or "cpu" where no nvcc compiled CUDA kernels."""
    return OPS.build_info()


def cpu_isa() -> str:
    """CPU instruction set in use: "avx512vnni", "avx512bf16", "avx512", "avx2" or "portable"."""
    return OPS.cpu_isa()
