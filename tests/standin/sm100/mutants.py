#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mistakes planted in kernels/sm100/, each of which check.cu must find: `mutants.py --out FOLDER` compiles them.

The folder gets NAME.cubin of each, `right.cubin` of the kernels as they are, and `mutants.txt`: name, mode, what the
stand-in must say. `run.sh` beside this file runs check over them on a GPU.
"""

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
# Two kernels of each mode: what check's `few` runs.
FEW = {"nvfp4": ("gemm1_nvfp4_sm100", "gemm_nvfp4_rows_sm100"), "bf16": ("gemm1_bf16_sm100", "gemm_bf16_rows_sm100")}
WRONG = "values are wrong"  # where no rule is broken, but the results are


@dataclass(frozen=True)
class Mutant:
    """A text of a kernel's source, what takes its place, and how that is found: an error of the stand-in, or WRONG.

    "" where it depends on which thread is first.
    """

    name: str
    file: str
    old: str
    new: str
    found: str
    mode: str = "nvfp4"


def no_wait(ring: str, at: str, turn: str) -> str:
    return f"wait(cta_, control().{ring}, {at}.at, {turn}, SM100_BARRIER_{ring.upper()});"


MUTANTS = (
    # What tells the tensor core where and what.
    Mutant("stride", "layout.cuh", "uint64_t{1024 >> 4} << 32", "uint64_t{1040 >> 4} << 32", ""),
    Mutant("swizzle", "layout.cuh", "uint64_t{2} << 61", "uint64_t{4} << 61", ""),
    Mutant("version", "layout.cuh", "<< 32 | kDescriptorVersion |", "<< 32 |", "Descriptor"),
    Mutant("scale_stride", "layout.cuh", "uint64_t{128 >> 4} << 32", "uint64_t{256 >> 4} << 32", ""),
    Mutant("fewer_columns", "mma.cuh", "nvfp4_instruction(n)", "nvfp4_instruction(n > 8 ? n - 8 : n)", ""),
    Mutant("first_product_added", "mma.cuh", "!is_first || i > 0);", "true);", ""),
    Mutant("up_is_gate", "mma.cuh", "operand_descriptor(stage + half * kTileBytes", "operand_descriptor(stage", WRONG),
    # Stages, sums and pieces.
    Mutant("stage_not_awaited", "mma.cuh", no_wait("full", "ring_", "ring_.turn"), "", ""),
    Mutant("stage_reused", "load.cuh", no_wait("empty", "ring_", "ring_.turn ^ 1"), "", ""),
    Mutant("parity_of_a_stage", "mma.cuh", "ring_.turn, SM100", "ring_.turn ^ 1, SM100", ""),
    Mutant("parity_of_sums", "epilogue.cuh", "sums_.turn, SM100", "sums_.turn ^ 1, SM100", ""),
    Mutant("stage_not_given_back", "mma.cuh", "commit(control().empty[ring_.at]);", "", "Hang"),
    Mutant("sums_not_announced", "mma.cuh", "commit(control().sums_full[sums_.at]);", "", "Hang"),
    Mutant("sums_overwritten", "mma.cuh", no_wait("sums_empty", "sums_", "sums_.turn ^ 1"), "", ""),
    Mutant("bytes_not_expected", "load.cuh", "+ steps(slab) * scale_tiles(n)", "+ 0 * scale_tiles(n)", ""),
    Mutant("piece_reused", "dequantize.cuh", no_wait("piece_empty", "pieces_", "pieces_.turn ^ 1"), "", "", "bf16"),
    Mutant("piece_not_awaited", "mma.cuh", no_wait("piece_full", "pieces_", "pieces_.turn"), "", "", "bf16"),
    # Fences, and what must be waited for.
    Mutant("no_fence_after_a_stage", "mma.cuh", "SM100_BARRIER_FULL);\n        fence_after();", "SM100_BARRIER_FULL);",
           "MissingFenceAfter"),
    Mutant("no_fence_after_sums", "epilogue.cuh", "SM100_BARRIER_SUMS_FULL);\n      fence_after();",
           "SM100_BARRIER_SUMS_FULL);", "MissingFenceAfter"),
    Mutant("no_fence_before_an_arrival", "epilogue.cuh", "      fence_before();\n", "", "MissingFenceBefore"),
    Mutant("store_not_awaited", "dequantize.cuh", "    tmem_wait_store();\n", "", "", "bf16"),
    Mutant("no_fence_before_a_piece", "dequantize.cuh", "    fence_before();\n", "", "MissingFenceBefore", "bf16"),
    # Tensor memory.
    Mutant("scale_column_of_a_step", "mma.cuh", "of_rows + i * row_columns, !is_first", "of_rows, !is_first", WRONG),
    Mutant("scale_column_of_a_copy", "mma.cuh", "copy_scales(scales + (half * kTileSteps + i) * kScaleColumns",
           "copy_scales(scales + half * kTileSteps * kScaleColumns", "NotWritten"),
    Mutant("scales_not_copied", "mma.cuh", "128 * j < n; ++j", "128 * j < n - 128; ++j", "NotWritten"),
    Mutant("wrong_lanes", "epilogue.cuh", "static_cast<uint32_t>(warp() * 32) << 16", "0", "Lanes"),
    Mutant("not_freed", "gemm.cu", "  if (warp == kMma) tmem_dealloc(control.tmem, kTmemColumns);\n", "", "NotFreed"),
    Mutant("column_of_a_piece", "mma.cuh", "piece + k / 2", "piece + k / 4", WRONG, "bf16"),
    # The epilogue.
    Mutant("quarter_of_a_scale", "requantize.cuh", "at % 128 / 32", "0", WRONG),
    Mutant("nibbles", "requantize.cuh", "threadIdx.x & d;", "(threadIdx.x & d) == 0;", WRONG),
)  # fmt: skip


def keep_few(gemm: Path, mode: str) -> None:
    """Leave out the kernels that `few` does not run."""
    lines = gemm.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("NVFP4_GEMM(") or any(f"({k}," in line for k in FEW[mode])]
    gemm.write_text("".join(kept))


def build(out: Path, mutant: Mutant | None) -> None:
    import build as standin  # tests/standin/build.py

    name = mutant.name if mutant else "right"
    with tempfile.TemporaryDirectory() as folder:
        kernels = Path(folder) / "kernels"
        shutil.copytree(ROOT / "kernels", kernels)
        if mutant:
            file = kernels / "sm100" / mutant.file
            text = file.read_text()
            if text.count(mutant.old) != 1:
                raise SystemExit(f"{name}: {mutant.old!r} is {text.count(mutant.old)} times in {mutant.file}")
            file.write_text(text.replace(mutant.old, mutant.new))
            keep_few(kernels / "sm100/gemm.cu", mutant.mode)
        standin.build(kernels / "sm100/gemm.cu", "100f", out / f"{name}.cubin")
        print(out / f"{name}.cubin", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--standin", type=Path, default=HERE.parent, help="the folder with build.py")
    parser.add_argument("--only", help="a name")
    args = parser.parse_args()
    sys.path.insert(0, str(args.standin))
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [f"{it.name} {it.mode} {it.found}\n" for it in MUTANTS]
    (args.out / "mutants.txt").write_text("".join(rows))
    for mutant in (None, *MUTANTS):
        name = mutant.name if mutant else "right"
        if args.only in (None, name) and not (args.out / f"{name}.cubin").exists():
            build(args.out, mutant)


if __name__ == "__main__":
    main()
