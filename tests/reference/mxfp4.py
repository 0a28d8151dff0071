# SPDX-License-Identifier: Apache-2.0
"""MXFP4 from its definition, in float64: e2m1 * 2^(byte - 127), one e8m0 byte for 32 neighbours of a row."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from . import nvfp4
from .layer import Expert, PlainMatrix, ReferenceLayer, Swiglu

BLOCK_SIZE = 32
EXPERT = re.compile(r"layers\.(\d+)\.ffn\.experts\.(\d+)\.(w[123])\.(weight|scale)$")


def decode(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """u8 [..., cols / 2] and [..., cols / 32] to f64 [..., cols]; exact."""
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).int()
    values = torch.cat([nvfp4.E2M1, -nvfp4.E2M1])[codes].unflatten(-1, (-1, BLOCK_SIZE))
    return (values * torch.exp2(scale.double() - 127)[..., None]).flatten(-2)


@dataclass
class Weights:
    """A layer's experts, gate rows first."""

    w13: torch.Tensor  # u8 [E, 2I, H/2]
    w13_scale: torch.Tensor  # u8 [E, 2I, H/32]
    w2: torch.Tensor  # u8 [E, H, I/2]
    w2_scale: torch.Tensor  # u8 [E, H, I/32]


def random_matrices(
    shape: tuple[int, ...], generator: torch.Generator, span: int = 11
) -> tuple[torch.Tensor, torch.Tensor]:
    """Any codes [..., rows, cols / 2], and scales of each matrix within 2^span; products of a row sum to about 1."""
    *stack, rows, cols = shape
    packed = torch.randint(0, 256, (*stack, rows, cols // 2), generator=generator, dtype=torch.uint8)
    below = torch.randint(0, span + 1, (*stack, rows, cols // BLOCK_SIZE), generator=generator)
    top = torch.randint(124, 127, (*stack, 1, 1), generator=generator)
    return packed, (top - below).to(torch.uint8)


def random_weights(experts: int, hidden: int, intermediate: int, generator: torch.Generator, span: int = 11) -> Weights:
    w13 = random_matrices((experts, 2, intermediate, hidden), generator, span)
    w2 = random_matrices((experts, hidden, intermediate), generator, span)
    return Weights(*(t.flatten(1, 2) for t in w13), *w2)


def read(directory: Path, layer: int, first: int, count: int) -> Weights:
    """Experts from `first` on, as DeepSeek stores them."""
    from safetensors import safe_open

    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for match in filter(None, map(EXPERT.search, file.keys())):
                if int(match[1]) == layer and int(match[2]) - first in range(count):
                    found[int(match[2]), match[3], match[4]] = file.get_tensor(match.string).view(torch.uint8)

    def stack(part: str, *projections: str) -> torch.Tensor:
        return torch.stack([torch.cat([found[e, p, part] for p in projections]) for e in range(first, first + count)])

    gate_up, down = ("w1", "w3"), ("w2",)
    return Weights(stack("weight", *gate_up), stack("scale", *gate_up), stack("weight", *down), stack("scale", *down))


class Layer(ReferenceLayer):
    """The layer on MXFP4's own values."""

    def __init__(self, weights: Weights, swiglu: Swiglu = Swiglu()):
        super().__init__(weights, swiglu)

    def expert(self, index: int) -> Expert:
        gate, up = decode(self.weights.w13[index], self.weights.w13_scale[index]).chunk(2)
        return Expert(*map(PlainMatrix, (gate, up, decode(self.weights.w2[index], self.weights.w2_scale[index]))))
