# SPDX-License-Identifier: Apache-2.0
"""NVFP4 from its definition: tables and nearest neighbours, no bit tricks.

A value is e2m1 * block_scale * global_scale. Neighbours along the last dimension share a block scale, 16 by 16.
"""

from typing import NamedTuple

import torch

BLOCK_SIZE = 16

# Sign aside, a code's place in these tables is its bit pattern.
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
# e4m3 "fn": 4 bits of exponent (bias 7), 3 of mantissa, no infinity. 0x7F would be next: NaN.
E4M3 = torch.tensor(
    [m * 2.0**-9 for m in range(8)] + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)]
)
E4M3 = E4M3[:127].double()
E4M3_NAN = 127
SMALLEST_GLOBAL_SCALE = 2.0**-110


class Quantized(NamedTuple):
    codes: torch.Tensor  # u8 [rows, cols], one e2m1 code each
    block_scale: torch.Tensor  # u8 [rows, cols/16], e4m3
    global_scale: torch.Tensor  # f32 [rows, 1]


def nearest(magnitudes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Index of the nearest entry for non-negative f32 values; ties to the even index; beyond the last, the last."""
    midpoints = ((table[:-1] + table[1:]) / 2).to(magnitudes.dtype)  # exact in f32 for both tables
    index = torch.bucketize(magnitudes, midpoints)  # midpoints strictly below the value
    tie = magnitudes == midpoints[index.clamp(max=len(midpoints) - 1)]
    return index + (tie & (index % 2 == 1))


def encode_e2m1(x: torch.Tensor) -> torch.Tensor:
    """f32 to codes; NaN becomes +6, as PTX cvt.rn.satfinite does."""
    codes = nearest(x.abs().nan_to_num(nan=0.0), E2M1) + 8 * torch.signbit(x)
    return torch.where(x.isnan(), 7, codes).to(torch.uint8)


def encode_e4m3(x: torch.Tensor) -> torch.Tensor:
    """Non-negative f32 to bytes, saturating at 448; NaN becomes NaN."""
    return torch.where(x.isnan(), E4M3_NAN, nearest(x.nan_to_num(nan=0.0), E4M3)).to(torch.uint8)


def decode_e4m3(block_scale: torch.Tensor) -> torch.Tensor:
    """Bytes without sign to f64."""
    table = torch.cat([E4M3, torch.tensor([torch.nan], dtype=torch.float64)])
    return table[block_scale.view(torch.uint8).int()]


def dynamic_global_scale(x: torch.Tensor) -> torch.Tensor:
    """f32 [rows, 1]: a row's finite amax / (6 * 448), 1 for a row of zeros."""
    amax = torch.where(x.isfinite(), x.abs(), 0).amax(dim=-1, keepdim=True)
    return torch.where(amax == 0, 1.0, (amax / (6 * 448)).clamp(min=SMALLEST_GLOBAL_SCALE))


def quantize(x: torch.Tensor, global_scale: float | None) -> Quantized:
    """Quantise rows, with one global scale for all or (None) one for each.

    scale = e4m3(amax * ((1 / g) / 6)); code = e2m1(x * ((1 / g) / scale)); each operation rounds once to f32.
    """
    x = x.float()
    g = dynamic_global_scale(x) if global_scale is None else torch.full((x.shape[0], 1), global_scale)
    blocks = x.unflatten(-1, (-1, BLOCK_SIZE))
    encode = (1.0 / g)[..., None]
    # torch's amax lets NaN through, which is what a block with a NaN is to have as its scale.
    block_scale = encode_e4m3(blocks.abs().amax(dim=-1, keepdim=True) * (encode / 6))
    scale = decode_e4m3(block_scale).float()
    factor = torch.where(scale == 0, 0.0, encode / scale)
    return Quantized(encode_e2m1(blocks * factor).flatten(-2), block_scale[..., 0], g)


def dequantize(q: Quantized) -> torch.Tensor:
    """To f64; exact but for the last product."""
    return decode_blocks(pack(q.codes), q.block_scale).double() * q.global_scale.double()


def decode_blocks(packed: torch.Tensor, block_scale: torch.Tensor) -> torch.Tensor:
    """e2m1 * block_scale of [rows, cols/2] packed codes, f32 [rows, cols]: every such product is exact there."""
    values = torch.cat([E2M1, -E2M1]).float()
    pairs = torch.stack([values.repeat(16), values.repeat_interleave(16)], dim=1)  # both values of every byte
    decoded = torch.nn.functional.embedding(packed.int(), pairs).flatten(-2)  # a table lookup, and a quick one
    return (decoded.unflatten(-1, (-1, BLOCK_SIZE)) * decode_e4m3(block_scale).float()[..., None]).flatten(-2)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Two codes to a byte, the even column in the low nibble."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def swizzle(block_scale: torch.Tensor) -> torch.Tensor:
    """[rows, sf_cols] scales to 128x4 tiles, zero padded: reshape and transpose, as the tile's picture shows it.

    A tile of 128 rows is 4 groups of 32; in memory come the row of a group, then the group, then the column.
    """
    rows, cols = block_scale.shape
    padded = torch.zeros((rows + 127) // 128 * 128, (cols + 3) // 4 * 4, dtype=torch.uint8)
    padded[:rows, :cols] = block_scale
    tiles = padded.view(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).flatten()
