#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The C ABI's proofs: `run.py [--update]`. Ends with `N passed, N failed, N skipped`.

Header alone, golden ABI file, exported symbols, version, C and C++ programs plain and under valgrind and ASan, and
CuTe as the oracle of the scale layout. `--update` writes tests/golden/abi.json and symbols.txt from what is here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import installed
from commands import BUILD, ROOT, TARGET_FOLDER, WARNINGS, Failure, Skip, command

HERE = Path(__file__).resolve().parent
GOLDEN = ROOT / "tests/golden"
RUST_LIBS = ["-lpthread", "-ldl", "-lm"]
TARGET = f"{os.uname().machine}-unknown-linux-gnu"
# What CuTe's headers need; the CUDA pins are those of the nvcc that builds the kernels.
CUTE_PACKAGES = [
    "nvidia-cutlass==4.2.0.0",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
]


def only_line(output: str) -> str:
    """A program's closing line. The library prints nothing, so there is no other."""
    lines = output.strip().splitlines()
    if len(lines) != 1:
        raise Failure(f"{len(lines)} lines were printed; a program's closing line is the only one:\n{output[-3000:]}")
    return lines[0]


def python_packages(folder: str, requirements: list[str]) -> Path:
    """Packages from PyPI in a folder of the build tree, installed once."""
    path, stamp = BUILD / folder, BUILD / folder / "installed.txt"
    if not stamp.exists() or stamp.read_text().split() != requirements:
        command(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", path, "--upgrade",
                *requirements)  # fmt: skip
        stamp.write_text("\n".join(requirements))
    return path


def matches_golden(name: str, text: str) -> None:
    """Compare with the golden file, line by line in the evidence; with --update, write it."""
    path = GOLDEN / name
    if "--update" in sys.argv:
        path.write_text(text)
    if text == path.read_text():
        return
    wanted, got = path.read_text().splitlines(), text.splitlines()
    differences = [f"- {line}" for line in wanted if line not in got]
    differences += [f"+ {line}" for line in got if line not in wanted]
    raise Failure(f"{name} differs; if the change is meant, run with --update:\n" + "\n".join(differences[:40]))


# ---- The header and the golden files ------------------------------------------------------------------------------


def header_alone() -> str:
    for header, language, standard in [
        ("nvfp4_moe.h", "c", "c11"),
        ("nvfp4_moe.h", "c++", "c++17"),
        ("nvfp4_moe_checkpoint.h", "c", "c11"),
        ("nvfp4_moe.hpp", "c++", "c++17"),
        ("nvfp4_moe.hpp", "c++", "c++20"),
    ]:
        compiler = "gcc" if language == "c" else "g++"
        twice = f'#include "{header}"\n#include "{header}"\nint main(void) {{ return 0; }}\n'
        command(compiler, f"-std={standard}", *WARNINGS, "-Iinclude", "-x", language, "-fsyntax-only", "-", stdin=twice)
    return "C11, C++17, C++20"


def golden_abi() -> str:
    try:
        import clang.cindex  # noqa: F401
    except ImportError:
        sys.path.insert(0, str(python_packages("libclang", ["libclang==18.1.1"])))
    import abi_json

    try:
        abi = abi_json.read_header()
    except ValueError as error:
        raise Failure(str(error)) from error
    matches_golden("abi.json", abi_json.as_text(abi))
    return f"{len(abi['structs'])} structs, {len(abi['constants'])} constants, {len(abi['functions'])} functions"


def symbols(library: Path, table: str) -> list[str]:
    """Global symbols that a library defines. (Not with nm, which loads LTO plugins that may be older than rustc.)"""
    lines = [line.split() for line in command("readelf", table, "--wide", library).splitlines()]
    # Num: Value Size Type Bind Vis Ndx Name
    is_defined = [line for line in lines if len(line) == 8 and line[4] in ("GLOBAL", "WEAK") and line[6] != "UND"]
    return sorted({line[7].split("@")[0] for line in is_defined})


def exported_symbols() -> str:
    """Nothing but nvfp4_moe_* leaves the .so, the archive has the same, and both are what the header declares."""
    exports = symbols(LIBRARY / "libnvfp4_moe.so", "--dyn-syms")
    matches_golden("symbols.txt", "".join(f"{name}\n" for name in exports))
    leaked = [name for name in exports if not name.startswith("nvfp4_moe_")]
    if leaked:
        raise Failure(f"{len(leaked)} symbols leak from the .so: {leaked[:10]}")
    archive = [name for name in symbols(LIBRARY / "libnvfp4_moe.a", "--syms") if name.startswith("nvfp4_moe_")]
    declared = sorted(json.loads((GOLDEN / "abi.json").read_text())["functions"])
    for what, names in [("the archive", archive), ("the header", declared)]:
        if names != exports:
            raise Failure(f"{what} and the .so differ in {sorted(set(names) ^ set(exports))}")
    return f"{len(exports)} symbols"


