# SPDX-License-Identifier: Apache-2.0
"""The golden vectors: deterministic, and met by the C ABI as Python sees it (ctypes on the shared library)."""

import ctypes
import json
import subprocess
import sys
from ctypes import POINTER, c_float, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/golden"
C_TYPES = {"int32_t": c_int32, "uint32_t": c_uint32, "int64_t": c_int64, "uint64_t": c_uint64, "float": c_float}


def test_files_are_what_the_generator_writes():
    check = [sys.executable, GOLDEN / "make_golden.py", "--check"]
    done = subprocess.run(check, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    subprocess.run(["cargo", "build", "--release", "--lib", "--quiet"], cwd=ROOT, check=True)
    metadata = subprocess.run(
        ["cargo", "metadata", "--format-version=1", "--no-deps"], cwd=ROOT, check=True, capture_output=True
    )
    library = ctypes.CDLL(Path(json.loads(metadata.stdout)["target_directory"]) / "release/libnvfp4_moe.so")
    library.nvfp4_moe_sf_size.restype = library.nvfp4_moe_sf_offset.restype = c_uint64
    library.nvfp4_moe_sf_size.argtypes = [c_uint64] * 2
    library.nvfp4_moe_sf_offset.argtypes = [c_uint64] * 3
    library.nvfp4_moe_dequantize.argtypes = [c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p]
    return library


def struct_type(name: str) -> type[ctypes.Structure]:
    """A public struct, from abi.json."""
    layout = json.loads((GOLDEN / "abi.json").read_text())["structs"][name]
    fields = [(field, C_TYPES.get(kind, c_void_p)) for field, kind, _ in layout["fields"]]
    made = type(name, (ctypes.Structure,), {"_fields_": fields})
    assert ctypes.sizeof(made) == layout["size"]
    assert [getattr(made, field).offset for field, _ in fields] == [offset for _, _, offset in layout["fields"]]
    return made


def read_lines(name: str) -> list[list[str]]:
    return [line.split() for line in (GOLDEN / name).read_text().splitlines() if not line.startswith("#")]


def cases(name: str) -> list[dict[str, list[str]]]:
    found: list[dict[str, list[str]]] = [{}]
    for key, *words in read_lines(name):
        if key == "end":
            found.append({})
        else:
            found[-1].setdefault(key, []).extend(words)
    return found[:-1]


@pytest.mark.parametrize("case", cases("quantize.txt"), ids=lambda case: case["case"][0])
def test_quantize(library, case):
    def array(kind, key):
        return (kind * len(case[key]))(*(int(word, 16) for word in case[key]))

    x, packed, block_scale = array(c_uint16, "x"), array(c_uint8, "packed"), array(c_uint8, "block_scale")
    global_scale = array(c_uint32, "global_scale")
    is_static = case["policy"] == ["static"]
    got_packed, got_scales = (type(packed)(), type(block_scale)())
    got_global = type(global_scale)(*global_scale) if is_static else type(global_scale)()
    args_type = struct_type("nvfp4_moe_quantize_args")
    args = args_type(
        struct_size=ctypes.sizeof(args_type),
        scale_policy=0 if is_static else 1,
        num_rows=int(case["rows"][0]),
        num_cols=int(case["cols"][0]),
        x=ctypes.addressof(x),
        packed=ctypes.addressof(got_packed),
        block_scale=ctypes.addressof(got_scales),
        global_scale=ctypes.addressof(got_global),
    )
    assert library.nvfp4_moe_quantize(ctypes.byref(args)) == 0
    assert bytes(got_packed) == bytes(packed)
    assert bytes(got_scales) == bytes(block_scale)
    assert list(got_global) == list(global_scale)


@pytest.mark.parametrize("codec", ["e2m1", "e4m3"])
def test_decode_tables(library, codec):
    """e2m1 under block scale 1 (0x38), e4m3 under code 2 (which is 1)."""
    out = (c_float * 16)()
    bits = ctypes.cast(out, POINTER(c_uint32))
    lines = [line for line in read_lines(f"{codec}.txt") if line[0] == "decode"]
    assert len(lines) == {"e2m1": 16, "e4m3": 256}[codec]
    for _, code, value in lines:
        packed = bytes([int(code, 16) if codec == "e2m1" else 2] + [0] * 7)
        scale = bytes([0x38 if codec == "e2m1" else int(code, 16)])
        assert library.nvfp4_moe_dequantize(packed, scale, 1.0, 1, 16, out) == 0
        is_nan = int(value, 16) & 0x7FFFFFFF > 0x7F800000
        assert out[0] != out[0] if is_nan else bits[0] == int(value, 16), code


def test_sf_layout(library):
    for what, *words in read_lines("sf_layout.txt"):
        *inputs, wanted = map(int, words)
        function = library.nvfp4_moe_sf_size if what == "size" else library.nvfp4_moe_sf_offset
        assert function(*inputs) == wanted, (what, words)
