#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kinds of experts on a GPU: MXFP4 in every mode (speed, loss to float64), relu2, and row tiles of one order.

The rule by which MXFP4's default mode on Hopper is chosen, written down before the first run: fp8 if on Flash and Pro

1. it is 5 % faster than bf16 at one of 512, 2048 and 8192 tokens, and nowhere more than 2 % slower, and
2. its relative L2 to float64 is at most four times bf16's, for both kinds of activations; else bf16.

The second half has the last word, because who asked for nothing must not get rounder numbers than the weights have.
Row tiles of one order are what makes a token's bits the same in every batch (`VLLM_BATCH_INVARIANT`): those that the
library chooses under ONE_ORDER, beside its own choice and beside one size for all calls. `--tiles-only`: only those.

speed  one call in a CUDA graph of several, median, us (`tests/bench/gpu_timing.py`); routing is uniform
"""

import argparse
import datetime
import statistics
from pathlib import Path

import torch
from gpu_layer import SHAPES as GATED
from gpu_timing import captured, seconds, write_table

from nvfp4_moe import Layer, LayerWeights, cast_mxfp4
from nvfp4_moe.layer import ONE_ORDER
from reference import nvfp4
from reference.layer import relative_l2

# hidden (Super: the latent width), intermediate, experts, local experts, top_k
NOT_GATED = {"super8": (1024, 2688, 512, 64, 22), "nano": (2688, 1856, 128, 128, 6)}
LIMIT = 10.0
TILE_ROWS = (0, ONE_ORDER, 48)
MODES = ("bf16", "nvfp4", "fp8")
TOKENS = (1, 8, 64, 512, 2048, 8192)


def random_mxfp4(local: int, rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and e8m0 scales within 2^6, on the GPU; products of a row sum to about 1."""
    codes = torch.randint(0, 256, (local, rows, cols // 2), dtype=torch.uint8, device="cuda")
    top = 127 - 1 - round(torch.tensor(float(cols)).log2().item() / 2)
    return codes, torch.randint(top - 6, top + 1, (local, rows, cols // 32), dtype=torch.uint8, device="cuda")


def make(shape: tuple, gated: bool) -> tuple[LayerWeights, tuple]:
    """The layer's weights, cast, and what was cast."""
    hidden, inter, _, local, _ = shape
    gate_up, down = random_mxfp4(local, (2 if gated else 1) * inter, hidden), random_mxfp4(local, hidden, inter)
    scale13, global13 = cast_mxfp4(*(tensor.unflatten(1, (2 if gated else 1, -1)) for tensor in gate_up))
    scale2, global2 = cast_mxfp4(*down)
    return LayerWeights(gate_up[0], scale13.flatten(1, 2), global13, down[0], scale2, global2), (*gate_up, *down)


def make_layer(shape: tuple, gated: bool, mode: str, **options) -> Layer:
    hidden, inter, experts, local, top_k = shape
    kind = {"swiglu_limit": LIMIT} if gated else {"activation": "relu2"}
    return Layer(
        hidden_size=hidden, intermediate_size=inter, num_experts=experts, num_local_experts=local, top_k=top_k,
        mode=mode, scale_policy="dynamic", scale_block_size=32 if mode == "fp8" else 16, device="cuda",
        **kind, **options,
    )  # fmt: skip


def batch(shape: tuple, num_tokens: int, outliers: bool = False) -> tuple:
    """x, ids, weights. With outliers one channel in a hundred is thirty times as large, as behind real norms."""
    hidden, _, experts, _, top_k = shape
    x = torch.randn(num_tokens, hidden, device="cuda")
    if outliers:
        x[:, ::100] *= 30
    ids = torch.rand(num_tokens, experts, device="cuda").topk(top_k).indices.int()
    return x.bfloat16(), ids, torch.randn(num_tokens, top_k, device="cuda").softmax(1)


def decode(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A matrix of MXFP4 in float64, where it is."""
    e2m1 = torch.cat([nvfp4.E2M1, -nvfp4.E2M1]).to(codes.device, torch.float64)
    values = e2m1[torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2).int()]
    return values * torch.exp2(scale.double() - 127).repeat_interleave(32, dim=-1)


def in_float64(cast: tuple, gated: bool, x, ids, topk_weights) -> torch.Tensor:
    """From MXFP4's own values."""
    out = torch.zeros(x.shape, dtype=torch.float64, device="cuda")
    for expert in range(len(cast[0])):
        token, slot = (ids == expert).nonzero(as_tuple=True)
        if len(token):
            h = x[token].double() @ decode(cast[0][expert], cast[1][expert]).T
            if gated:
                gate, up = h.chunk(2, dim=1)
                gate = gate.clamp(max=LIMIT)
                h = gate * torch.sigmoid(gate) * up.clamp(-LIMIT, LIMIT)
            else:
                h = h.relu().square()
            y = h @ decode(cast[2][expert], cast[3][expert]).T
            out.index_add_(0, token, y * topk_weights[token, slot, None].double())
    return out


def speed(layers: dict, shape: tuple, num_tokens: int) -> dict:
    """Median us of a call of each layer, timed in turn."""
    batches = [batch(shape, num_tokens) for _ in range(8 if num_tokens <= 64 else 2)]
    size = max(layer.workspace_size(num_tokens) for layer in layers.values())
    memory = {"workspace": torch.empty(size, dtype=torch.uint8, device="cuda"), "out": torch.empty_like(batches[0][0])}
    graphs = {
        name: captured([lambda b=of, run=layer: run(*b, **memory) for of in batches]) for name, layer in layers.items()
    }
    return {name: 1e6 * statistics.median(of) for name, of in seconds(graphs, len(batches)).items()}


def time_tiles(name: str, shape: tuple, weights: LayerWeights, add) -> None:
    for mode in MODES:
        sizes = {of: make_layer(shape, True, mode, tile_rows=of).prepare(weights) for of in TILE_ROWS}
        for num_tokens in TOKENS:
            for size, us in speed(sizes, shape, num_tokens).items():
                add("row tiles", name, num_tokens, mode, size, f"{us:.2f}", "us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table as CSV, too")
    parser.add_argument("--tiles-only", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    head = f"# {torch.cuda.get_device_name()}, {datetime.date.today()}, torch {torch.__version__}"
    rows = [["what", "shape", "tokens", "mode", "tile_rows", "value", "unit"]]
    print(head, rows[0], sep="\n")

    def add(*row) -> None:
        rows.append(list(row))
        print(*row, flush=True)

    for name, shape in (GATED if args.tiles_only else GATED | NOT_GATED).items():
        gated = name in GATED
        weights, cast = make(shape, gated)
        if args.tiles_only:
            time_tiles(name, shape, weights, add)
            continue
        modes = {mode: make_layer(shape, gated, mode).prepare(weights) for mode in MODES}
        for activations in ("normal", "outliers"):
            inputs = batch(shape, 64, activations == "outliers")
            exact = in_float64(cast, gated, *inputs).cpu()
            for mode, layer in modes.items():
                add(
                    f"loss, {activations}",
                    name,
                    64,
                    mode,
                    0,
                    f"{relative_l2(layer(*inputs).cpu(), exact):.2e}",
                    "rel L2",
                )
        for num_tokens in TOKENS:
            for mode, us in speed(modes, shape, num_tokens).items():
                add("speed", name, num_tokens, mode, 0, f"{us:.2f}", "us")
        del modes
        if gated:
            time_tiles(name, shape, weights, add)
    if args.out:
        write_table(args.out, head, rows)


if __name__ == "__main__":
    main()
