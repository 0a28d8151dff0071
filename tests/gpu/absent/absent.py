#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run a command as if a GPU were there, on a machine that has none: to compile what would be compiled on it.

    python3 tests/gpu/absent/absent.py [--site DIR] -- COMMAND ...

TileLang, Triton and DeepGEMM compile an engine's kernels when they are first met. At DeepSeek-V4's full size that takes
longer than a lent machine is ours. So the whole of vLLM runs here, with real torch and real compilers, above a CUDA
runtime and a driver that answer as an H200 would and compute nothing (runtime.cpp, driver.cpp). What is compiled lies
in the compilers' caches, under names that are the same on the GPU machine if versions and paths are:

    set TILELANG_CACHE_DIR, TRITON_CACHE_DIR, DG_JIT_CACHE_DIR and the paths of packages as on the GPU machine
    python3 tests/gpu/absent/absent.py --site DIR -- python3 -m full.one MODEL --backend marlin --layout one ...

Python must be one with the torch of the GPU machine, its nvidia packages and their compiler; --site is a folder of more
packages with shared objects. Nothing that such a run says of times, tokens or memory is true. Layers of our own cannot
be loaded in it, because loading looks at the weights; Marlin's run meets all kernels of the engine.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
RUNTIME = re.compile(r"^(cuda[A-Z]|__cuda|cublas)")
DRIVER = re.compile(r"\bcu[A-Z][A-Za-z0-9]+(?:_v[0-9])?\b")
STUB = '__attribute__((visibility("default"))) long {}(void) {{ return 0; }}\n'


def folder_of(package: str) -> Path:
    """Where a package of this Python lies."""
    found = importlib.util.find_spec(package)
    if found is None:
        sys.exit(
            f"{package} is not installed in {sys.executable}; it must be. Take the Python of the GPU machine's torch."
        )
    return Path(next(iter(found.submodule_search_locations)))


def symbols(file: Path, kind: str) -> set[str]:
    """Undefined (U) or defined (T) symbols of a shared object, or an object file, without their versions."""
    dynamic = ["-D"] if ".so" in file.name else []
    lines = subprocess.run(["nm", *dynamic, file], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if line.split()[-2:-1] == [kind]}


def shared_objects(site: Path | None) -> list[Path]:
    """All that might call CUDA."""
    found = [*(folder_of("torch") / "lib").glob("libtorch*.so"), *(folder_of("torch") / "lib").glob("libc10*.so")]
    return found + (list(site.rglob("*.so")) if site else [])


def compile_one(name: str, wanted: set[str], include: Path, work: Path) -> list[str]:
    """Our own functions and a stub for every other that is wanted; the object files."""
    own, stubs = work / f"{name}.o", work / f"{name}_stubs.c"
    flags = ["-O1", "-fPIC"]
    subprocess.run(["g++", "-std=c++17", *flags, f"-I{include}", "-c", HERE / f"{name}.cpp", "-o", own], check=True)
    stubs.write_text("".join(STUB.format(function) for function in sorted(wanted - symbols(own, "T"))))
    subprocess.run(["gcc", *flags, "-c", stubs, "-o", stubs.with_suffix(".o")], check=True)
    return [str(own), str(stubs.with_suffix(".o"))]


def build(work: Path, site: Path | None) -> dict[str, str]:
    """Both libraries; the environment in which they are found before any other."""
    work.mkdir(parents=True, exist_ok=True)
    cuda = folder_of("nvidia") / "cu13"
    called = {name for file in shared_objects(site) for name in symbols(file, "U") if RUNTIME.match(name)}
    runtime, driver = work / "libabsent.so", work / "libcuda.so.1"
    objects = compile_one("runtime", called, cuda / "include", work)
    subprocess.run(["g++", "-shared", "-o", runtime, *objects, "-ldl"], check=True)
    declared = set(DRIVER.findall((cuda / "include/cuda.h").read_text()))
    objects = compile_one("driver", declared | {f"{name}_v2" for name in declared}, cuda / "include", work)
    subprocess.run(["g++", "-shared", "-Wl,-soname,libcuda.so.1", "-o", driver, *objects, "-ldl"], check=True)
    link = work / "libcuda.so"  # for those who link at run time
    link.unlink(missing_ok=True)
    link.symlink_to(driver.name)
    libraries = [str(work), str(cuda / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    path = [str(HERE / "site"), os.environ.get("PYTHONPATH", "")]
    return {
        "LD_PRELOAD": str(runtime),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "CUDA_HOME": str(cuda),
        "PATH": os.pathsep.join([str(cuda / "bin"), os.environ["PATH"]]),
    }


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, help="a folder of packages, beside those of this Python")
    parser.add_argument("--work", type=Path, default=ROOT / "build/absent")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    environment = build(arguments.work, arguments.site)
    os.execvpe(arguments.command[0], arguments.command, os.environ | environment)


if __name__ == "__main__":
    main()
