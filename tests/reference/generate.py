# SPDX-License-Identifier: Apache-2.0
"""Layers, tokens and routings to test with."""

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from . import nvfp4


@dataclass
class Weights:
    """The fields of the header's nvfp4_moe_layer_weights."""

    w13: torch.Tensor
    w13_block_scale: torch.Tensor
    w13_global_scale: torch.Tensor
    w2: torch.Tensor
    w2_block_scale: torch.Tensor
    w2_global_scale: torch.Tensor
    w13_input_scale: float = 0.0
    w2_input_scale: float = 0.0
    up_first: bool = False
    interleaved: bool = False
    w13_bias: torch.Tensor | None = None
    w2_bias: torch.Tensor | None = None
    # What was quantised, where it is known: bf16 [E, 2I, H] and [E, H, I].
    unquantized: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, repr=False)

    def with_input_scales(self, x_amax: float, h_amax: float) -> "Weights":
        """As calibration would set them: amax / (6 * 448)."""
        return replace(self, w13_input_scale=x_amax / (6 * 448), w2_input_scale=h_amax / (6 * 448))

    def experts(self, first: int, count: int) -> "Weights":
        """The experts of one rank."""
        part = slice(first, first + count)
        return replace(
            self,
            w13=self.w13[part],
            w13_block_scale=self.w13_block_scale[part],
            w13_global_scale=self.w13_global_scale[part],
            w2=self.w2[part],
            w2_block_scale=self.w2_block_scale[part],
            w2_global_scale=self.w2_global_scale[part],
            w13_bias=None if self.w13_bias is None else self.w13_bias[part],
            w2_bias=None if self.w2_bias is None else self.w2_bias[part],
            unquantized=self.unquantized and tuple(w[part] for w in self.unquantized),
        )

    @property
    def scale_block_size(self) -> int:
        """32 where all block scales are equal in pairs, else 16."""
        scales = (self.w13_block_scale, self.w2_block_scale)
        even = all(of.shape[-1] % 2 == 0 and torch.equal(of[..., ::2], of[..., 1::2]) for of in scales)
        return 32 if even else 16

    def with_interleaved_rows(self) -> "Weights":
        """The same layer with rows of gate and up in turn, as gpt-oss has them."""

        def in_turn(rows: torch.Tensor | None) -> torch.Tensor | None:
            return None if rows is None else torch.stack(rows.chunk(2, dim=1), dim=2).flatten(1, 2)

        rows = {name: in_turn(getattr(self, name)) for name in ("w13", "w13_block_scale", "w13_bias")}
        w13 = self.unquantized and (in_turn(self.unquantized[0]), self.unquantized[1])
        return replace(self, **rows, interleaved=True, unquantized=w13)

    def with_biases(self, generator: torch.Generator) -> "Weights":
        """The same layer with normal biases."""
        (num_experts, rows, _), hidden = self.w13.shape, self.w2.shape[1]
        w13, w2 = (torch.randn(num_experts, n, generator=generator).bfloat16() for n in (rows, hidden))
        return replace(self, w13_bias=w13, w2_bias=w2)


def normal_weights(
    num_experts: int,
    hidden: int,
    intermediate: int,
    generator: torch.Generator,
    *,
    lossless: bool = False,
    gated: bool = True,
    scale_block_size: int = nvfp4.BLOCK_SIZE,
) -> Weights:
    """Normal bf16 weights, quantised; gate and up with their own global scales.

    lossless: by powers of two, one for `scale_block_size` weights.
    """
    projections = 2 if gated else 1
    w13 = torch.empty(num_experts, projections * intermediate, hidden, dtype=torch.bfloat16)
    w2 = torch.empty(num_experts, hidden, intermediate, dtype=torch.bfloat16)
    gate_up, down = [], []
    quantize = partial(cast_matrix, size=scale_block_size) if lossless else quantize_matrix
    for e in range(num_experts):
        w13[e].normal_(generator=generator).mul_(hidden**-0.5 * 5)  # a few percent pass the clamp of 10
        w2[e].normal_(generator=generator).mul_(intermediate**-0.5)
        gate_up.append([quantize(half) for half in w13[e].chunk(projections)])
        down.append(quantize(w2[e]))
    return Weights(
        w13=torch.stack([torch.cat([half[0] for half in halves]) for halves in gate_up]),
        w13_block_scale=torch.stack([torch.cat([half[1] for half in halves]) for halves in gate_up]),
        w13_global_scale=torch.tensor([[half[2] for half in halves] for halves in gate_up]),
        w2=torch.stack([matrix[0] for matrix in down]),
        w2_block_scale=torch.stack([matrix[1] for matrix in down]),
        w2_global_scale=torch.tensor([matrix[2] for matrix in down]),
        unquantized=(w13, w2),
    )


