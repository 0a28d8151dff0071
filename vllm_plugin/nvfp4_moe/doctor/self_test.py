# SPDX-License-Identifier: Apache-2.0
"""The self-test at length: a GPU's own kernels beside the portable ones, bit for bit, on data made for that.

Codes are any, block scales 0.5, 1 and 2, global scales powers of two, and each block of x has a 6. So every product is
a multiple of 2^-4 and no sum rounds: whatever the order of additions, there is one right answer. What SwiGLU leaves has
no such form, so each row of w2 has one weight that is not 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SCALES = (0x30, 0x38, 0x40)  # e4m3: 0.5, 1, 2
SIX = 7  # code
MODES = ("bf16", "nvfp4")
TILE_ROWS = range(8, 257, 8)
EXPERTS, TOP_K = 6, 2


@dataclass(frozen=True)
class Shape:
    """Of a layer, or of a linear with as many inputs and outputs."""

    hidden: int
    inter: int


SHAPES = (Shape(2048, 1024), Shape(528, 272), Shape(16, 16), Shape(4112, 1040))
TOKENS = (1, 3, 64, 129, 700)


def values_of(shape: tuple[int, ...], generator: Any, only_one: bool = False) -> tuple[Any, Any]:
    """(e2m1x2 codes, block scales) of random weights; with `only_one`, of rows of a single one."""
    import torch

    codes = torch.randint(0, 16, shape, dtype=torch.uint8, generator=generator)
    if only_one:
        place = torch.randint(0, shape[-1], (*shape[:-1], 1), generator=generator)
        codes = torch.zeros_like(codes).scatter_(-1, place, 1 + codes.gather(-1, place) % 7)
    picked = torch.randint(0, 3, (*shape[:-1], shape[-1] // 16), generator=generator)
    scales = torch.tensor(SCALES, dtype=torch.uint8)[picked].view(torch.float8_e4m3fn)
    return codes[..., ::2] | codes[..., 1::2] << 4, scales


def inputs(num_tokens: int, cols: int, generator: Any) -> Any:
    """bf16 [num_tokens, cols] that NVFP4 has exactly, with a global scale of 1."""
    import torch

    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    codes = torch.randint(0, 16, (num_tokens, cols // 16, 16), generator=generator)
    codes[..., 0] = SIX
    scales = 0.5 * 2.0 ** torch.randint(0, 3, (num_tokens, cols // 16, 1), generator=generator)
    return (values[codes] * scales).flatten(1).bfloat16()


def tile_sizes(make: Any) -> Iterator[int]:
    """0, the library's choice, and every size that `make(rows)` does not refuse."""
    yield 0
    for rows in TILE_ROWS:
        try:
            make(rows).close()
        except (RuntimeError, ValueError):
            continue
        yield rows


def layers(own: str, portable: str, shape: Shape, mode: str) -> Iterator[tuple[str, Any, Any]]:
    """(what, own output, portable output) for every size of tiles, and tokens of TOKENS."""
    import torch

    from nvfp4_moe import Layer, LayerWeights

    g = torch.Generator().manual_seed(shape.hidden)
    weights = LayerWeights.empty(EXPERTS, shape.hidden, shape.inter, w13_input_scale=1.0, w2_input_scale=1.0)
    for name, only_one in (("w13", False), ("w2", True)):
        codes, scales = getattr(weights, name), getattr(weights, f"{name}_block_scale")
        made = values_of((*codes.shape[:-1], 2 * codes.shape[-1]), g, only_one)
        codes.copy_(made[0])
        scales.view(torch.uint8).copy_(made[1].view(torch.uint8))
    weights.w13_global_scale.fill_(2.0 ** -round(0.5 * shape.hidden.bit_length() + 2))
    weights.w2_global_scale.fill_(1.0)
    placed: dict[str, Any] = {}

    def make(device: str, rows: int) -> Any:
        return Layer(
            hidden_size=shape.hidden, intermediate_size=shape.inter, num_experts=EXPERTS, top_k=TOP_K, mode=mode,
            tile_rows=rows, device=device,
        )  # fmt: skip

    def prepared(device: str, rows: int = 0) -> Any:
        layer = make(device, rows)
        placed[device] = placed.get(device) or weights.to(layer.device)
        return layer.prepare(placed[device])

    expected = prepared(portable)
    for rows in tile_sizes(lambda rows: make(own, rows)):
        layer = prepared(own, rows)
        for tokens in TOKENS:
            x = inputs(tokens, shape.hidden, g).to(layer.device)
            # Half of the tokens go to one expert first.
            ids = torch.rand(tokens, EXPERTS, generator=g).topk(TOP_K).indices.int()
            ids[: tokens // 2] = torch.tensor([0, EXPERTS - 1], dtype=torch.int32)
            given = (x, ids.to(layer.device), torch.ones(tokens, TOP_K, device=layer.device))
            yield (
                f"mode {mode}, {shape}, {tokens} tokens in tiles of {rows or 'its choice'}",
                layer(*given),
                expected(*given),
            )


def linears(own: str, portable: str, shape: Shape, mode: str) -> Iterator[tuple[str, Any, Any]]:
    """The same of a linear."""
    import torch

    from nvfp4_moe import Linear, LinearWeights

    g = torch.Generator().manual_seed(shape.inter)
    codes, scales = values_of((shape.inter, shape.hidden), g)
    weights = LinearWeights(codes, scales, torch.ones(1), input_scale=1.0)

    def make(device: str, rows: int = 0) -> Any:
        return Linear(in_features=shape.hidden, out_features=shape.inter, mode=mode, tile_rows=rows, device=device)

    def prepared(device: str, rows: int = 0) -> Any:
        linear = make(device, rows)
        return linear.prepare(weights.to(linear.device))

    expected = prepared(portable)
    for rows in tile_sizes(lambda rows: make(own, rows)):
        linear = prepared(own, rows)
        for tokens in TOKENS:
            x = inputs(tokens, shape.hidden, g).to(linear.device)
            yield (
                f"linear, mode {mode}, {shape}, {tokens} tokens in tiles of {rows or 'its choice'}",
                linear(x),
                expected(x),
            )


def first_difference(own: Any, portable: Any) -> str | None:
    """Where two outputs differ, with both numbers; None if nowhere."""
    import torch

    places = (own.view(torch.int16) != portable.view(torch.int16)).nonzero()
    if not len(places):
        return None
    row, col = places[0].tolist()
    return (
        f"row {row}, column {col} is {own[row, col].item()} by its own kernels and {portable[row, col].item()} by the "
        f"portable ones; {len(places)} of {own.numel()} values differ, and none may"
    )


def differences(own: str, portable: str) -> Iterator[str | None]:
    """For each comparison what differs; None: nothing."""
    for mode in MODES:
        for shape in SHAPES:
            for compared in (layers, linears):
                for what, ours, theirs in compared(own, portable, shape, mode):
                    difference = first_difference(ours, theirs)
                    yield difference and f"{what}: {difference}"