def every_statement_has_its_test() -> str:
    import manual

    try:
        return manual.check()
    except ValueError as error:
        raise Failure(str(error)) from error


def the_manuals_example() -> str:
    """The example at the head of the header compiles as it stands there, links and runs; only `...` is filled in."""
    import manual

    source, program = BUILD / "example.c", BUILD / "example"
    source.write_text(manual.example())
    command("gcc", "-std=c11", *WARNINGS, "-Iinclude", source, LIBRARY / "libnvfp4_moe.a", *RUST_LIBS, "-o", program)
    return only_line(command(program))


def quiet_sources() -> str:
    """The library prints nothing and asks no environment. (statements.cpp sees what its dependencies ask.)"""
    asks = re.compile(r"\benv::|\be?print(ln)?!|\bdbg!|process::(exit|abort)")
    outside = ("rust/bin/", "rust/build")
    sources = sorted((ROOT / "rust").rglob("*.rs"))
    library = [path for path in sources if not path.relative_to(ROOT).as_posix().startswith(outside)]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in library
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if asks.search(line.split("//")[0])
    ]
    if found:
        raise Failure("\n".join(found))
    return f"{len(library)} files"


def one_version() -> str:
    """Macros and Cargo.toml agree; layer.c holds the function to the macros."""
    macros = dict(re.findall(r"#define NVFP4_MOE_VERSION_(\w+) (\d+)", (ROOT / "include/nvfp4_moe.h").read_text()))
    header = ".".join(macros[part] for part in ("MAJOR", "MINOR", "PATCH"))
    cargo = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    if header != cargo:
        raise Failure(f"the version is {header} in the header; it is {cargo} in Cargo.toml. Make them agree.")
    return header


# ---- Programs -------------------------------------------------------------------------------------------------------

LIBRARY = TARGET_FOLDER / "release"
PROGRAMS = {  # source -> its argument
    "layer.c": None,
    "raii.cpp": BUILD / "checkpoint",
    "statements.cpp": BUILD / "checkpoint",
    "contract.cpp": BUILD / "checkpoint",
    "golden.cpp": GOLDEN,
}


def build_library() -> str:
    command("cargo", "build", "--release", "--lib", "--quiet")
    return "release"


def compile_program(source: str, kind: str, link: list[object], *flags: str) -> Path:
    out = BUILD / f"{source}.{kind}"
    language = ["gcc", "-std=c11", "-D_POSIX_C_SOURCE=200809L"] if source.endswith(".c") else ["g++", "-std=c++17"]
    command(*language, *WARNINGS, "-g", *flags, "-Iinclude", HERE / source, *link, *RUST_LIBS, "-o", out)
    return out


def arguments(source: str) -> list[Path]:
    return [PROGRAMS[source]] if PROGRAMS[source] else []


def program_static(source: str) -> str:
    program = compile_program(source, "static", [LIBRARY / "libnvfp4_moe.a"], "-O1")
    return only_line(command(program, *arguments(source)))


def program_shared(source: str) -> str:
    folder = BUILD / "shared"  # under the name that programs ask for at run time
    folder.mkdir(exist_ok=True)
    (folder / "libnvfp4_moe.so.0").unlink(missing_ok=True)
    (folder / "libnvfp4_moe.so.0").symlink_to(LIBRARY / "libnvfp4_moe.so")
    link = [f"-L{LIBRARY}", "-lnvfp4_moe", f"-Wl,-rpath,{folder}"]
    return only_line(command(compile_program(source, "shared", link, "-O1"), *arguments(source)))


def program_valgrind(source: str) -> str:
    """Memcheck; lost memory is an error. Valgrind hides AVX-512 from the library, which then takes AVX2."""
    if not shutil.which("valgrind"):
        if os.geteuid() == 0 and shutil.which("apt-get"):
            subprocess.run(["apt-get", "install", "-y", "-qq", "valgrind"], check=False, capture_output=True)
        if not shutil.which("valgrind"):
            raise Skip("no valgrind here; install Debian's package `valgrind`")
    output = command("valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=definite",
                     "--errors-for-leak-kinds=definite", BUILD / f"{source}.static", *arguments(source))  # fmt: skip
    return only_line(output)


def build_sanitized_library() -> str:
    """The Rust library under ASan too. The flag is unstable, so the stable compiler is told to accept it."""
    command("cargo", "rustc", "--lib", "--crate-type", "staticlib", "--target", TARGET, "--target-dir", BUILD / "rust",
            "--quiet", RUSTC_BOOTSTRAP="1", RUSTFLAGS="-Zsanitizer=address", NVFP4_MOE_CPU_ONLY="1")  # fmt: skip
    return "dev profile, overflow checks on, without CUDA kernels"


def program_sanitized(source: str) -> str:
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    program = compile_program(source, "asan", [BUILD / "rust" / TARGET / "debug/libnvfp4_moe.a"], *flags)
    options = "detect_leaks=1:detect_stack_use_after_return=1"
    return only_line(command(program, *arguments(source), ASAN_OPTIONS=options))