def quantize_matrix(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(packed, block scales, global scale amax / (6 * 448)) of a bf16 matrix."""
    global_scale = float(matrix.abs().max()) / (6 * 448)
    q = nvfp4.quantize(matrix, global_scale)
    return nvfp4.pack(q.codes), q.block_scale, float(q.global_scale[0])


def cast_matrix(matrix: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The same with scales that are powers of two, one for `size` weights; the largest block scale is 2^8."""
    blocks = matrix.float().unflatten(-1, (-1, size))
    exponents = torch.log2(blocks.abs().amax(dim=-1, keepdim=True)).floor() - 2  # amax in e2m1's last binade
    top = float(exponents.max())
    exponents = exponents.clamp(min=top - 11)  # what mode fp8 takes
    codes = nvfp4.encode_e2m1(blocks * torch.exp2(-exponents)).flatten(-2)
    block_scale = nvfp4.encode_e4m3(torch.exp2(exponents[..., 0] - top + 8))
    return nvfp4.pack(codes), block_scale.repeat_interleave(size // nvfp4.BLOCK_SIZE, dim=-1), 2.0 ** (top - 8)


def random_code_weights(
    num_experts: int,
    hidden: int,
    intermediate: int,
    generator: torch.Generator,
    touched: list[int] | None = None,
    *,
    lossless: bool = False,
    gated: bool = True,
) -> Weights:
    """Any codes, any block scale from 2^-4 to 15 (lossless: powers of two only, equal in pairs where a row's are even,
    as casts of MXFP4 have them): quick to make at any size.

    Only the `touched` experts (None: all) are filled. The others stay zero pages that nothing has written, so that a
    layer of hundreds of large experts fits in memory.
    """

    numbers = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))  # ten times torch's speed

    def matrices(rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
        packed = torch.zeros(num_experts, rows, cols // 2, dtype=torch.uint8)
        block_scale = torch.zeros(num_experts, rows, cols // 16, dtype=torch.uint8)
        for e in range(num_experts) if touched is None else touched:
            packed[e] = torch.from_numpy(numbers.integers(0, 256, packed[e].shape, np.uint8))
            scales = numbers.integers(0x18, 0x58, block_scale[e].shape, np.uint8)
            if lossless:
                scales &= 0x78  # no mantissa
            if lossless and cols % 32 == 0:
                scales[:, 1::2] = scales[:, ::2]
            block_scale[e] = torch.from_numpy(scales)
        return packed, block_scale

    projections = 2 if gated else 1
    w13, w13_block_scale = matrices(projections * intermediate, hidden)
    w2, w2_block_scale = matrices(hidden, intermediate)
    # A code is 3 and a block scale 5 in the root mean square: bring a row's sum of products to about 1.
    spread = torch.rand(num_experts, 3, generator=generator) + 0.5
    return Weights(
        w13,
        w13_block_scale,
        spread[:, :projections] * (hidden**-0.5 / 15),
        w2,
        w2_block_scale,
        spread[:, 2] * (intermediate**-0.5 / 15),
    )


def tokens(num_tokens: int, hidden: int, generator: torch.Generator) -> torch.Tensor:
    """bf16 [T, H], normal."""
    return torch.randn(num_tokens, hidden, generator=generator).bfloat16()


def random_ids(num_tokens: int, num_experts: int, top_k: int, generator: torch.Generator) -> torch.Tensor:
    """i32 [T, k], every row without duplicates, all experts alike."""
    scores = torch.rand(num_tokens, num_experts, generator=generator)
    return scores.topk(top_k, dim=1).indices.int()


def zipf_ids(num_tokens: int, num_experts: int, top_k: int, generator: torch.Generator) -> torch.Tensor:
    """i32 [T, k], every row without duplicates, expert e chosen like 1 / (e + 1)."""
    popularity = 1.0 / torch.arange(1, num_experts + 1)
    return torch.multinomial(popularity.expand(num_tokens, num_experts), top_k, generator=generator).int()


def random_topk_weights(num_tokens: int, top_k: int, generator: torch.Generator) -> torch.Tensor:
    """f32 [T, k], rows sum to 1."""
    return torch.randn(num_tokens, top_k, generator=generator).softmax(dim=1)


def hostile_ids(num_experts: int, dtype: torch.dtype = torch.int32) -> list[int]:
    """What a buggy router or an uninitialised padding row may hold."""
    wide = [2**62, -(2**62), 2**32, 2**32 + 1] if dtype == torch.int64 else []
    return [-1, -2, num_experts, num_experts + 1, 123456789, 98765, 2071690107, 2**31 - 1, -(2**31), *wide]
