#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kernels for Blackwell as cubins for Hopper: `build.py [--arch 100f] kernels/sm100/gemm.cu ... --out FOLDER`.

Compiles each source to PTX for the architecture, puts the stand-in in it, and assembles the result for sm_90a. Needs
an nvcc 13: of NVFP4_MOE_CUDA_HOME, of the Python that runs this, or on PATH. The folder gets `sm100_gemm.cubin` and
`.lines`: the library's own name for the module, so that driver/ finds it beside the fat binary.
"""

import argparse
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import forms
import ptx
import rewrite

BUILD = Path(os.environ.get("STANDIN_BUILD", ROOT / "build/standin"))
FLAGS = ["-std=c++17", "-O3"]
# Relocatable, and few enough registers for kernels of up to 640 threads, which call it.
ASSEMBLE = ["-arch=sm_90a", "-c", "-maxrregcount=96"]


def homes() -> list[Path]:
    """Folders with the toolkit's bin/, the first to ask first."""
    named, packages = os.environ.get("NVFP4_MOE_CUDA_HOME"), Path(sysconfig.get_paths()["purelib"]) / "nvidia/cu13"
    on_path = shutil.which("nvcc")
    return [*([Path(named)] if named else []), packages, *([Path(on_path).parents[1]] if on_path else [])]


def tool(name: str) -> Path:
    """nvcc, ptxas, ... of the first that has it."""
    for home in homes():
        if (home / "bin" / name).is_file():
            return home / "bin" / name
    if found := shutil.which(name):
        return Path(found)
    raise SystemExit(f"{name} is nowhere; the kernels need that of CUDA 13. Set NVFP4_MOE_CUDA_HOME.")


def run(program: str, *words: object) -> str:
    """A program of the toolkit; its output. Ends this one with its text where it fails."""
    command = [str(tool(program)), *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{(done.stdout + done.stderr)[:3000]}")
    return done.stdout + done.stderr


def include_flags() -> list[str]:
    """CCCL, where the toolkit is of Python's packages."""
    folders = [home / "include/cccl" for home in homes()]
    return [f"-I{folder}" for folder in folders if folder.is_dir()][:1]


def device_library(form: str) -> Path:
    """device/standin.cu as "ptx" or "o", compiled again where it changed."""
    sources = sorted((HERE / "device").iterdir())
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    out = BUILD / f"standin-{key}.{form}"
    if not out.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        made = out.with_suffix(f".{os.getpid()}.{form}")
        if form == "ptx":
            run("nvcc", *FLAGS, "-rdc=true", "-arch=compute_90a", "-ptx", HERE / "device/standin.cu", "-o", made)
        else:
            run("ptxas", *ASSEMBLE, device_library("ptx"), "-o", made)
        made.replace(out)
    return out


def to_ptx(source: Path, arch: str, *flags: str) -> str:
    """PTX of a kernel's source for an architecture, as 100f."""
    BUILD.mkdir(parents=True, exist_ok=True)
    out = BUILD / f"{source.stem}-{os.getpid()}.ptx"
    architecture = ["-gencode", f"arch=compute_{arch},code=compute_{arch}"]
    run("nvcc", *FLAGS, "-lineinfo", *include_flags(), *flags, *architecture, "-ptx", source, "-o", out)
    text = out.read_text()
    out.unlink()
    return text


def assemble(kernel: str, out: Path, options: forms.Options | None = None) -> None:
    """PTX for Blackwell to OUT, a cubin for Hopper with the stand-in in it, and to OUT.lines."""
    text, counts = rewrite.rewrite(kernel, device_library("ptx").read_text(), options)
    out.parent.mkdir(parents=True, exist_ok=True)
    middle, relocatable = out.with_suffix(".standin.ptx"), out.with_suffix(".o")
    middle.write_text(text)
    run("ptxas", "-arch=sm_90a", *(["-c", "-o", relocatable] if counts else ["-o", out]), middle)
    if counts:
        run("nvlink", "-arch=sm_90a", relocatable, device_library("o"), "-o", out)
        relocatable.unlink()
    middle.unlink()
    places = ptx.source_lines(kernel)
    out.with_suffix(".lines").write_text("".join(f"{number} {place}\n" for number, place in places.items()))


def build(source: Path, arch: str, out: Path, edit: Callable[[str], str] = str, flags: tuple[str, ...] = ()) -> None:
    """From a kernel's source to a cubin; `edit` may change the PTX first."""
    assemble(edit(to_ptx(source, arch, *flags)), out)


def module_name(source: Path) -> str:
    """`sm100_gemm` of kernels/sm100/gemm.cu, as rust/build_kernels.rs names its fat binary."""
    return f"{source.parent.name}_{source.stem}"


def embedded(library: bytes) -> list[bytes]:
    """Fat binaries in a shared object: a magic number, version, the size of this header and of what follows."""
    found = []
    for at in (match.start() for match in re.finditer(re.escape(b"\x50\xed\x55\xba\x01\x00\x10\x00"), library)):
        (size,) = struct.unpack_from("<Q", library, at + 8)
        found.append(library[at : at + 16 + size])
    return found


def kernels_of(binary: Path) -> set[str]:
    """Names of the kernels in a fat binary or a cubin."""
    return set(re.findall(r"Function (\w+):", run("cuobjdump", "-res-usage", binary)))


def take_fatbins(library: Path, out: Path) -> None:
    """Beside each cubin the library's fat binary of the same kernels, by whose bytes driver/ knows it."""
    wanted = {cubin: kernels_of(cubin) for cubin in out.glob("*.cubin")}
    for number, image in enumerate(embedded(library.read_bytes())):
        path = out / f"embedded{number}.fatbin"
        path.write_bytes(image)
        kernels = kernels_of(path)
        target = [cubin.with_suffix(".fatbin") for cubin, names in wanted.items() if kernels and kernels <= names]
        path.replace(target[0]) if target else path.unlink()
    if missing := [cubin.name for cubin in wanted if not cubin.with_suffix(".fatbin").exists()]:
        raise SystemExit(f"{library} has no fat binary of the kernels of {', '.join(missing)}; build the op again.")


ARCHITECTURES = {"sm100": "100f", "sm120": "120f"}  # by folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="*")
    parser.add_argument("--arch", help="as 100f; without it, the folder's name says: sm100, sm120")
    parser.add_argument("--out", type=Path, default=BUILD / "images")
    parser.add_argument("--flag", action="append", default=[], help="for nvcc, as --flag=-DNAME=1")
    parser.add_argument("--library", type=Path, help="a shared object: put its fat binaries beside the cubins")
    args = parser.parse_args()
    for source in args.sources:
        arch = args.arch or ARCHITECTURES[source.resolve().parent.name]
        out = args.out / f"{module_name(source.resolve())}.cubin"
        try:
            build(source, arch, out, flags=tuple(args.flag))
        except ptx.Refused as refusal:
            print(f"{source}: {refusal}", file=sys.stderr)
            return 1
        print(out, flush=True)
    if args.library:
        take_fatbins(args.library, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
