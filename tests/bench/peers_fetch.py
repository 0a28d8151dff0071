#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bring Humming, and what vLLM runs around it, to a machine without network: `make peers-fetch`.

    peers_fetch.py [FOLDER]                  FOLDER/humming20 and FOLDER/humming20.tar.xz; FOLDER is .peers
    peers_fetch.py --cubins FILE [FOLDER]    the same with the kernels that peers_bench.py compiled (cubins.tar.xz)

humming20/humming        the package, as pip has it
humming20/vllm33         routing of vLLM 0.33 in Python (three files) and its kernels, cut down to Hopper's
humming20/cubins         compiled kernels; without them a first run takes minutes longer

vLLM 0.33's operators get a namespace of their own, so that the vLLM that has Marlin may be imported beside them.
"""

import argparse
import lzma
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HUMMING, VLLM = "humming-kernels==0.1.20", "vllm==0.33.0"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_31_x86_64")
OPERATORS = "vllm/_moe_C_stable_libtorch.abi3.so"
NAMESPACE, RENAMED = b"_moe_C", b"_moe33"
ROUTING = "vllm/model_executor/layers/fused_moe/"
# Each file, and what ties it to its own vLLM's operators.
FILES = {
    "moe_align_block_size.py": ("from vllm import _custom_ops as ops", "ops = torch.ops._moe33"),
    "moe_permute_unpermute.py": ("torch.ops._moe_C", "torch.ops._moe33"),
    "moe_fused_mul_sum.py": None,
}

# A fat binary: a header with a length, then an entry for each architecture: its header, then its machine code or PTX.
FATBIN = struct.Struct("<IHHQ")  # magic, version, header bytes, bytes that follow
ENTRY = struct.Struct("<HHIQIIHHI")  # kind, version, header bytes, payload bytes, 2 fields, minor, major, architecture
MAGIC, MACHINE_CODE, HOPPER = 0xBA55ED50, 2, 90


def wheel(requirement: str, folder: Path) -> Path:
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", *platforms, "-d", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", *options, requirement],
        check=True,
    )
    return next(folder.glob(requirement.split("==")[0].replace("-", "_") + "-*.whl"))


def only_hopper(library: bytes) -> bytes:
    """The library with zeros for device code that is not machine code for Hopper; no offset changes.

    Whoever launches a kernel that went gets "no kernel image". What is left are the routing kernels and a few others:
    the GEMMs of this library are PTX, or for other GPUs.
    """
    data, kept = bytearray(library), 0
    magic, at = struct.pack("<I", MAGIC), 0
    while (at := data.find(magic, at)) >= 0:
        _, _, header, length = FATBIN.unpack_from(data, at)
        assert header == FATBIN.size, f"a fat binary's header is {header} bytes; it must be {FATBIN.size}"
        at, end = at + header, at + header + length
        while at < end:
            kind, _, header, payload, _, _, _, _, architecture = ENTRY.unpack_from(data, at)
            start, at = at + header, at + header + payload
            if (kind, architecture) == (MACHINE_CODE, HOPPER):
                kept += payload
            else:
                data[start:at] = bytes(payload)
    assert kept, "no machine code for Hopper was found"
    return bytes(data)


def renamed(library: bytes) -> bytes:
    """The library with its operators in another namespace; the name is a string of its own."""
    name, other = b"\0" + NAMESPACE + b"\0", b"\0" + RENAMED + b"\0"
    assert library.count(name) == 1, f"{NAMESPACE.decode()} is there {library.count(name)} times; it must be once"
    return library.replace(name, other)


def fetch(target: Path, wheels: Path) -> None:
    with zipfile.ZipFile(wheel(HUMMING, wheels)) as package:
        package.extractall(target)
    for program in target.glob("humming/_native/*/*"):
        program.chmod(0o755)
    routing = target / "vllm33"
    routing.mkdir()
    (routing / "__init__.py").touch()
    with zipfile.ZipFile(wheel(VLLM, wheels)) as package:
        for name, tie in FILES.items():
            text = package.read(ROUTING + name).decode()
            assert tie is None or tie[0] in text, f"{name} of {VLLM} has no {tie[0]!r}"
            (routing / name).write_text(text.replace(*tie) if tie else text)
        (routing / "operators.so").write_bytes(renamed(only_hopper(package.read(OPERATORS))))


def pack(folder: Path) -> Path:
    path = folder.with_name(folder.name + ".tar.xz")
    with lzma.open(path, "wb", preset=9) as file, tarfile.open(fileobj=file, mode="w") as archive:
        archive.add(folder, folder.name)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(".peers"))
    parser.add_argument("--cubins", type=Path, help="cubins.tar.xz, as peers_bench.py wrote it")
    args = parser.parse_args()
    target = args.folder / "humming20"
    if not (target / "vllm33/operators.so").exists():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as wheels:
            fetch(target, Path(wheels))
    (target / "cubins").mkdir(exist_ok=True)
    if args.cubins:
        with tarfile.open(args.cubins) as archive:
            archive.extractall(target / "cubins", filter="data")
    path = pack(target)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {len(list(target.glob('cubins/*')))} compiled kernels")


if __name__ == "__main__":
    main()
