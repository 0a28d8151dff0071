#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""All that the stand-in shows on Hopper: `suite.py [build|run] [--family sm100] [--only layers]`; PASS or FAIL.

    cutlass   CUTLASS's kernels pass, and mistakes in them are called by their names: the stand-in is judged
    layers    the library as it ships, route to combine: probe.py in each mode and with delays, layertest.py, graphs,
              linears and small cases of the matrix
    mutants   each family's GEMMs alone against float64, and mistakes planted in them, which must be found: <family>/

`build` compiles what `run` needs, on a machine with nvcc 13, cuobjdump and g++; build/standin travels. `run` needs a
GPU of compute capability 9.0, torch, pytest and the op in vllm_plugin/. Without either, both; what is up to date stays.
"""

import argparse
import hashlib
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
sys.path.append(str(ROOT / "tests"))
from side_by_side import Command, Report

OP = ROOT / "vllm_plugin/nvfp4_moe/nvfp4_moe_torch.so"
DRIVER = build.BUILD / "standin_driver.so"
CAPABILITIES = {"sm100": "10.0", "sm120": "12.0"}
OURS = "cuda and not portable and not fp8"  # the families have none of mode fp8
GRAPHS = ["--hidden", "256", "--inter", "128", "--mode", "bf16,nvfp4", "--device", "cuda", "--most", "64"]
# A few sizes, ragged ones among them; every activation, biases; every skew of routing.
CASES = "H256I512T8 or H48 or H64 or H160 or H288 or H16I16 or T33 or T129 or T300"
RUN_SECONDS = 150


# ---- Building --------------------------------------------------------------------------------------------------------


def key_of(family: str) -> str:
    """Of all that images and mistakes are made from."""
    folders = [ROOT / "kernels", HERE / "device", HERE / family]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    parts = [path.read_bytes() for path in [*files, *sorted(HERE.glob("*.py")), OP] if path.exists()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def make_driver() -> None:
    includes = [f"-I{folder}" for home in build.homes() if (folder := home / "include").is_dir()]
    DRIVER.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++17", "-O2", "-s", "-shared", "-fPIC", "-fvisibility=hidden"]
    subprocess.run(
        ["g++", *flags, *includes, *sorted((HERE / "driver").glob("*.cpp")), "-o", DRIVER, "-ldl"], check=True
    )


def images_of(family: str) -> Path:
    return build.BUILD / f"images-{family}"


def mistakes_of(family: str) -> Path:
    return build.BUILD / f"mutants-{family}"


def make_images(family: str) -> None:
    """Of all modules of a family, each with the fat binary that the op has of it."""
    for source in sorted((ROOT / "kernels" / family).glob("*.cu")):
        build.build(source, build.ARCHITECTURES[family], images_of(family) / f"{build.module_name(source)}.cubin")
    build.take_fatbins(OP, images_of(family))


def make_mistakes(family: str, jobs: int) -> None:
    own, out = HERE / family, mistakes_of(family)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.cubin"):
        old.unlink()
    names = ["right", *re.findall(r"^    Mutant\(\s*\"(\w+)\"", (own / "mutants.py").read_text(), re.MULTILINE)]

    def compile_one(name: str) -> None:
        command = [sys.executable, own / "mutants.py", "--out", out, "--only", name]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{family}, {name}: {done.stdout[-500:]}{done.stderr[-2000:]}")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(compile_one, names))
    shutil.copy(images_of(family) / f"{family}_prepare.cubin", out / "prepare.cubin")
    if (own / "check.cu").exists():
        includes = [f"-I{ROOT / 'kernels'}", f"-I{HERE}", *build.include_flags()]
        libraries = [f"-L{folder}" for home in build.homes() if (folder := home / "lib").is_dir()]
        flags = ["-std=c++17", "-O2", "-arch=sm_90a", *includes, *libraries]
        build.run("nvcc", *flags, own / "check.cu", "-ldl", "-o", out / "check")


def make(families: list[str], jobs: int) -> None:
    make_driver()
    for family in families:
        stamp, key = images_of(family) / "made-from", key_of(family)
        if not stamp.exists() or stamp.read_text() != key:
            started = time.monotonic()
            make_images(family)
            if (HERE / family / "mutants.py").exists():
                make_mistakes(family, jobs)
            stamp.write_text(key)
            print(f"{family}: compiled in {time.monotonic() - started:.0f} s", flush=True)
        if mistakes_of(family).exists():
            shutil.copy(DRIVER, mistakes_of(family))


# ---- Running ---------------------------------------------------------------------------------------------------------


def layer_runs(family: str) -> list[Command]:
    chip = {"STANDIN_CAPABILITY": CAPABILITIES[family], "STANDIN_IMAGES": str(images_of(family))}
    base = {"LD_PRELOAD": str(DRIVER), **chip, "STANDIN_TIMEOUT_S": "10", "OMP_NUM_THREADS": "2"}
    # Uncaptured, because what the driver says of its modules is looked for.
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "--tb=short", "-p", "no:cacheprovider"]
    probe = [sys.executable, HERE / "probe.py"]
    delays = {"STANDIN_MODE": "mixed", "STANDIN_DELAY_US": "100", "STANDIN_SEED": "7"}
    runs = [
        ("probe, late", probe, {}),
        ("probe, early", probe, {"STANDIN_MODE": "early"}),
        ("probe, mixed with delays", probe, delays),
        (
            "layertest",
            [sys.executable, "tests/layertest.py", "--device", "cuda", "--shape", "tiny", "--tokens", "1,8,64"],
            {},
        ),
        ("graphs", [sys.executable, "tests/cudagraph_test.py", *GRAPHS], {}),
        ("linears", [*pytest, "tests/test_linear.py", "-k", f"{OURS} and not 7168 and not 4096"], {}),
        ("matrix, bf16", [*pytest, "tests/test_layer_matrix.py", "-k", f"{OURS} and bf16 and ({CASES})"], {}),
        ("matrix, nvfp4", [*pytest, "tests/test_layer_matrix.py", "-k", f"{OURS} and nvfp4 and ({CASES})"], {}),
    ]
    return [Command(f"{family} {name}", words, {**base, **more}, "_gemm replaced") for name, words, more in runs]


def run_all(families: list[str], wanted: list[str], jobs: int) -> Report:
    python, runs = sys.executable, []
    if "layers" in wanted:
        runs.append(Command("Hopper's own kernels", [python, HERE / "probe.py"], {"LD_PRELOAD": str(DRIVER)}, "PASS"))
        runs += [run for family in families for run in layer_runs(family)]
    if "mutants" in wanted:
        for family in families:
            if (mistakes_of(family) / "right.cubin").exists():
                words = ["sh", HERE / family / "run.sh", mistakes_of(family)]
                check = {"CHECK": str(HERE / family / "check.py")}
                runs.insert(0, Command(f"{family} GEMMs alone, and mistakes", words, check, "were caught"))
    if "cutlass" in wanted:
        judge = [python, HERE / "cutlass_kernels.py", "run", "--driver", DRIVER]
        runs.insert(0, Command("CUTLASS", judge, must_say="PASS"))
    report = Report(build.BUILD / "logs", RUN_SECONDS)
    report.run(runs, jobs)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    present = [family for family in CAPABILITIES if (ROOT / "kernels" / family).is_dir()]
    parser.add_argument("what", nargs="?", choices=("build", "run"))
    parser.add_argument("--family", default=",".join(present), help="with commas")
    parser.add_argument("--only", default="cutlass,layers,mutants", help="with commas")
    parser.add_argument("--jobs", type=int, default=min(12, os.cpu_count() or 1), help="at a time")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{ROOT / 'vllm_plugin'}:{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"
    families, started = [it for it in args.family.split(",") if it], time.monotonic()
    if args.what != "run":
        make(families, args.jobs)
    if args.what == "build":
        return 0
    report = run_all(families, args.only.split(","), args.jobs)
    return report.close("gpu-standin", time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
