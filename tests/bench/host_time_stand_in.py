# SPDX-License-Identifier: Apache-2.0
"""A machine without a GPU plays one: the op over a stand-in driver, for host_time.py.

The driver (tests/mock_libcuda) returns at once and counts launches. The op is the one that was built: its objects,
linked with host_time_stream.cpp in the place of cpp/stream.cpp.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
OBJECTS = ROOT / "build" / "op" / "CMakeFiles" / "nvfp4_moe_torch.dir" / "cpp"
LIBRARY = ROOT / "target" / "release" / "libnvfp4_moe.so"


def is_built() -> bool:
    """Have CMake and cargo left here what the op is linked from?"""
    return LIBRARY.exists() and (OBJECTS / "stream.cpp.o").exists()


def build(folder: Path) -> None:
    """Make libcuda.so.1 and op.so."""
    for name in ("libcuda.so.1", "libcuda.so"):
        source = ROOT / "tests" / "mock_libcuda" / "mock.c"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", source, "-o", folder / name], check=True)
    torch = Path(sysconfig.get_path("purelib"), "torch")
    flags = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    includes = ["-I", ROOT / "include", "-I", ROOT / "cpp", "-isystem", torch / "include"]
    stream = Path(__file__).with_name("host_time_stream.cpp")
    subprocess.run(["c++", *flags, *includes, "-c", stream, "-o", folder / "stream.o"], check=True)
    sources = [path.name for path in (ROOT / "cpp").glob("*.cpp") if path.name != "stream.cpp"]
    objects = [OBJECTS / f"{name}.o" for name in sources]
    (folder / "libnvfp4_moe.so.0").symlink_to(LIBRARY)  # its SONAME, found by LD_LIBRARY_PATH
    libraries = [LIBRARY, torch / "lib" / "libtorch_cpu.so"]
    subprocess.run(["c++", "-shared", folder / "stream.o", *objects, *libraries, "-o", folder / "op.so"], check=True)


def run(arguments: list[str], script: str = "host_time.py") -> dict:
    """A script of this folder in a process with the stand-in; the JSON that it prints last."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        environment = os.environ | {"LD_LIBRARY_PATH": folder, "MOCK_QUIET": "1", "OMP_NUM_THREADS": "1"}
        program = Path(__file__).with_name(script)
        command = [sys.executable, program, *arguments, "--device", "cpu", "--op", f"{folder}/op.so", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])
