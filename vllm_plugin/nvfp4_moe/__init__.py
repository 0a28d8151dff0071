# SPDX-License-Identifier: Apache-2.0
"""The NVFP4 mixture-of-experts layer and NVFP4 linear for torch, and their vLLM plugin.

    from nvfp4_moe import Checkpoint, Layer

    checkpoint = Checkpoint("DeepSeek-V4-Flash-NVFP4")
    layer = checkpoint.make_layer(3)
    out = layer(x, topk_ids, topk_weights)

Importing this package imports nothing heavy: torch and the shared object are loaded at first use of a name below.
"""

from importlib import import_module

__version__ = "0.1.0"

# Where each public name lives.
_HOMES = {
    "Checkpoint": "checkpoint",
    "CheckpointLayer": "checkpoint",
    "DeviceStatus": "device",
    "Layer": "layer",
    "LayerWeights": "weights",
    "Linear": "linear",
    "LinearWeights": "weights",
    "build_info": "device",
    "cpu_isa": "device",
    "dequantize": "format",
    "quantize": "format",
    "read_device_status": "device",
    "reset_device_status": "device",
    "set_num_threads": "device",
    "sf_offset": "format",
    "sf_size": "format",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
