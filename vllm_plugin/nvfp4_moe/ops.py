# SPDX-License-Identifier: Apache-2.0
"""The compiled ops, `torch.ops.nvfp4_moe`: loaded once, with fakes for torch.compile.

The schemas are in cpp/library.cpp. `moe_forward` and `linear_forward` are the hot ones: they write into `out`, allocate
nothing, and name the layer by an integer, so that they can be traced and captured.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import errors
from .weights import BLOCK_SIZE

SHARED_OBJECT = Path(__file__).with_name("nvfp4_moe_torch.so")


class Ops:
    """The ops as functions whose failures are `errors.Error`; what torch itself raises passes through."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = _translating(getattr(load(), name).default)
        setattr(self, name, function)  # found without this method from now on
        return function


def _translating(op: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        try:
            return op(*arguments)
        except RuntimeError as error:
            raise errors.of(error, torch.ops.nvfp4_moe.last_failure()) from None

    return call


OPS = Ops()


@cache
def load() -> Any:
    """Load the shared object that lies beside this file and return `torch.ops.nvfp4_moe`."""
    if not SHARED_OBJECT.exists():
        raise ImportError(
            f"{SHARED_OBJECT.name} is missing in {SHARED_OBJECT.parent}; the package was not built. "
            "Run `pip install .` or `make build` in the project's folder."
        )
    torch.ops.load_library(str(SHARED_OBJECT))
    _register_fakes()
    for traced in ("moe_forward", "moe_calibrate", "linear_forward", "linear_calibrate", "quantize", "dequantize"):
        # torch.compile follows a function, but not its making
        setattr(OPS, traced, _translating(getattr(torch.ops.nvfp4_moe, traced).default))
    return torch.ops.nvfp4_moe


def _register_fakes() -> None:
    """Say what each traceable op returns, from shapes alone."""

    @torch.library.register_fake("nvfp4_moe::moe_forward")
    def _(x, topk_ids, topk_weights, expert_map, workspace, layer, out, shared_output=None, shared_output_ready=0):
        return None

    @torch.library.register_fake("nvfp4_moe::moe_calibrate")
    def _(x, topk_ids, topk_weights, expert_map, workspace, layer, out, shared_output=None, shared_output_ready=0):
        return None

    @torch.library.register_fake("nvfp4_moe::linear_forward")
    def _(x, workspace, linear, out):
        return None

    @torch.library.register_fake("nvfp4_moe::linear_calibrate")
    def _(x, workspace, linear, out):
        return None

    @torch.library.register_fake("nvfp4_moe::quantize")
    def _(x, global_scale, swizzled):
        rows, cols = x.shape
        packed = x.new_empty((rows, cols // 2), dtype=torch.uint8)
        scales = (rows, cols // BLOCK_SIZE)
        block_scale = x.new_empty((torch.ops.nvfp4_moe.sf_size(*scales),) if swizzled else scales, dtype=torch.uint8)
        return packed, block_scale, x.new_empty((rows if global_scale is None else 1,), dtype=torch.float32)

    @torch.library.register_fake("nvfp4_moe::dequantize")
    def _(packed, block_scale, global_scale):
        return packed.new_empty((packed.shape[0], packed.shape[1] * 2), dtype=torch.float32)
