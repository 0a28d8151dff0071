#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""All that the stand-in shows on Hopper: `gpu.py [--family sm100] [--only layers,mutants]`. Ends with PASS or FAIL.

    cutlass   CUTLASS's kernels pass, and mistakes in them are called by their names: the stand-in is judged
    layers    the library as it ships, route to combine: probe.py in each mode and with delays, layertest.py, graphs,
              linears and small cases of the matrix
    mutants   each family's GEMMs alone against float64, and mistakes planted in them, which must be found: <family>/

Needs a GPU of compute capability 9.0, torch and pytest, nvcc 13 with cuobjdump, g++, and the op in vllm_plugin/.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OP = ROOT / "vllm_plugin/nvfp4_moe/nvfp4_moe_torch.so"
DRIVER = build.BUILD / "standin_driver.so"
CAPABILITIES = {"sm100": "10.0", "sm120": "12.0"}
MODES = "not portable and not fp8"  # the families have none of mode fp8
GRAPHS = ["--hidden", "256", "--inter", "128", "--mode", "bf16,nvfp4", "--device", "cuda"]
SMALL = "H256 or H512 or H48 or H16 or H64 or H128 or H160 or H288 or H320"  # hidden sizes that take seconds


def make_driver() -> None:
    includes = [f"-I{folder}" for home in build.homes() if (folder := home / "include").is_dir()]
    DRIVER.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden"]
    subprocess.run(
        ["g++", *flags, *includes, *sorted((HERE / "driver").glob("*.cpp")), "-o", DRIVER, "-ldl"], check=True
    )


def make_images(family: str) -> Path:
    """Of all modules of a family, each with the fat binary that the op has of it."""
    out = build.BUILD / f"images-{family}"
    for source in sorted((ROOT / "kernels" / family).glob("*.cu")):
        build.build(source, build.ARCHITECTURES[family], out / f"{build.module_name(source)}.cubin")
    build.take_fatbins(OP, out)
    return out


class Report:
    """Runs commands, says how each ended, and counts what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def run(self, name: str, command: list[object], seconds: int, must_say: str = "", **environment: str) -> None:
        started = time.monotonic()
        try:
            done = subprocess.run([str(it) for it in command], check=False, capture_output=True, text=True, cwd=ROOT,
                                  timeout=seconds, env={**os.environ, **environment})  # fmt: skip
            status, output = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired as late:
            status, output = "too late", str(late.stdout)
        if status == 0 and must_say not in output:
            status = f"without {must_say!r}"
        wrong = status != 0
        if wrong:
            self.failed.append(name)
        last = [line for line in output.strip().splitlines() if line.strip()][-12 if wrong else -2 :]
        print(f"{name}: {'FAIL' if wrong else 'ok'} ({status}, {time.monotonic() - started:.0f} s)", flush=True)
        print("".join(f"    {line}\n" for line in last), end="", flush=True)


def layers(report: Report, family: str, images: Path) -> None:
    base = {"LD_PRELOAD": str(DRIVER), "STANDIN_CAPABILITY": CAPABILITIES[family], "STANDIN_IMAGES": str(images),
            "STANDIN_TIMEOUT_S": "10", "OMP_NUM_THREADS": "4"}  # fmt: skip
    python, pytest = (
        [sys.executable],
        [sys.executable, "-m", "pytest", "-q", "-x", "--tb=short", "-p", "no:cacheprovider"],
    )
    runs = [
        (f"{family} probe, {mode}", [*python, HERE / "probe.py"], {"STANDIN_MODE": mode})
        for mode in ("late", "early", "mixed")
    ]
    unchanged = {"STANDIN_CAPABILITY": "", "STANDIN_IMAGES": ""}
    report.run("as on Hopper", [*python, HERE / "probe.py"], 120, **{**base, **unchanged})
    delays = {"STANDIN_MODE": "mixed", "STANDIN_DELAY_US": "200", "STANDIN_SEED": "7"}
    runs += [
        (f"{family} probe, delays", [*python, HERE / "probe.py"], delays),
        (f"{family} layertest", [*python, "tests/layertest.py", "--device", "cuda", "--shape", "tiny"], {}),
        (f"{family} graphs", [*python, "tests/cudagraph_test.py", *GRAPHS], {}),
        (f"{family} linears", [*pytest, "tests/test_linear.py", "-k", f"cuda and {MODES}"], {}),
    ]
    matrix = [*pytest, "tests/test_layer_matrix.py", "-k"]
    for mode in ("bf16", "nvfp4"):
        runs.append((f"{family} matrix, {mode}", [*matrix, f"cuda and {MODES} and {mode} and ({SMALL})"], {}))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda it: report.run(it[0], it[1], 240, "gemm replaced", **base, **it[2]), runs))


def planted(report: Report, family: str, images: Path) -> None:
    own, out = HERE / family, build.BUILD / f"mutants-{family}"
    out.mkdir(parents=True, exist_ok=True)
    names = ["right", *re.findall(r"^    Mutant\(\"(\w+)\"", (own / "mutants.py").read_text(), re.MULTILINE)]

    def compile_one(name: str) -> None:
        command = [sys.executable, own / "mutants.py", "--out", out, "--only", name]
        subprocess.run(command, check=True, capture_output=True)

    started = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, names))
    print(f"{family}: {len(names) - 1} mistakes compiled, {time.monotonic() - started:.0f} s", flush=True)
    shutil.copy(DRIVER, out)
    shutil.copy(images / f"{family}_prepare.cubin", out / "prepare.cubin")
    if (own / "check.cu").exists():
        includes = [f"-I{ROOT / 'kernels'}", f"-I{HERE}", *build.include_flags()]
        libraries = [f"-L{folder}" for home in build.homes() if (folder := home / "lib").is_dir()]
        build.run(
            "nvcc",
            "-std=c++17",
            "-O2",
            "-arch=sm_90a",
            *includes,
            *libraries,
            own / "check.cu",
            "-ldl",
            "-o",
            out / "check",
        )
    report.run(f"{family} GEMMs alone, and mistakes", ["sh", own / "run.sh", out], 300)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    present = [family for family in CAPABILITIES if (ROOT / "kernels" / family).is_dir()]
    parser.add_argument("--family", default=",".join(present), help="with commas")
    parser.add_argument("--only", default="cutlass,layers,mutants", help="with commas")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{ROOT / 'vllm_plugin'}:{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"
    wanted, families, report = args.only.split(","), [it for it in args.family.split(",") if it], Report()
    make_driver()
    if "cutlass" in wanted:
        report.run("CUTLASS", [sys.executable, HERE / "cutlass_kernels.py", "run", "--driver", DRIVER], 240)
    for family in families:
        images = make_images(family)
        if "layers" in wanted:
            layers(report, family, images)
        if "mutants" in wanted and (HERE / family / "mutants.py").exists():
            planted(report, family, images)
    print(
        f"gpu-standin: {len(report.failed)} failed: {', '.join(report.failed)}"
        if report.failed
        else "gpu-standin: PASS"
    )
    return bool(report.failed)


if __name__ == "__main__":
    sys.exit(main())