def cuda_on_a_stand_in(source: str) -> str:
    """Over tests/mock_libcuda, which takes the driver's place. It logs to stderr, which is not asked here."""
    driver, program = BUILD / "mock", BUILD / source.removesuffix(".c")
    driver.mkdir(exist_ok=True)
    command("gcc", "-shared", "-fPIC", "tests/mock_libcuda/mock.c", "-o", driver / "libcuda.so.1")
    (driver / "libcuda.so").unlink(missing_ok=True)
    (driver / "libcuda.so").symlink_to("libcuda.so.1")
    link = [LIBRARY / "libnvfp4_moe.a", *RUST_LIBS]
    command("gcc", "-std=c11", *WARNINGS, "-O1", "-Iinclude", f"tests/abi/{source}", *link, "-o", program)
    kinds = {"Hopper": 1, "portable": 2}  # NVFP4_MOE_DEVICE_CUDA, _CUDA_PORTABLE
    run = "$0 $1 2>/dev/null || { [ $? = 77 ] && echo without kernels; }"
    lines = [command("sh", "-c", run, program, kind, LD_LIBRARY_PATH=str(driver)) for kind in kinds.values()]
    if "without kernels" in lines[0]:
        raise Skip("the library was built without an nvcc, so it has no CUDA kernels")
    return ", ".join(f"{name}: {only_line(line)}" for name, line in zip(kinds, lines))


def cute_oracle() -> str:
    packages = python_packages("cute", CUTE_PACKAGES)
    source, cuda = packages / "cutlass_library/source", packages / "nvidia/cu13/include"
    system = [source / "include", source / "tools/util/include", cuda, cuda / "cccl"]
    includes = [word for folder in system for word in ("-isystem", folder)]
    out = BUILD / "cute_oracle"
    command("g++", "-std=c++17", "-O2", "-DNDEBUG", *WARNINGS, "-Iinclude", *includes, "tests/abi/cute_oracle.cpp",
            LIBRARY / "libnvfp4_moe.a", *RUST_LIBS, "-o", out)  # fmt: skip
    return only_line(command(out))


def blackwell_layouts(family: str) -> str:
    """What kernels/sm100 and sm120 state of Blackwell's operands, and the stand-in's reading and arithmetic."""
    if not (ROOT / "kernels" / family).is_dir():
        raise Skip(f"kernels/{family} is not here")
    packages = python_packages("cute", CUTE_PACKAGES)
    cuda = packages / "nvidia/cu13/include"
    system = [packages / "cutlass_library/source/include", cuda, cuda / "cccl"]
    includes = [word for folder in system for word in ("-isystem", folder)]
    out, source = BUILD / f"layouts_{family}", ROOT / f"tests/standin/layouts/{family}.cpp"
    quiet = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-parentheses"]  # kernels unroll, and know C's precedence
    command("g++", "-std=c++17", "-O1", "-DNDEBUG", "-ffp-contract=off", *quiet, "-Ikernels", "-I.", *includes, source,
            "-ldl", "-o", out)  # fmt: skip
    return only_line(command(out))


def steps() -> list[tuple[str, Callable[[], str]]]:
    def each(name: str, step: Callable[[str], str]) -> list[tuple[str, Callable[[], str]]]:
        return [(f"{source}: {name}", lambda source=source: step(source)) for source in PROGRAMS]

    return [
        ("header alone", header_alone),
        ("golden abi.json", golden_abi),
        ("every statement has its test", every_statement_has_its_test),
        ("quiet sources", quiet_sources),
        ("one version", one_version),
        ("build the library", build_library),
        ("the manual's example", the_manuals_example),
        ("exported symbols", exported_symbols),
        *installed.STEPS,
        *each("static library", program_static),
        *each("shared library", program_shared),
        *each("valgrind", program_valgrind),
        *[
            (f"{source}: CUDA on a stand-in driver", lambda source=source: cuda_on_a_stand_in(source))
            for source in ("cuda.c", "cuda_life.c")
        ],
        ("build the library under ASan", build_sanitized_library),
        *each("ASan and UBSan", program_sanitized),
        ("CuTe's scale layout", cute_oracle),
        *[
            (f"CuTe's layouts for {family}", lambda family=family: blackwell_layouts(family))
            for family in ("sm100", "sm120")
        ],
    ]


def main() -> int:
    import tiny_checkpoint

    BUILD.mkdir(parents=True, exist_ok=True)
    tiny_checkpoint.write(BUILD / "checkpoint")
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for name, step in steps():
        print(f"{name} ...", end=" ", flush=True)
        started = time.monotonic()
        try:
            outcome, evidence = "passed", step()
        except Skip as reason:
            outcome, evidence = "skipped", f"SKIPPED: {reason}"
        except Failure as failure:
            outcome, evidence = "failed", f"FAILED: {failure}"
        counts[outcome] += 1
        print(f"{evidence} ({time.monotonic() - started:.1f} s)", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
