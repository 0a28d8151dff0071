#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What mode fp8 gains on ordinary NVFP4 weights, which it rounds to e4m3: beside mode bf16, and mode fp8 on exact ones.

    python tests/bench/gpu_rounded.py [--out FILE.csv]

One rank of Flash and of Pro under EP8. The graphs of a point are replayed in turn; median over rounds, lowest, highest.
`error` is what prepare states of the weights; `prepare` is the best time of three, measuring included.
"""

import argparse
import datetime
import statistics
from dataclasses import replace
from pathlib import Path

import gpu_timing
import torch
from gpu_layer import SHAPES, make_batches, make_layer, make_weights
from gpu_timing import captured, seconds

TOKENS = (1, 8, 64, 256, 512, 1024, 2048, 4096, 8192)


def ordinary(weights):
    """The same codes with block scales of any mantissa, from 2^-4 to 15."""
    generator = torch.Generator(device="cuda").manual_seed(1)
    any_scale = lambda scales: torch.randint(  # noqa: E731
        0x18, 0x58, scales.shape, dtype=torch.uint8, device="cuda", generator=generator
    )
    return replace(
        weights, w13_block_scale=any_scale(weights.w13_block_scale), w2_block_scale=any_scale(weights.w2_block_scale)
    )


def prepare_time(layer, weights) -> float:
    times = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        layer.prepare(weights)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--out", type=Path, help="write the table as CSV, too")
    args = parser.parse_args()
    gpu_timing.ROUNDS = args.rounds
    lines = [f"# {torch.cuda.get_device_name()}, {datetime.date.today()}, us, median over rounds, lowest, highest"]
    lines += ["shape,kind,tokens,median,lowest,highest"]
    for shape in SHAPES:
        exact = make_weights(shape)
        kinds = {
            "bf16": (make_layer(shape, "cuda", "bf16"), ordinary(exact)),
            "fp8": (make_layer(shape, "cuda", "fp8"), exact),
            "fp8 rounded": (make_layer(shape, "cuda", "fp8", fp8_max_error=0.03), ordinary(exact)),
        }
        for kind, (layer, weights) in kinds.items():
            lines.append(f"# {shape}, {kind}: prepare {prepare_time(layer, weights):.2f} ms")
        lines.append(f"# {shape}: {kinds['fp8 rounded'][0].weight_error()}")
        for tokens in map(int, args.tokens.split(",")):
            batches = make_batches(shape, tokens, "uniform", torch.Generator().manual_seed(tokens))
            workspaces = {
                kind: torch.empty(layer.workspace_size(tokens), dtype=torch.uint8, device="cuda")
                for kind, (layer, _) in kinds.items()
            }
            graphs = {
                kind: captured([lambda b=b, w=workspaces[kind], run=layer: run(*b, workspace=w) for b in batches])
                for kind, (layer, _) in kinds.items()
            }
            for kind, times in seconds(graphs, len(batches)).items():
                us = [1e6 * t for t in times]
                lines.append(f"{shape},{kind},{tokens},{statistics.median(us):.2f},{us[0]:.2f},{us[-1]:.2f}")
        del kinds, exact
        torch.cuda.empty_cache()
        print("\n".join(lines), flush=True)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
