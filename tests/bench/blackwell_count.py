#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a forward of mode nvfp4 moves, multiplies and launches on compute capability 12.x, counted, not measured.

    python3 tests/bench/blackwell_count.py

Uniform routing, one rank of DeepSeek-V4 under EP8, static input scales. Columns:

    rows         of tokens that are routed here; experts that have some
    n            token rows of a tile; filled: what part of the multiplied token rows are rows of tokens; and the same
                 by tiles of 128 rows, as vLLM's CUTLASS GEMMs have
    MB           from and to memory: weights of experts that have rows, and x, h, y, out once each way
    us memory    of these bytes at 1.8 TB/s, RTX PRO 6000's
    us tensor    of its block-scaled mma.sync: 188 multiprocessors, 2048 multiply-adds a clock each, 2.4 GHz
    launches     all chunks of the worst routing; a uniform one fills the first
"""

import math
from dataclasses import dataclass

BYTES_PER_S = 1.8e12
SMS, MADDS_PER_CLOCK, CLOCKS_PER_S = 188, 2048, 2.4e9
SIZES = (8, 16, 32, 64, 128)  # rust/cuda/sm120/tiles.rs
BY_MEAN = ((4.0, 8), (9.75, 16), (22.5, 32), (50.0, 64))
PEER_TILE = 128


@dataclass
class Shape:
    name: str
    hidden: int
    intermediate: int
    experts: int
    top_k: int
    local: int


SHAPES = (Shape("pro", 7168, 3072, 384, 6, 48), Shape("flash", 4096, 2048, 256, 6, 32))


def rows_of_tile(shape: Shape, tokens: int) -> int:
    mean = tokens * shape.top_k / shape.experts
    by_mean = next((size for limit, size in BY_MEAN if mean < limit), SIZES[-1])
    return min(by_mean, next((size for size in SIZES if size >= tokens), by_mean))


def multiplied_rows(shape: Shape, tokens: int, tile: int, step: int) -> float:
    """Token rows that tensor cores multiply for an expert, expected: binomial rows, in tiles that count `step` rows."""
    share = shape.top_k / shape.experts
    total, odds = 0.0, (1 - share) ** tokens
    for rows in range(tokens + 1):
        total += odds * math.ceil(rows / tile) * step
        odds *= (tokens - rows) / (rows + 1) * share / (1 - share)
    return total


def chunks(shape: Shape, tokens: int) -> int:
    """As LayerPlan of rust/cuda/plan.rs cuts a call up for the worst routing; empty chunks return at once."""
    small = tokens <= 1024
    segment = max(-(-tokens // 32), 32 // shape.top_k, 1) if small else max(-(-tokens // 256), 32)
    slots, segment_slots = tokens * shape.top_k, segment * shape.top_k
    uniform = -(-slots * shape.local // shape.experts)
    by_bytes = (142 << 20) // (2 * shape.intermediate + 2 * shape.hidden)
    roomy = max(by_bytes, min(uniform * 115 // 100 + segment_slots, 192 * shape.local), 2 * segment_slots)
    return 1 if slots <= roomy else -(-slots // (roomy - segment_slots + 1))


def count(shape: Shape, tokens: int) -> str:
    h, i, share = shape.hidden, shape.intermediate, shape.top_k / shape.experts
    rows, touched = tokens * share * shape.local, shape.local * (1 - (1 - share) ** tokens)
    tile = rows_of_tile(shape, tokens)
    multiplied = multiplied_rows(shape, tokens, tile, tile) * shape.local
    peer = multiplied_rows(shape, tokens, PEER_TILE, PEER_TILE) * shape.local
    here = min(tokens, rows) if tokens > rows else tokens  # tokens that are routed here, at most
    packed = 9 / 16
    moved = touched * 3 * h * i * packed  # weights
    moved += here * h * (2 + packed) + here * h * packed  # x: read, written, read
    moved += 2 * rows * i * packed + 2 * rows * h * 2 + tokens * h * 2  # h, y: written, read; out
    madds = multiplied * 3 * h * i
    clocks = madds / MADDS_PER_CLOCK / SMS
    launches = (1 if tokens <= 1024 else 3) + 4 * chunks(shape, tokens)  # route; then x, GEMM1, GEMM2, combine
    filled = f"{rows / multiplied:.0%} | {rows / peer:.0%}"
    return (
        f"| {shape.name} | {tokens} | {rows:.1f} | {touched:.1f} | {tile} | {filled} "
        f"| {moved / 1e6:.1f} | {moved / BYTES_PER_S * 1e6:.1f} | {clocks / CLOCKS_PER_S * 1e6:.1f} | {launches} |"
    )


def main() -> None:
    print("| shape | tokens | rows | experts | n | filled | filled by 128 | MB | us memory | us tensor | launches |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        for tokens in (1, 8, 64, 512, 2048, 8192):
            print(count(shape, tokens))


if __name__ == "__main__":
    main()
