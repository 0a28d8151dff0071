# SPDX-License-Identifier: Apache-2.0
"""The NVFP4 format on host tensors, bit for bit as every kernel of the library has it.

value = e2m1 * block_scale * global_scale; one e4m3 block scale for 16 neighbours along the last dimension.
"""

from typing import NamedTuple

import torch

from .ops import OPS


class Quantized(NamedTuple):
    """Rows of NVFP4."""

    packed: torch.Tensor
    """e2m1x2, u8 [rows, cols / 2]: the even column in the low nibble."""
    block_scale: torch.Tensor
    """float8_e4m3fn [rows, cols / 16]; swizzled: u8 [sf_size(rows, cols / 16)], padding 0."""
    global_scale: torch.Tensor
    """f32, decodes: [1] static, [rows] dynamic."""


def quantize(x: torch.Tensor, global_scale: float | None = None, *, swizzled: bool = False) -> Quantized:
    """Quantise rows of bf16 [rows, cols], cols a multiple of 16.

    With `global_scale` it is used for every row (static); without, each row takes amax / (6 * 448) (dynamic).
    Saturated blocks and non-finite values are counted in the CPU's device status. Source: nvfp4_moe_quantize.
    """
    packed, block_scale, scales = OPS.quantize(x, global_scale, swizzled)
    return Quantized(packed, block_scale if swizzled else block_scale.view(torch.float8_e4m3fn), scales)


def dequantize(packed: torch.Tensor, block_scale: torch.Tensor, global_scale: float) -> torch.Tensor:
    """Decode u8 [rows, cols / 2] and linear e4m3 [rows, cols / 16] to f32 [rows, cols]."""
    return OPS.dequantize(packed, block_scale, global_scale)


def sf_size(num_rows: int, num_sf_cols: int) -> int:
    """Bytes of a swizzled block-scale buffer: rows padded to 128, columns of scales to 4."""
    return OPS.sf_size(num_rows, num_sf_cols)


def sf_offset(row: int, sf_col: int, num_sf_cols: int) -> int:
    """Byte at which the scale (row, sf_col) lies in a swizzled buffer of `num_sf_cols` columns of scales."""
    return OPS.sf_offset(row, sf_col, num_sf_cols)
