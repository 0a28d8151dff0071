# SPDX-License-Identifier: Apache-2.0
"""The NVFP4 mixture-of-experts layer and NVFP4 linear for torch, and their vLLM plugin.

    from nvfp4_moe import Checkpoint, Layer

    checkpoint = Checkpoint("DeepSeek-V4-Flash-NVFP4")
    layer = checkpoint.make_layer(3)
    out = layer(x, topk_ids, topk_weights)

Importing this package imports nothing heavy: torch and the shared object are loaded at first use of a name below.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, CheckpointLayer
    from .device import DeviceStatus, build_info, cpu_isa, read_device_status, reset_device_status, set_num_threads
    from .errors import (
        CheckpointError,
        CudaError,
        Error,
        FileError,
        InternalError,
        InvalidArgumentError,
        MissingFileError,
        NotPreparedError,
        OutOfMemoryError,
        UnsupportedError,
        WorkspaceTooSmallError,
    )
    from .format import Quantized, dequantize, quantize, sf_offset, sf_size
    from .layer import Layer, WeightError
    from .linear import Linear
    from .mxfp4 import cast_mxfp4
    from .weights import LayerWeights, LinearWeights

__version__ = "0.1.0"

# Of each public name, the module that has it.
_HOMES = {
    name: home
    for home, names in {
        "checkpoint": "Checkpoint CheckpointLayer",
        "device": "DeviceStatus build_info cpu_isa read_device_status reset_device_status set_num_threads",
        "errors": (
            "CheckpointError CudaError Error FileError InternalError InvalidArgumentError MissingFileError "
            "NotPreparedError OutOfMemoryError UnsupportedError WorkspaceTooSmallError"
        ),
        "format": "Quantized dequantize quantize sf_offset sf_size",
        "layer": "Layer WeightError",
        "linear": "Linear",
        "mxfp4": "cast_mxfp4",
        "weights": "LayerWeights LinearWeights",
    }.items()
    for name in names.split()
}

# Written out for editors and type checkers; tests/test_typing.py compares it with the table above.
__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointLayer",
    "CudaError",
    "DeviceStatus",
    "Error",
    "FileError",
    "InternalError",
    "InvalidArgumentError",
    "Layer",
    "LayerWeights",
    "Linear",
    "LinearWeights",
    "MissingFileError",
    "NotPreparedError",
    "OutOfMemoryError",
    "Quantized",
    "UnsupportedError",
    "WeightError",
    "WorkspaceTooSmallError",
    "__version__",
    "build_info",
    "cast_mxfp4",
    "cpu_isa",
    "dequantize",
    "quantize",
    "read_device_status",
    "reset_device_status",
    "set_num_threads",
    "sf_offset",
    "sf_size",
]


if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
