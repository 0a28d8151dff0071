#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What Hopper's GEMMs take without one of their parts, and the clock they run at: which of them is short.

    python3 tests/bench/gpu_parts.py [--mode bf16] [--shape pro] [--cases 32:48,64:80,128:144] [--parts whole,rows,...]

A case is the mean rows of an expert and the row-tile size. For each part a copy of kernels/ is changed so that it does
nothing, compiled by nvcc (found as PATH or CUDA_HOME has it) and timed with gpu_parts.cu: GEMM1 and GEMM2 of one layer
by themselves, weights from HBM, random bits. Such kernels compute nonsense; only their times mean something.

Parts: whole (nothing left out), rows (not copied), weights (not copied), copies (neither), tensor (no tensor cores),
dequantize (codes are multiplied as they are). Columns: median us of both GEMMs, of each, and MHz in each.
"""

import argparse
import concurrent.futures
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "parts"
# experts, hidden, intermediate: an expert-parallel rank of eight
SHAPES = {"pro": (48, 7168, 3072), "flash": (32, 4096, 2048)}

RAW = """#pragma unroll
    for (int i = 0; i < {steps}; ++i) {{
      a[i][0] = codes.x ^ i, a[i][1] = codes.y ^ i, a[i][2] = codes.z ^ i, a[i][3] = codes.w ^ {scale};
    }}
    return;
"""
FRAGMENTS = "__device__ void dequantize_all(uint32_t (*a)[4]) const {\n"
MULTIPLY = "    if constexpr (C::kColumnBytes == 2) {\n      ptx::Wgmma<kColumns>::multiply_add_bf16"
ROWS = ("load.cuh", "ptx::cp_async_16(target + line * C::kN * 128 + i * kRowStep * 128, row[i] + line * 128);", ";")
WEIGHTS = ("load.cuh", "    constexpr int kStarters", "    return;\n    constexpr int kStarters")
TENSOR = (
    "mma.cuh",
    MULTIPLY,
    '    asm volatile("" ::"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows));\n    return;\n' + MULTIPLY,
)
DEQUANTIZE = [
    ("mma.cuh", FRAGMENTS + first, FRAGMENTS + RAW.format(steps=steps, scale=scale) + first)
    for first, steps, scale in (
        ("    dequantize_two<0>(a[0], a[1]);", 4, "scales.x"),
        ("    dequantize_fp8_all(codes, Fp8Table(", 2, "scales.x"),
    )
]
PARTS = {
    "whole": [],
    "rows": [ROWS],
    "weights": [WEIGHTS],
    "copies": [ROWS, WEIGHTS],
    "tensor": [TENSOR],
    "dequantize": DEQUANTIZE,
}

# Of every kernel: what its first block's first thread saw of clocks and nanoseconds.
COUNT = """
__device__ long long clocks_and_ns[2];
__device__ void count(int sign) {
  if (blockIdx.x != 0 || threadIdx.x != 0) return;
  long long ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  clocks_and_ns[0] += sign * clock64();
  clocks_and_ns[1] += sign * ns;
}
"""
CONSUME = "    multiply<C, Output<C, kEpilogue, SharedStorage<C>>>(p, shared);\n"
SHARED = "  extern __shared__ __align__(1024)"
COUNTED = [
    ("gemm.cuh", "namespace nvfp4 {\n", "namespace nvfp4 {\n" + COUNT),
    ("gemm.cuh", SHARED, "  count(-1);\n" + SHARED),
    ("gemm.cuh", CONSUME, CONSUME + "    count(1);\n"),
]


def changed_kernels(part: str, tile_rows: int) -> Path:
    """A copy of the kernels without the part, with the instances of one row-tile size."""
    folder = BUILD / f"{part}-{tile_rows}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "kernels", folder)
    for name, old, new in [*COUNTED, *PARTS[part]]:
        path = folder / "hopper" / name
        text = path.read_text()
        if text.count(old) != 1:
            sys.exit(f"{name} has {text.count(old)} times, not once:\n{old}\nAdapt {Path(__file__).name}.")
        path.write_text(text.replace(old, new))
    source = folder / "hopper" / "gemm.cu"
    instances = source.read_text().index("GEMM_SM90_ROW_TILES(")
    source.write_text(source.read_text()[:instances] + f"NVFP4_GEMMS({tile_rows})\n")
    return folder


def compile_program(part: str, mode: str, shape: str, tile_rows: int, *, link: bool) -> Path:
    folder = changed_kernels(part, tile_rows)
    suffix = f"{'_fp8' if mode == 'fp8' else ''}_sm90_n{tile_rows}"
    experts, hidden, inter = SHAPES[shape]
    values = {
        "NAME1": "gemm1" + suffix, "NAME2": "gemm2" + suffix, "TILE_ROWS": tile_rows,
        "COLUMN_BYTES": 1 if mode == "fp8" else 2, "EXPERTS": experts, "HIDDEN": hidden, "INTERMEDIATE": inter,
    }  # fmt: skip
    source = folder / "main.cu"
    source.write_text(f'#include "hopper/gemm.cu"\n#include "{ROOT}/tests/bench/gpu_parts.cu"\n')
    nvcc = shutil.which("nvcc") or Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
    program = folder / "main"
    target = ["-gencode", "arch=compute_90a,code=sm_90a"]
    defines = [f"-D{name}={value}" for name, value in values.items()]
    command = [nvcc, "-std=c++17", "-O3", *target, *defines, "-I", folder, source, "-o", program]
    done = subprocess.run(command if link else [*command, "-c"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"nvcc failed on {source}:\n{done.stderr}")
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--shape", choices=SHAPES, default="pro")
    parser.add_argument("--cases", default="32:48,64:80,128:144")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=2, help="each runs all programs in turn")
    parser.add_argument("--compile-only", action="store_true", help="and do not link: for a machine without a GPU")
    args = parser.parse_args()
    parts = args.parts.split(",")
    cases = [tuple(map(int, case.split(":"))) for case in args.cases.split(",")]
    # Of a part and a row-tile size, whatever the rows.
    wanted = {(part, tile_rows) for _, tile_rows in cases for part in parts}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = {
            (part, tile_rows): pool.submit(
                compile_program, part, args.mode, args.shape, tile_rows, link=not args.compile_only
            )
            for part, tile_rows in wanted
        }
    programs = {key: future.result() for key, future in programs.items()}
    if args.compile_only:
        return
    print("mode shape rows tile part us gemm1_us gemm2_us gemm1_MHz gemm2_MHz")
    for _ in range(args.rounds):
        for (rows, tile_rows), part in itertools.product(cases, parts):
            command = [programs[part, tile_rows], str(rows), "40"]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            (_, us1, mhz1), (_, us2, mhz2) = (line.split() for line in output.splitlines())
            both = float(us1) + float(us2)
            print(args.mode, args.shape, rows, tile_rows, part, f"{both:.1f}", us1, us2, mhz1, mhz2, flush=True)


if __name__ == "__main__":
    main()
