# SPDX-License-Identifier: Apache-2.0
"""What tests/standin/driver tells callers, over a driver that is a fake one: nothing here needs a GPU."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests/standin/driver"
sys.path.insert(0, str(FOLDER.parent))

import build

FATBIN = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 3) + b"abc"
HOPPER = "9.0, 232448 bytes, image 80, 0, 0"  # 80: a fat binary's first byte


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """ask(program, **environment): what it heard, and what the stand-in said."""
    includes = [home / "include" for home in build.homes() if (home / "include/cuda.h").exists()]
    if not includes:
        pytest.skip("no cuda.h")
    folder = tmp_path_factory.mktemp("driver")
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
    compile_ = lambda *words: subprocess.run([str(word) for word in words], check=True)  # noqa: E731
    compile_("g++", *flags, "-isystem", includes[0], *FOLDER.glob("*.cpp"), "-o", folder / "driver.so", "-ldl")
    compile_("cc", "-shared", "-fPIC", FOLDER / "fake_libcuda.c", "-o", folder / "libcuda.so.1")
    for name in ("nvfp4_moe_user", "stranger"):
        compile_("cc", FOLDER / "asks.c", "-o", folder / name, "-ldl")
    images = folder / "images"
    images.mkdir()
    (images / "some_gemm.fatbin").write_bytes(FATBIN)
    (images / "some_gemm.cubin").write_bytes(b"\x07")
    (folder / "other.fatbin").write_bytes(FATBIN[:-1] + b"d")

    def ask(program: str, image: str = "images/some_gemm.fatbin", **environment: str) -> tuple[str, str]:
        own = {"LD_LIBRARY_PATH": str(folder), "LD_PRELOAD": str(folder / "driver.so"), "STANDIN_IMAGES": str(images)}
        command = [folder / program, folder / image]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, **own, **environment}
        )
        return done.stdout.strip(), done.stderr

    return ask


def test_the_library_hears_of_another_gpu_and_gets_the_other_image(ask):
    heard, said = ask("nvfp4_moe_user", STANDIN_CAPABILITY="12.0")
    assert heard == "12.0, 101376 bytes, image 7, 0, 1"
    assert "shared memory of kernel is 101377; at most 101376 on this chip" in said
    assert "module some_gemm replaced" in said
    assert ask("nvfp4_moe_user", STANDIN_CAPABILITY="10.3")[0] == "10.3, 232448 bytes, image 7, 0, 0"


def test_others_hear_of_the_gpu_as_it_is(ask):
    assert ask("stranger", STANDIN_CAPABILITY="12.0") == (HOPPER, "")
    assert ask("stranger", STANDIN_CAPABILITY="12.0", STANDIN_CALLERS="some,strange")[0].startswith("12.0")


def test_an_image_of_other_bytes_is_loaded_as_it_is(ask):
    assert ask("nvfp4_moe_user", "other.fatbin") == (HOPPER, "")
