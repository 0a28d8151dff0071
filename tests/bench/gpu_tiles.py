#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The row-tile sizes that the library chooses, against a sweep over all it has: part of `make gpu-bench`.

Each size is forced by `tile_rows` when the layer or linear is made; the first column is the library's choice.
Fails where a forced size is faster than the choice by more than --slack.
"""

import argparse
import datetime
import functools
import statistics
import sys
from pathlib import Path

import gpu_layer
import gpu_linear
import torch
from gpu_timing import captured, seconds, write_table

from nvfp4_moe import Linear

ROWS = {
    "bf16": [8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144],
    "fp8": [8, 16, 24, 32, 48, 64, 80, 96, 112, 144, 208],
}
ROWS["nvfp4"] = ROWS["bf16"]
ALL_ROWS = sorted({*ROWS["bf16"], *ROWS["fp8"]})
gpu_layer.SHAPES.update(gpu_layer.ONE_GPU)
CHOICE = "choice"


def tile_rows(rows: int | str) -> int:
    """What a layer or linear is made with: a size, or 0 for the library's choice."""
    return 0 if rows == CHOICE else rows


def worth_trying(num_rows: float, mode: str = "bf16") -> list:
    """Sizes around a number of rows; one far too small or too large would cost time and tell nothing."""
    return [CHOICE, *(rows for rows in ROWS[mode] if num_rows / 8 <= rows <= max(24, 6 * num_rows))]


@functools.lru_cache(maxsize=1)
def weights_of(shape: str):
    """Made once for all sweeps of a shape, which follow each other."""
    return gpu_layer.make_weights(shape)


def sweep_layers(shape: str, mode: str, num_tokens: int) -> dict:
    """Median seconds of a layer by size."""
    _, _, experts, _, top_k = gpu_layer.SHAPES[shape]
    weights = weights_of(shape)
    batches = gpu_layer.make_batches(shape, num_tokens, "uniform", torch.Generator().manual_seed(0))
    graphs, layers, workspace = {}, [], None  # a graph needs its layer's weights for as long as it is replayed
    for rows in worth_trying(num_tokens * top_k / experts, mode):
        layer = gpu_layer.make_layer(shape, "cuda", mode, tile_rows=tile_rows(rows)).prepare(weights)
        layers.append(layer)
        if workspace is None:
            workspace = torch.empty(layer.workspace_size(num_tokens), dtype=torch.uint8, device="cuda")
        graphs[rows] = captured([lambda b=batch, run=layer: run(*b, workspace=workspace) for batch in batches])
    return medians(graphs, len(batches))


def sweep_linear(k: int, n: int, num_tokens: int) -> dict:
    """Median seconds of a linear by size."""
    weights = [gpu_linear.make_weights(k, n, seed) for seed in range(gpu_linear.num_copies(k, n))]
    x = torch.randn(num_tokens, k, device="cuda").bfloat16()
    graphs, kept = {}, []
    for rows in worth_trying(num_tokens):
        linears = [
            Linear(in_features=k, out_features=n, mode="bf16", tile_rows=tile_rows(rows), device="cuda").prepare(weight)
            for weight in weights
        ]
        kept.append(linears)
        graphs[rows] = captured([lambda f=linear: f(x) for linear in linears])
    return medians(graphs, len(weights))


def medians(graphs: dict, calls: int) -> dict:
    return {rows: statistics.median(times) for rows, times in seconds(graphs, calls).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="pro8,flash8")
    parser.add_argument("--modes", default="bf16")
    parser.add_argument("--tokens", default="8,64,256,512,1024,2048,4096,8192")
    parser.add_argument("--linear-tokens", default="1,16,64,256,512,4096")
    parser.add_argument("--slack", type=float, default=0.1, help="a share of the best time")
    parser.add_argument("--out", type=Path, help="write the table as CSV, too")
    args = parser.parse_args()
    lines = [["what", "tokens", CHOICE, *ALL_ROWS]]
    print(*lines[0])
    slow = []
    sweeps = [
        (f"{shape} {mode}", tokens, functools.partial(sweep_layers, shape, mode, tokens))
        for shape in args.shapes.split(",")
        for mode in args.modes.split(",")
        for tokens in map(int, args.tokens.split(","))
    ] + [
        (f"linear {k}x{n}", tokens, functools.partial(sweep_linear, k, n, tokens))
        for k, n in gpu_linear.SHAPES
        for tokens in map(int, filter(None, args.linear_tokens.split(",")))
    ]
    for what, tokens, sweep in sweeps:
        us = {rows: 1e6 * median for rows, median in sweep().items()}
        best = min(us, key=us.get)
        lines.append([what, tokens, *(f"{us[rows]:.1f}" if rows in us else "" for rows in (CHOICE, *ALL_ROWS))])
        print(*(cell or "-" for cell in map(str, lines[-1])), f"| best {best}", flush=True)
        if us[CHOICE] > us[best] * (1 + args.slack):
            slow.append(f"{what}, {tokens} tokens: {us[CHOICE]:.1f} us, with tiles of {best} {us[best]:.1f}")
    if args.out:
        head = f"# {torch.cuda.get_device_name()}, {datetime.date.today()}, us by row-tile size"
        write_table(args.out, head, lines)
    print("\n".join(slow) or f"every choice is within {args.slack:.0%} of the best")
    sys.exit(bool(slow))


if __name__ == "__main__":
    main()
