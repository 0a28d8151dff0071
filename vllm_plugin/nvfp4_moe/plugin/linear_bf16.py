# SPDX-License-Identifier: Apache-2.0
"""The override that dequantises chosen NVFP4 linears to bf16."""

import torch
from vllm.forward_context import get_forward_context

import nvfp4_moe

from . import settings
from .linear_parameters import data, free_weights, global_scales, input_scale, name
from .log import logger


class Bf16Linear:
    """The override: the NVFP4 weight decoded to bf16 once, multiplied by torch; four times the memory."""

    def __init__(self):
        self.weight: torch.Tensor | None = None

    def prepare(self, layer) -> None:
        """Decode vLLM's parameters; those that are loaded again into the same memory, which graphs read."""
        weight, block_scale = data(layer.weight).cpu(), data(layer.weight_scale).cpu()
        self.name = name(layer)
        self.input_scale = input_scale(layer)
        part_scales = global_scales(layer).tolist()
        widths = layer.logical_widths if len(part_scales) > 1 else [len(weight)]
        parts = zip(weight.split(widths), block_scale.split(widths), part_scales, strict=True)
        decoded = torch.cat([nvfp4_moe.dequantize(*part).bfloat16() for part in parts])
        if self.weight is None:
            self.weight = decoded.to(layer.weight.device)
        else:
            self.weight.copy_(decoded)
        free_weights(layer, self.weight)
        self.reported = False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """bf16 [..., in_features] to bf16 [..., out_features]."""
        if not self.reported and counts_as_request(x):
            self.reported = True
            self._report(x)
        return torch.nn.functional.linear(x, self.weight)

    def _report(self, x: torch.Tensor) -> None:
        """Say what the first request would have lost to the checkpoint's input scale."""
        saturated, blocks, amax = saturation(x, self.input_scale) if self.input_scale else (0, 0, float(x.abs().max()))
        logger.info(
            "nvfp4_moe: %s is bf16 by %s; input_scale %.8g (calibrated amax %.3g) would have saturated %d of %d blocks "
            "in the first request (amax %.3g)",
            self.name,
            settings.BF16_LINEARS,
            self.input_scale,
            self.input_scale * 6 * 448,
            saturated,
            blocks,
            amax,
        )


def counts_as_request(x: torch.Tensor) -> bool:
    """May the host read x, and is it more than a profile run's? A graph under capture and a compiler forbid reading."""
    if torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    return get_forward_context().attn_metadata is not None


def saturation(x: torch.Tensor, input_scale: float) -> tuple[int, int, float]:
    """(blocks whose scale passes 448, blocks, largest |x|) of [..., cols]. Source: nvfp4_moe_quantize."""
    amax = x.float().abs().unflatten(-1, (-1, 16)).amax(-1)
    encode = torch.tensor(1.0, dtype=torch.float32) / torch.tensor(input_scale, dtype=torch.float32)
    wanted = amax * (encode / 6).to(amax.device)
    return int((wanted > 448).sum()), wanted.numel(), float(amax.max())
