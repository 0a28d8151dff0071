# SPDX-License-Identifier: Apache-2.0
"""Weights that mode fp8 rounds to e4m3 (`fp8_max_error`): by the encoders of nvfp4.py, without a table of products."""

from typing import NamedTuple

import torch

from . import nvfp4
from .layer import Expert, Matrix, ReferenceLayer


class Error(NamedTuple):
    """|rounded - exact| / |exact| of a matrix, and of its worst block, which is at (row, block)."""

    rel_l2: float
    block_rel_l2: float
    row: int
    block: int


def floor(block_scale: torch.Tensor) -> float:
    """The smallest power of two that a stored block scale of this matrix may have; scales below are brought to it."""
    largest = float(nvfp4.decode_e4m3(block_scale).max())
    if largest == 0:
        return 1.0
    power = 2.0 ** int(torch.tensor(largest).log2().floor())
    return power / (2**11 if largest <= 1.125 * power else 2**10)


def rounded_values(packed: torch.Tensor, block_scale: torch.Tensor) -> torch.Tensor:
    """What is left of e2m1 * block_scale, f32 [rows, cols]."""
    exact = nvfp4.decode_blocks(packed, block_scale)
    low = floor(block_scale)
    stored = (exact.abs() / low).double()
    normal = nvfp4.decode_e4m3(nvfp4.encode_e4m3((stored * 2.0**-5).float())) * 2.0**5
    small = nvfp4.E2M1[nvfp4.encode_e2m1(stored.float()).int()]
    is_small = (nvfp4.decode_e4m3(block_scale) < low).repeat_interleave(nvfp4.BLOCK_SIZE, dim=-1)
    return (torch.where(is_small, small, normal) * low).float().copysign(exact)


def error(packed: torch.Tensor, block_scale: torch.Tensor) -> Error:
    """In f64; of blocks that are equally bad the first."""
    exact = nvfp4.decode_blocks(packed, block_scale).double()
    change = rounded_values(packed, block_scale).double() - exact
    squares, errors = (v.unflatten(-1, (-1, nvfp4.BLOCK_SIZE)).square().sum(-1) for v in (exact, change))
    share = torch.where(squares > 0, errors / squares, 0)
    row, block = divmod(int(share.argmax()), share.shape[1])
    total = float(squares.sum())
    return Error((float(errors.sum()) / total) ** 0.5 if total else 0.0, float(share.max()) ** 0.5, row, block)


class RoundedMatrix(Matrix):
    @property
    def block_values(self) -> torch.Tensor:
        return rounded_values(self.packed, self.block_scale)


class RoundedLayer(ReferenceLayer):
    """The layer on rounded weights."""

    def expert(self, index: int) -> Expert:
        if index not in self.experts:
            exact = super().expert(index)
            self.experts[index] = Expert(
                *(RoundedMatrix(m.packed, m.block_scale, m.row_global_scale, m.bias) for m in exact)
            )
        return self.experts[index]

    def errors(self, index: int) -> Expert:
        """The Error of each matrix of a local expert."""
        return Expert(*(error(m.packed, m.block_scale) for m in self.expert(index)))
