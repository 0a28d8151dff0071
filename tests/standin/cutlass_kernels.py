#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""CUTLASS's own kernels for Blackwell, by which the stand-in is judged, and mistakes planted in them.

    cutlass_kernels.py build --headers FOLDER [--arch 100]     compiles; minutes, and 4 to 6 GB
    cutlass_kernels.py run                                     on Hopper, from what `build` left

The headers are those of `nvidia-cutlass`: tests/abi/run.py installs them to build/abi/cute. What is built travels to a
machine that has none. Each kernel must pass as early, as late and at either time; each mistake be called by its name.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build
import forms
import ptx

HERE = Path(__file__).resolve().parent
BUILT = build.BUILD / "cutlass"
# Which groups of tensormap.replace are of 4-bit maps, in the order of the PTX of version 4.2.0: found by reading.
U4_MAPS = {"100": (0, 2), "120": (1, 3, 5, 7)}
# It keeps fewer rules than ours do: no tcgen05 fences, stages that share scale columns, loads used before they are
# waited for.
SETTINGS = {"STANDIN_STRICT": "0", "STANDIN_POISON_COMMITS": "1", "STANDIN_TIMEOUT_S": "3"}
ERROR = re.compile(r"standin: error (\w+) in ")


def instructions(text: str, name: str) -> list[re.Match[str]]:
    return list(re.finditer(rf"{re.escape(name)}[^;]*;", text))


def put(name: str, index: int, change: Callable[[str], str]) -> Callable[[str], str]:
    """Changes one instruction of that name."""

    def edit(text: str) -> str:
        at = instructions(text, name)[index]
        return text[: at.start()] + change(at[0]) + text[at.end() :]

    return edit


def swap(first: int, second: int) -> Callable[[str], str]:
    """Changes places of two operands."""

    def change(instruction: str) -> str:
        name, rest = re.fullmatch(r"(\S+?)\s*([\[{%\s].*);", instruction, re.DOTALL).groups()
        found = ptx.operands(rest)
        found[first], found[second] = found[second], found[first]
        return f"{name} {', '.join(found)};"

    return change


def swap_registers(instruction: str) -> str:
    """Changes places of the first two of 32 bits."""
    return re.sub(r"\{(%r\d+), *(%r\d+)", r"{\2, \1", instruction, count=1)


def drop(_: str) -> str:
    return ""


def scale_copy_after_mma(text: str) -> str:
    copy, mma = instructions(text, "tcgen05.cp")[4], instructions(text, "tcgen05.mma")[0]
    return text[: copy.start()] + text[copy.end() : mma.end()] + "\n" + copy[0] + "\n" + text[mma.end() :]


MISTAKES: dict[str, dict[str, tuple[Callable[[str], str], set[str]]]] = {
    "100": {
        "scale_operands_swapped": (put("tcgen05.mma", 1, swap(4, 5)), {"Numbers"}),
        "matrices_swapped": (put("tcgen05.mma", 0, swap(1, 2)), {"Numbers"}),
        "scale_copy_dropped": (put("tcgen05.cp", 7, drop), {"NotWritten"}),
        "scale_copy_after_mma": (scale_copy_after_mma, {"NotWritten", "Numbers"}),
        "sums_commit_dropped": (put("tcgen05.commit", 1, drop), {"Hang"}),
        "stage_commit_dropped": (put("tcgen05.commit", 0, drop), {"Hang", "QueueFull"}),
        "dealloc_dropped": (put("tcgen05.dealloc", 0, drop), {"NotFreed"}),
        "load_not_waited_for": (put("tcgen05.wait::ld", 0, drop), {"LoadNotWaited"}),
    },
    "120": {
        "scale_operands_swapped": (put("mma.sync.aligned.kind::mxf4nvf4", 3, swap(4, 6)), {"Numbers"}),
        "stages_never_given_back": (
            lambda text: text.replace("mbarrier.arrive.shared::cluster.b64  _, [remAddr32];", ""),
            {"Hang"},
        ),
        "rows_swapped": (put("ldmatrix.sync.aligned.x4.m8n8.shared.b16", 2, swap_registers), {"Numbers"}),
        "operand_registers_swapped": (put("mma.sync.aligned.kind::mxf4nvf4", 5, swap_registers), {"Numbers"}),
    },
}


