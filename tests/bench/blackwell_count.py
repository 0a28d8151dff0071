# SPDX-License-Identifier: Apache-2.0
"""What a forward costs on Blackwell at least, counted by hand of the sources: nothing here was measured.

    python3 tests/bench/blackwell_count.py

prints the tables of docs/blackwell.md, and tests/test_blackwell_count.py keeps them equal. Mode nvfp4, static input
scales, uniform routing. Beside our kernels stand two peers, as their sources have them:

* vLLM's `cutlass_fp4_group_mm` (vLLM 0.32, `run_cutlass_moe_fp4` and the csrc files that it calls);
* FlashInfer's trtllm-gen kernels, for 10.x alone, with the tile rule that vLLM passed to them.
"""

import math
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TOKENS = (1, 8, 64, 512, 2048, 8192)
NVFP4_BYTES = 9 / 16  # of a value: half a byte, and a scale for 16
DOC = Path(__file__).parents[2] / "docs/blackwell.md"


@dataclass(frozen=True)
class Shape:
    """The experts of one rank, with a gate."""

    name: str
    hidden: int
    inter: int
    experts: int
    local: int
    top_k: int = 6


SHAPES = (
    Shape("Flash EP1", 4096, 2048, 256, 256),
    Shape("Flash EP8", 4096, 2048, 256, 32),
    Shape("Pro EP8", 7168, 3072, 384, 48),
)


@dataclass(frozen=True)
class Chip:
    """Limits that NVIDIA states; multiply-adds of e2m1 a clock follow from the rate, not from a measurement."""

    name: str
    family: str
    bytes_per_s: float
    flops: float
    sms: int
    madds_per_clock: int


CHIPS = (
    Chip("B200", "sm100", 8e12, 9e15, 148, 16384),
    Chip("RTX PRO 6000", "sm120", 1.8e12, 2e15, 188, 2048),
)

# ---- Tiles -----------------------------------------------------------------------------------------------------------

SM100_LAYER_ROWS = (64, 128)  # rust/cuda/sm100/tiles.rs: while the mean of an expert's rows is at most 64, then
SM100_STEP = 8  # a tile multiplies as many rows as it has, in eights
SM120_SIZE_BY_MEAN_ROWS = ((4.0, 8), (9.75, 16), (22.5, 32), (50.0, 64))  # rust/cuda/sm120/tiles.rs
SM120_LARGEST = 128
VLLM_ROWS = 128  # nvfp4_blockwise_moe_kernel.cu: MmaTileShape 128 x 128 x 128, tokens are M
FLASHINFER_ROWS = (8, 64)  # calculate_tile_tokens_dim: the next power of two of an expert's mean rows, within these


@dataclass(frozen=True)
class Tiling:
    """Token rows of a tile, and the step in which a tile's rows are multiplied."""

    rows: int
    step: int


def our_tiling(family: str, shape: Shape, tokens: int) -> Tiling:
    """By the mean of an expert's rows."""
    mean = tokens * shape.top_k / shape.experts
    if family == "sm100":
        few, many = SM100_LAYER_ROWS
        return Tiling(few if mean <= few else many, SM100_STEP)
    by_mean = next((size for limit, size in SM120_SIZE_BY_MEAN_ROWS if mean < limit), SM120_LARGEST)
    sizes = [size for _, size in SM120_SIZE_BY_MEAN_ROWS] + [SM120_LARGEST]
    rows = min(by_mean, next((size for size in sizes if size >= tokens), by_mean))
    return Tiling(rows, rows)


def flashinfer_tiling(shape: Shape, tokens: int) -> Tiling:
    """The rule of older releases; newer ones tune between 8 and 256."""
    fewest, most = FLASHINFER_ROWS
    mean = tokens * shape.top_k // shape.experts
    rows = min(max(1 << max(mean - 1, 0).bit_length(), fewest), most)
    return Tiling(rows, rows)


@cache
def multiplied_rows(shape: Shape, tokens: int, tiling: Tiling) -> float:
    """Token rows that tensor cores multiply on the rank, expected: an expert's rows are binomial."""
    share = shape.top_k / shape.experts
    log_odds = [
        math.lgamma(tokens + 1) - math.lgamma(rows + 1) - math.lgamma(tokens - rows + 1)
        + rows * math.log(share) + (tokens - rows) * math.log1p(-share)
        for rows in range(tokens + 1)
    ]  # fmt: skip

    def multiplied(rows: int) -> int:
        whole, rest = divmod(rows, tiling.rows)
        return whole * tiling.rows + math.ceil(rest / tiling.step) * tiling.step

    return shape.local * sum(math.exp(odds) * multiplied(rows) for rows, odds in enumerate(log_odds))


# ---- Bytes, cycles, launches -----------------------------------------------------------------------------------------


def rows_here(shape: Shape, tokens: int) -> float:
    return tokens * shape.top_k * shape.local / shape.experts


def experts_read(shape: Shape, tokens: int) -> float:
    return shape.local * (1 - (1 - shape.top_k / shape.experts) ** tokens)


def megabytes(shape: Shape, tokens: int) -> float:
    """Each expert's weights once; x, h, y and out once each way between kernels."""
    rows, hidden, inter = rows_here(shape, tokens), shape.hidden, shape.inter
    tokens_here = tokens * (1 - (1 - shape.local / shape.experts) ** shape.top_k)
    weights = experts_read(shape, tokens) * 3 * hidden * inter * NVFP4_BYTES
    x = tokens_here * hidden * (2 + 2 * NVFP4_BYTES)
    h = 2 * rows * inter * NVFP4_BYTES
    y = 2 * rows * hidden * 2
    return (weights + x + h + y + tokens * hidden * 2) / 1e6


