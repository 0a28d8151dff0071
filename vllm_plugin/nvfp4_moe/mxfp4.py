# SPDX-License-Identifier: Apache-2.0
"""MXFP4 brought to NVFP4 without loss, on the tensors' own device: the law of rust/format/mxfp4.rs in torch.

The e2m1 codes stay. Each e8m0 scale, 2^(byte - 127) for 32 neighbours, becomes two e4m3 block scales that are powers of
two, and a matrix gets one factor. tests/golden/mxfp4.txt holds both to the same bytes.
"""

import torch

from . import errors
from .weights import BLOCK_SIZE

MX_BLOCK_SIZE = 32
E8M0_BIAS, E8M0_NAN = 127, 255
MAX_SPAN = 17
"""Largest scale over smallest, as an exponent of two: e4m3's powers of two run from 2^-9 to 2^8."""
LARGEST, LEAST_GLOBAL = 8, -126
F32_BIAS, F32_MANTISSA = 127, 23
CHUNK_BYTES = 1 << 26
"""Of codes that are looked at together: their copy is all the memory that a cast needs beside its results."""


def cast_mxfp4(packed: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast matrices of MXFP4; returns (block_scale, global_scale), with which `packed` is NVFP4 of the same values.

    packed        e2m1x2, one byte an element [..., rows, cols / 2]
    scale         e8m0, one byte an element [..., rows, cols / 32]
    block_scale   float8_e4m3fn [..., rows, cols / 16]
    global_scale  f32 [...], a power of two for each matrix

    A scale of 32 zeros does not count: its block scales are 0. Refused is a NaN, and a matrix whose scales that count
    are more than a factor of 2^17 apart. Waits for the device once, to know that. Source: nvfp4_moe_cast_mxfp4.
    """
    codes, scales = packed.view(torch.uint8), scale.view(torch.uint8)
    rows, cols = codes.shape[-2], codes.shape[-1] * 2
    if cols % MX_BLOCK_SIZE or scales.shape != (*codes.shape[:-1], cols // MX_BLOCK_SIZE):
        raise errors.InvalidArgumentError(
            f"scale is of shape {list(scale.shape)}; it must have one byte for {MX_BLOCK_SIZE} of the {cols} "
            f"columns of packed {list(packed.shape)}. Pass the two tensors of the same matrices."
        )
    matrices = codes.reshape(-1, rows, codes.shape[-1]), scales.reshape(-1, rows, scales.shape[-1])
    step = max(1, CHUNK_BYTES // max(1, codes.shape[-1] * rows))
    parts = [cast_chunk(*chunk) for chunk in zip(*(m.split(step) for m in matrices), strict=True)]
    block_scale, global_scale, smallest, largest = (torch.cat(part) for part in zip(*parts, strict=True))
    # NaN is the largest byte, so one comparison finds it as well.
    refused = (largest - smallest > MAX_SPAN) | (largest == E8M0_NAN)
    if refused.any():
        refuse(int(refused.nonzero()[0]), codes.shape[:-2], smallest, largest)
    block_scale = block_scale.view(torch.float8_e4m3fn).reshape(*codes.shape[:-1], cols // BLOCK_SIZE)
    return block_scale, global_scale.reshape(codes.shape[:-2])


def cast_chunk(codes: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of u8 [n, rows, ..]: block scales, global scales [n], and the smallest and largest scale that counts [n]."""
    magnitudes = codes.contiguous().view(torch.int64) & 0x7777777777777777  # without signs, eight bytes at a time
    counts = (magnitudes.unflatten(-1, (-1, 2)) != 0).any(-1) | (scales == E8M0_NAN)
    exponents = scales.int()
    smallest = torch.where(counts, exponents, E8M0_NAN).amin((1, 2))
    largest = torch.where(counts, exponents, 0).amax((1, 2))
    none = smallest > largest
    global_exponent = (largest - E8M0_BIAS - LARGEST).clamp(min=LEAST_GLOBAL).masked_fill(none, 0)
    shifted = exponents - (E8M0_BIAS + global_exponent)[:, None, None]
    block_scale = torch.where(counts, power_of_two_e4m3(shifted), 0).to(torch.uint8).repeat_interleave(2, dim=-1)
    global_scale = ((global_exponent + F32_BIAS) << F32_MANTISSA).view(torch.float32)  # exp2 may be off by a bit
    return block_scale, global_scale, smallest.masked_fill(none, 0), largest


def power_of_two_e4m3(exponents: torch.Tensor) -> torch.Tensor:
    """The byte of 2^exponent, from 2^-9 to 2^8: below 2^-6 e4m3 counts units of 2^-9."""
    units = torch.ones_like(exponents) << (exponents + 9).clamp(0, 2)
    return torch.where(exponents < -6, units, (exponents + 7) << 3)


def refuse(index: int, shape: torch.Size, smallest: torch.Tensor, largest: torch.Tensor) -> None:
    """Raise for one matrix of `shape`, by its place and its scales."""
    at = ", ".join(str(int(i)) for i in torch.unravel_index(torch.tensor(index), shape)) if shape else ""
    name = f"scale[{at}]" if at else "scale"
    low, high = (int(of[index]) - E8M0_BIAS for of in (smallest, largest))
    if int(largest[index]) == E8M0_NAN:
        raise errors.InvalidArgumentError(
            f"{name} is NaN in a place (byte 0xff); a scale must be a number (bytes 0x00 to 0xfe). Export the "
            "checkpoint again."
        )
    raise errors.InvalidArgumentError(
        f"{name} is 2^{low} to 2^{high}, a factor of 2^{high - low}; scales of nonzero codes must lie within a factor "
        f"of 2^{MAX_SPAN} in each expert's gate, up and down matrix, to be block scales of NVFP4 without loss. Run the "
        "layer with kernels for MXFP4."
    )