def compile_all(headers: Path, arch: str) -> None:
    source = headers / "cutlass_library/source"
    flags = ["--expt-relaxed-constexpr", "-DNDEBUG", "-w", f"-DARCH={arch}", "-std=c++17", *build.include_flags()]
    flags += [f"-I{source / folder}" for folder in ("include", "tools/util/include")]
    libraries = [f"-L{folder}" for home in build.homes() if (folder := home / "lib").is_dir()]
    BUILT.mkdir(parents=True, exist_ok=True)
    text = BUILT / f"kernel{arch}.ptx"
    if not text.exists():
        target = f"arch=compute_{arch}a,code=compute_{arch}a"
        build.run("nvcc", *flags, "-O3", "-gencode", target, "-ptx", HERE / "judge/kernel.cu", "-o", text)
    program = BUILT / f"cutlass_test{arch}"
    if not program.exists():
        direct = "-DCUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL"
        build.run(
            "nvcc", *flags, "-O1", "-arch=sm_90a", direct, *libraries, HERE / "judge/test.cu", "-ldl", "-o", program
        )
    for old in BUILT.glob(f"{arch}-*"):
        old.unlink()
    for name, edit in [("right", str), *((name, edit) for name, (edit, _) in MISTAKES[arch].items())]:
        options = forms.Options(u4_loads=True, u4_maps=U4_MAPS[arch], strict=False)
        build.assemble(edit(text.read_text()), BUILT / f"{arch}-{name}.cubin", options)
        print(f"{arch}-{name}", flush=True)


def verdict(arch: str, name: str, driver: Path, **settings: str) -> str:
    program = BUILT / f"cutlass_test{arch}"
    environment = {**os.environ, **SETTINGS, **settings, "LD_PRELOAD": str(driver), "STANDIN_CALLERS": program.name}
    command = [program, BUILT / f"{arch}-{name}.cubin", *([] if name == "right" else ["one"])]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=environment)
    if error := ERROR.search(done.stderr):
        return error[1]
    if "FAIL" in done.stdout:
        return "Numbers"
    return "PASS" if done.returncode == 0 and "PASS" in done.stdout else f"exit status {done.returncode}"


def run_all(driver: Path) -> int:
    missed = 0
    for arch, mistakes in MISTAKES.items():
        if not (BUILT / f"{arch}-right.cubin").exists():
            print(f"sm_{arch}: not built")
            return 1
        modes = [{"STANDIN_MODE": mode} for mode in (("late", "early", "mixed") if arch == "100" else ("late",))]
        modes.append({"STANDIN_MODE": "mixed", "STANDIN_DELAY_US": "500"})
        checks = [("right", {"PASS"}, mode) for mode in modes]
        checks += [(name, expected, {"STANDIN_MODE": "late"}) for name, (_, expected) in mistakes.items()]
        with ThreadPoolExecutor(8) as pool:
            verdicts = pool.map(lambda it, arch=arch: verdict(arch, it[0], driver, **it[2]), checks)
            for (name, expected, settings), found in zip(checks, verdicts):
                missed += found not in expected
                kind = " ".join(settings.values()) if name == "right" else ""
                wrong = "" if found in expected else f"  expected {expected}"
                print(f"CUTLASS sm_{arch} {name} {kind}: {found}{wrong}", flush=True)
    print(f"CUTLASS: {missed} not as expected: {'FAIL' if missed else 'PASS'}")
    return missed != 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "run"))
    parser.add_argument("--headers", type=Path, default=build.ROOT / "build/abi/cute")
    parser.add_argument("--arch", choices=("100", "120"))
    parser.add_argument("--driver", type=Path, default=build.BUILD / "standin_driver.so")
    args = parser.parse_args()
    if args.what == "run":
        return run_all(args.driver.resolve())
    for arch in [args.arch] if args.arch else MISTAKES:
        compile_all(args.headers, arch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
