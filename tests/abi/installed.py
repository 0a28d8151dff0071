# SPDX-License-Identifier: Apache-2.0
"""The library as `make install` leaves it: found by pkg-config and by CMake, linked shared and static, stripped."""

import re
import shutil
from pathlib import Path

from commands import BUILD, ROOT, TARGET_FOLDER, WARNINGS, Failure, Skip, command

PREFIX = BUILD / "prefix"
EXAMPLES = {"layer.c": ["gcc", "-std=c11"], "layer.cpp": ["g++", "-std=c++17"]}
# The archive holds Rust's standard library and the kernels; with debug information both are several times as long.
MOST_BYTES = {"libnvfp4_moe.so": 8 << 20, "libnvfp4_moe.a": 60 << 20}


def needs(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            raise Skip(f"{program} is not installed")


def install() -> str:
    """As `make install`, of the library that is built already."""
    needs("cmake")
    shutil.rmtree(PREFIX, ignore_errors=True)
    build = BUILD / "install"
    command("cmake", "-S", ".", "-B", build, "-DNVFP4_MOE_TORCH_OP=OFF", f"-DNVFP4_MOE_CARGO_TARGET={TARGET_FOLDER}")
    command("cmake", "--install", build, "--component", "library", "--prefix", PREFIX)
    for name, most in MOST_BYTES.items():
        size = (PREFIX / "lib" / name).stat().st_size
        if size > most:
            raise Failure(f"{name} is {size} bytes; without debug information it must be at most {most}")
    return f"{len(list(PREFIX.rglob('*')))} files and folders"


def soname() -> str:
    """The name that programs ask for is the ABI's, and the header says it."""
    text = command("readelf", "--dynamic", "--wide", PREFIX / "lib/libnvfp4_moe.so")
    name = re.search(r"SONAME.*\[(.*)\]", text)
    wanted = re.search(r"of SONAME (\S+)\.\n", (ROOT / "include/nvfp4_moe.h").read_text())[1]
    if not name or name[1] != wanted or not (PREFIX / "lib" / wanted).exists():
        raise Failure(f"the SONAME is {name and name[1]}; the header and the prefix must have it as {wanted}")
    return wanted


def debug_information() -> str:
    """A debugger finds line tables by the link that the shared library has."""
    library = (PREFIX / "lib/libnvfp4_moe.so").resolve()
    link = command("readelf", "--string-dump=.gnu_debuglink", library)
    debug = library.with_name(library.name + ".debug")
    if debug.name not in link or ".debug_line" not in command("readelf", "--sections", "--wide", debug):
        raise Failure(f"{library.name} does not lead to {debug.name} with line tables:\n{link}")
    return f"{debug.stat().st_size >> 20} MB apart"


def run_example(program: Path, source: str, **environment: str) -> None:
    output = command(program, **environment)
    if not output.endswith(f"{source}: correct\n"):
        raise Failure(f"{program.name}:\n{output}")


def by_pkg_config() -> str:
    needs("pkg-config")
    package = {"PKG_CONFIG_PATH": str(PREFIX / "lib/pkgconfig")}
    flags = command("pkg-config", "--cflags", "--libs", "nvfp4_moe", **package).split()
    archive = command("pkg-config", "--cflags", "--libs-only-l", "--static", "nvfp4_moe", **package).split()
    archive = [str(PREFIX / "lib/libnvfp4_moe.a") if flag == "-lnvfp4_moe" else flag for flag in archive]
    for source, compiler in EXAMPLES.items():
        for kind, link in {"shared": flags, "static": archive}.items():
            program = BUILD / f"installed-{source}-{kind}"
            command(*compiler, *WARNINGS, ROOT / "examples" / source, *link, "-o", program)
            run_example(program, source, LD_LIBRARY_PATH=str(PREFIX / "lib") if kind == "shared" else "")
    return "layer.c, layer.cpp: shared, static"


def by_cmake() -> str:
    needs("cmake")
    build = BUILD / "user"
    shutil.rmtree(build, ignore_errors=True)
    command("cmake", "-S", "tests/abi/installed", "-B", build, f"-DCMAKE_PREFIX_PATH={PREFIX}")
    command("cmake", "--build", build)
    for source in EXAMPLES:
        for kind in ("shared", "static"):
            run_example(build / f"{source.replace('.', '_')}_{kind}", source)
    return "layer.c, layer.cpp: shared, static"


STEPS = [
    ("make install", install),
    ("SONAME", soname),
    ("debug information", debug_information),
    ("installed, by pkg-config", by_pkg_config),
    ("installed, by CMake", by_cmake),
]