def madds(shape: Shape, multiplied: float) -> float:
    return multiplied * 3 * shape.hidden * shape.inter


def our_launches(shape: Shape, tokens: int) -> int:
    """Routing by one block or three kernels; for each chunk of the worst routing x, GEMM1, GEMM2, combine."""
    return (1 if tokens <= 1024 else 3) + 4 * chunks(shape, tokens)


def chunks(shape: Shape, tokens: int) -> int:
    """`LayerPlan::new` of rust/cuda/plan.rs: a uniform routing fills the first, empty ones return at once."""
    is_small, slots = tokens <= 1024, tokens * shape.top_k
    segment = max(-(-tokens // 32), 32 // shape.top_k) if is_small else max(-(-tokens // 256), 32)
    uniform = -(-slots * shape.local // shape.experts)
    by_bytes = (142 << 20) // (2 * (shape.inter + shape.hidden))
    by_rows = min(uniform * 115 // 100 + segment * shape.top_k, 192 * shape.local)
    room = max(by_bytes, by_rows, 2 * segment * shape.top_k)
    return 1 if slots <= room else -(-slots // (room - segment * shape.top_k + 1))


# vLLM: clear counters, problem sizes, offsets, sort; gather; quantise; twice pointers and GEMM; clamped SwiGLU;
# quantise; gather; cast, multiply, sum, copy. Under expert parallelism ids are mapped first.
VLLM_LAUNCHES = 4 + 1 + 1 + 2 * 2 + 1 + 1 + 1 + 4
# Tensors: 6 tables and the counters; gathered x; twice codes and scales; twice 11 small ones and a workspace; gathered
# y; cast weights, product, sum.
VLLM_ALLOCATIONS = 7 + 1 + 2 * 2 + 2 * 12 + 1 + 3
FLASHINFER_LAUNCHES = 5  # at least: quantise x; routing; GEMM1 with the activation; GEMM2; finalise
# FlashInfer 0.6.18, FP4BlockScaleLauncher: 9 of routing; a workspace of each GEMM; h, y and x, and scales of h and x.
# The output is the caller's.
FLASHINFER_ALLOCATIONS = 9 + 2 + 2 + 1 + 2


def vllm_extra(shape: Shape) -> int:
    """Launches and tensors of mapping ids."""
    return int(shape.local < shape.experts)


# ---- Tables ----------------------------------------------------------------------------------------------------------


def row(chip: Chip, shape: Shape, tokens: int) -> list[str]:
    rows, moved = rows_here(shape, tokens), megabytes(shape, tokens)
    ours = our_tiling(chip.family, shape, tokens)

    def of(tiling: Tiling) -> tuple[str, str]:
        multiplied = multiplied_rows(shape, tokens, tiling)
        return f"{rows / multiplied:.0%}", f"{2 * madds(shape, multiplied) / chip.flops * 1e6:.1f}"

    cycles = madds(shape, multiplied_rows(shape, tokens, ours)) / chip.madds_per_clock / chip.sms
    filled, tensor = of(ours)
    vllm_filled, vllm_tensor = of(Tiling(VLLM_ROWS, VLLM_ROWS))
    extra = vllm_extra(shape)
    cells = [
        shape.name, str(tokens), f"{rows:.1f}", f"{moved:.1f}", f"{moved * 1e6 / chip.bytes_per_s * 1e6:.1f}",
        str(ours.rows), filled, f"{cycles:.0f}", tensor, str(our_launches(shape, tokens)),
        vllm_filled, vllm_tensor, str(VLLM_LAUNCHES + extra), str(VLLM_ALLOCATIONS + extra),
    ]  # fmt: skip
    if chip.family == "sm100":
        theirs = flashinfer_tiling(shape, tokens)
        cells += [str(theirs.rows), of(theirs)[0], f"{FLASHINFER_LAUNCHES}+", str(FLASHINFER_ALLOCATIONS)]
    return cells


HEAD = ["shape", "T", "rows", "MB", "us memory", "tile", "filled", "cycles", "us tensor", "launches"]
HEAD_VLLM = ["vLLM filled", "us tensor", "launches", "tensors"]
HEAD_FLASHINFER = ["FlashInfer tile", "filled", "launches", "tensors"]


def table(chip: Chip) -> str:
    """Of one chip, in Markdown."""
    head = HEAD + HEAD_VLLM + (HEAD_FLASHINFER if chip.family == "sm100" else [])
    lines = [head, ["---"] * len(head)]
    lines += [row(chip, shape, tokens) for shape in SHAPES for tokens in TOKENS]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def marks(chip: Chip) -> tuple[str, str]:
    """Between these lines of the document."""
    return f"<!-- {chip.name}: tests/bench/blackwell_count.py -->", "<!-- end -->"


def put(document: str, chip: Chip) -> str:
    """The document with this chip's table."""
    begin, end = marks(chip)
    before, _, rest = document.partition(begin + "\n")
    return before + begin + "\n" + table(chip) + "\n" + end + rest.partition(end)[2]


def main() -> None:
    """Print the tables; with --write put them into the document."""
    for chip in CHIPS:
        if "--write" in sys.argv:
            DOC.write_text(put(DOC.read_text(), chip))
        print(f"\n{chip.name}\n\n{table(chip)}")


if __name__ == "__main__":
    main()
