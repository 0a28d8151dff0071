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


class Report:
    """Runs commands, says how each ended, and counts what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.count = 0

    def run(self, name: str, command: list[object], environment: dict[str, str], must_say: str = "") -> None:
        started = time.monotonic()
        try:
            done = subprocess.run([str(it) for it in command], check=False, capture_output=True, text=True, cwd=ROOT,
                                  timeout=RUN_SECONDS, env={**os.environ, **environment})  # fmt: skip
            status, output = str(done.returncode), done.stdout + done.stderr
        except subprocess.TimeoutExpired as late:
            status, output = f"over {RUN_SECONDS} s", f"{late.stdout}"
        if status == "0" and must_say not in output:
            status = f"without {must_say!r}"
        wrong = status != "0"
        self.count += 1
        if wrong:
            self.failed.append(name)
        last = [line for line in output.strip().splitlines() if line.strip()][-14 if wrong else -2 :]
        text = "".join(f"    {line[:160]}\n" for line in last)
        print(
            f"{name}: {'FAIL' if wrong else 'ok'} ({status}, {time.monotonic() - started:.0f} s)\n{text}",
            end="",
            flush=True,
        )


def layer_runs(family: str) -> list[tuple]:
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
    return [(f"{family} {name}", command, {**base, **more}, "_gemm replaced") for name, command, more in runs]


def run_all(families: list[str], wanted: list[str], jobs: int) -> Report:
    python, runs = sys.executable, []
    if "layers" in wanted:
        runs.append(("Hopper's own kernels", [python, HERE / "probe.py"], {"LD_PRELOAD": str(DRIVER)}, "PASS"))
        runs += [run for family in families for run in layer_runs(family)]
    if "mutants" in wanted:
        for family in families:
            if (mistakes_of(family) / "right.cubin").exists():
                command = ["sh", HERE / family / "run.sh", mistakes_of(family)]
                runs.insert(
                    0,
                    (
                        f"{family} GEMMs alone, and mistakes",
                        command,
                        {"CHECK": str(HERE / family / "check.py")},
                        "were caught",
                    ),
                )
    if "cutlass" in wanted:
        runs.insert(0, ("CUTLASS", [python, HERE / "cutlass_kernels.py", "run", "--driver", DRIVER], {}, "PASS"))
    report = Report()
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda run: report.run(*run), runs))
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
    failed = f"{len(report.failed)} of {report.count} failed: {', '.join(report.failed)}; FAIL"
    print(f"gpu-standin, {time.monotonic() - started:.0f} s: {failed if report.failed else f'{report.count} ok; PASS'}")
    return bool(report.failed)


if __name__ == "__main__":
    sys.exit(main())
