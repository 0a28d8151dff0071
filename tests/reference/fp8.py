# SPDX-License-Identifier: Apache-2.0
"""Mode fp8's row quantiser by torch's own float8: independent of the library, and of the tables of nvfp4.py."""

from typing import NamedTuple

import torch

from .nvfp4 import SMALLEST_GLOBAL_SCALE

E4M3_MAX = 448.0
NAN = 0x7F


class Quantized(NamedTuple):
    codes: torch.Tensor  # u8 [rows, cols], e4m3
    row_scale: torch.Tensor  # f32 [rows, 1], decodes


def quantize(x: torch.Tensor) -> Quantized:
    """scale = max(finite amax / 448, 2^-110), 1 for zeros; code = e4m3(x * (1 / scale)); each step rounds to f32."""
    x = x.float()
    amax = torch.where(x.isfinite(), x.abs(), 0).amax(dim=-1, keepdim=True)
    scale = torch.where(amax == 0, 1.0, (amax / E4M3_MAX).clamp(min=SMALLEST_GLOBAL_SCALE))
    # torch's cast does not saturate, and keeps a NaN's sign.
    codes = (x * (1.0 / scale)).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    return Quantized(torch.where(x.isnan(), NAN, codes), scale)


def dequantize(q: Quantized) -> torch.Tensor:
    """To f64; exact but for the last product."""
    return q.codes.view(torch.float8_e4m3fn).double() * q.row_scale.double()
