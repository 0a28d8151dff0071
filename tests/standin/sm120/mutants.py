#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mistakes planted in kernels/sm120/, each of which check.py must find: `mutants.py --out FOLDER` compiles them.

The folder gets NAME.cubin of each, `right.cubin` of the kernels as they are, and NAME-prepare.cubin where prepare is
mistaken. `run.sh` beside this file runs check.py over them on a GPU.
"""

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


@dataclass(frozen=True)
class Mutant:
    """A text of a kernel's source, and what takes its place."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant("scale_selector", "mma.cuh", "ptx::mma_nvf4<1, decltype", "ptx::mma_nvf4<0, decltype"),
    Mutant("scales_of_one_octet", "mma.cuh", "(8 * (j + lane() % 4) + lane() / 4)", "(8 * j + lane() / 4)"),
    Mutant("swizzle_not_read", "mma.cuh", "rows + chunk_offset<true, C::kLineBytes>(row, chunk)",
           "rows + row * C::kLineBytes + chunk * 16"),
    Mutant("second_half_of_the_warps", "mma.cuh", "return threadIdx.x / 128 * C::kWarpRows;", "return 0;"),
    Mutant("scale_of_the_first_block", "mma.cuh", "+ 2 * half + lane() % 4 / 2]", "+ 2 * half]"),
    Mutant("factor_of_bf16", "layout.cuh", "kMissingFactor = 256.0f", "kMissingFactor = 128.0f"),
    Mutant("full_not_waited_for", "gemm.cu", "wait_until_full(p, shared, ring.stage, ring.parity);", ""),
    Mutant("stage_reused", "load.cuh", "wait_until_empty(p, shared, ring.stage, ring.parity ^ 1);", ""),
    Mutant("parity_of_empty", "load.cuh", "ring.stage, ring.parity ^ 1);", "ring.stage, ring.parity);"),
    Mutant("fewer_bytes_expected", "load.cuh", "ptx::mbarrier_expect_tx(shared.full[stage], bytes);",
           "ptx::mbarrier_expect_tx(shared.full[stage], bytes / 2);"),
    Mutant("stage_never_released", "gemm.cu", "if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive",
           "if (threadIdx.x == 0) ptx::mbarrier_arrive"),
    Mutant("scales_past_the_last", "load.cuh", "min(kSlabSteps, num_blocks - block)", "kSlabSteps"),
    Mutant("columns_past_the_last", "load.cuh", "max(0, min(16, valid_bytes - chunk * 16))", "16"),
    Mutant("rows_not_gathered", "load.cuh", "p.gemm.row_to_slot ? p.gemm.row_to_slot[row] / p.gemm.top_k : row", "row"),
    Mutant("block_of_h", "requantize.cuh", "store_swizzled(p.h, row, first_block + b,", "store_swizzled(p.h, row, b,"),
    Mutant("prepare_halves", "prepare.cu", "== 0 ? block.x : block.y", "!= 0 ? block.x : block.y"),
    Mutant("prepare_scale_rows", "prepare.cu", "&staged.scales[t][first_block]", "&staged.scales[t ^ 8][first_block]"),
)  # fmt: skip


def build(out: Path, mutant: Mutant | None) -> None:
    """Compile few.cu, or prepare.cu where the mistake is there, of a copy of the sources with the mistake in it."""
    import build as standin  # tests/standin/build.py

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "kernels", copy / "kernels")
        shutil.copytree(HERE, copy / "tests/standin/sm120", ignore=shutil.ignore_patterns("__pycache__"))
        source, name = copy / "tests/standin/sm120/few.cu", mutant.name if mutant else "right"
        if mutant:
            file = copy / "kernels/sm120" / mutant.file
            text = file.read_text()
            if text.count(mutant.old) != 1:
                raise SystemExit(f"{mutant.name}: {mutant.old!r} is {text.count(mutant.old)} times in {mutant.file}")
            file.write_text(text.replace(mutant.old, mutant.new))
            if mutant.file == "prepare.cu":
                source, name = file, f"{mutant.name}-prepare"
        standin.build(source, "120f", out / f"{name}.cubin")
        print(out / f"{name}.cubin", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--standin", type=Path, default=HERE.parent, help="the folder with build.py")
    parser.add_argument("--only", help="a name")
    args = parser.parse_args()
    sys.path.insert(0, str(args.standin))
    for mutant in (None, *MUTANTS):
        if args.only in (None, mutant.name if mutant else "right"):
            build(args.out, mutant)


if __name__ == "__main__":
    main()
