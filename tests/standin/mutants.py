#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mistakes planted in a family's kernels, each of which must be caught, and called by its name.

    mutants.py build --family sm100 --out FOLDER [--only NAME] [--jobs 4]     compiles each
    mutants.py run --family sm100 --images FOLDER [--jobs 4]                  on Hopper: runs probe.py with each

A mistake is a row of <family>_mutants.py: a text of a source of kernels/<family>/, what takes its place, and the errors
by any of which the stand-in may call it. `Refused`: the rewriter finds it in the PTX.
"""

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KERNELS = Path(os.environ.get("STANDIN_KERNELS", ROOT / "kernels"))  # of another checkout, maybe
SECONDS = 60  # of a run; its own limits are shorter
ERROR = re.compile(r"standin: error (\w+) in (.*)")


@dataclass(frozen=True)
class Mutant:
    """A planted mistake."""

    name: str
    file: str
    old: str
    new: str
    expected: list[str]
    mode: str = "nvfp4"
    environment: dict[str, str] = field(default_factory=dict)

    def plant(self, folder: Path) -> None:
        """Put it into a copy of the family's sources."""
        text = (folder / self.file).read_text()
        if (count := text.count(self.old)) != 1:
            raise SystemExit(f"{self.name}: {self.old!r} is {count} times in {self.file}; it must be there once.")
        (folder / self.file).write_text(text.replace(self.old, self.new))


def mutants_of(family: str) -> tuple[Mutant, ...]:
    sys.path.insert(0, str(HERE))
    sys.modules.setdefault("mutants", sys.modules[__name__])
    return importlib.import_module(f"{family}_mutants").MUTANTS


def sources_of(kernels: Path, family: str) -> list[Path]:
    return sorted((kernels / family).glob("*.cu"))


def build_one(family: str, mutant: Mutant, out: Path) -> str:
    """Every module of the family, with the mistake in it, to a folder of its own."""
    with tempfile.TemporaryDirectory() as copy:
        kernels = Path(copy) / "kernels"
        shutil.copytree(KERNELS, kernels)
        mutant.plant(kernels / family)
        command = [sys.executable, HERE / "build.py", *sources_of(kernels, family), "--out", out / mutant.name]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "is used before tcgen05.wait::ld" in done.stderr:
        (out / mutant.name).mkdir(parents=True, exist_ok=True)
        (out / mutant.name / "refused.txt").write_text(done.stderr)
    elif done.returncode != 0:
        raise SystemExit(f"{mutant.name} does not compile:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return mutant.name


def verdict(mutant: Mutant, images: Path, right: Path, capability: str, driver: Path) -> str:
    """What is said of it: an error's name, `Numbers`, or `nothing`."""
    folder = images / mutant.name
    if (folder / "refused.txt").exists():
        return "Refused"
    for fatbin in right.glob("*.fatbin"):
        shutil.copy(fatbin, folder)
    settings = {"LD_PRELOAD": str(driver), "STANDIN_CAPABILITY": capability, "STANDIN_IMAGES": str(folder),
                "STANDIN_TIMEOUT_S": "3", "OMP_NUM_THREADS": "2"}  # fmt: skip
    command = [sys.executable, HERE / "probe.py", mutant.mode]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT,
                              env={**os.environ, **settings, **mutant.environment})  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"a run of {SECONDS} s"
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    if error := ERROR.search(done.stderr):
        return error[1]
    if "WRONG" in done.stdout:
        return "Numbers"
    return "nothing" if done.returncode == 0 else f"exit status {done.returncode}: {done.stderr[-200:]}"


def run_all(args: argparse.Namespace, chosen: list[Mutant]) -> int:
    capability = {"sm100": "10.0", "sm120": "12.0"}[args.family]
    judge = lambda it: verdict(it, args.images.resolve(), args.right.resolve(), capability, args.driver.resolve())  # noqa: E731
    of_right = [Mutant("right", "", "", "", ["nothing"], mode) for mode in ("nvfp4", "bf16")]
    (args.images / "right").mkdir(parents=True, exist_ok=True)
    for image in args.right.iterdir():
        shutil.copy(image, args.images / "right")
    missed, lines = 0, []
    with ThreadPoolExecutor(args.jobs) as pool:
        for mutant, name in zip([*of_right, *chosen], pool.map(judge, [*of_right, *chosen])):
            caught = name in mutant.expected
            missed += not caught
            lines.append(f"{mutant.name:32} {name}{'' if caught else f'  MISSED; expected {mutant.expected}'}")
            print(lines[-1], flush=True)
    lines.append(f"{args.family}: {len(chosen)} mistakes, {missed} not as expected: {'FAIL' if missed else 'PASS'}")
    print(lines[-1])
    (args.images / "verdicts.txt").write_text("\n".join(lines) + "\n")
    return missed != 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "run"))
    parser.add_argument("--family", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=Path, help="the folder that `build` filled")
    parser.add_argument("--right", type=Path, help="the folder of the right images, with the library's fat binaries")
    parser.add_argument("--driver", type=Path, default=ROOT / "build/standin/standin_driver.so")
    parser.add_argument("--only", help="names, with commas")
    parser.add_argument("--jobs", type=int, default=4)
    args = parser.parse_args()
    names = args.only.split(",") if args.only else None
    chosen = [it for it in mutants_of(args.family) if names is None or it.name in names]
    if args.what == "run":
        return run_all(args, chosen)
    with ThreadPoolExecutor(args.jobs) as pool:
        for name in pool.map(lambda it: build_one(args.family, it, args.out), chosen):
            print(name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
