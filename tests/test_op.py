# SPDX-License-Identifier: Apache-2.0
"""The ops themselves: schemas, refusals, strides, handles, opcheck, and what the shared object shows to the world."""

import gc
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import nvfp4_moe
import runner
from nvfp4_moe import ops
from reference import generate, nvfp4

E, K, H, INTER, T = 4, 2, 64, 32, 5
OPS = ops.load()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


@pytest.fixture
def weights(generator):
    return generate.random_code_weights(E, H, INTER, generator).with_input_scales(4.0, 4.0)


@pytest.fixture
def layer(weights):
    return runner.make_layer(weights, num_experts=E, top_k=K)


@pytest.fixture
def inputs(generator):
    return (
        generate.tokens(T, H, generator),
        generate.random_ids(T, E, K, generator),
        generate.random_topk_weights(T, K, generator),
    )


@pytest.fixture
def linear(generator):
    return make_linear(generator)


def make_linear(generator, mode="bf16", out_features=48):
    numbers = torch.randint(0, 256, (out_features, H // 2), generator=generator, dtype=torch.uint8)
    weights = nvfp4_moe.LinearWeights(
        weight=numbers,
        block_scale=torch.randint(0x30, 0x48, (out_features, H // 16), generator=generator, dtype=torch.uint8),
        global_scale=torch.tensor([0.01]),
        input_scale=0.002,
    )
    return nvfp4_moe.Linear(in_features=H, out_features=out_features, mode=mode).prepare(weights)


def bits(tensor):
    return tensor.view(torch.int16)


# ---- Schemas -------------------------------------------------------------------------------------------------------


def test_the_hot_ops_declare_what_they_write():
    assert str(OPS.moe_forward.default._schema) == (
        "nvfp4_moe::moe_forward(Tensor x, Tensor topk_ids, Tensor? topk_weights, Tensor? expert_map, "
        "Tensor(b!)? workspace, int layer, Tensor(a!) out, Tensor? shared_output=None, int shared_output_ready=0) -> ()"
    )
    assert str(OPS.linear_forward.default._schema) == (
        "nvfp4_moe::linear_forward(Tensor x, Tensor(b!)? workspace, int linear, Tensor(a!) out) -> ()"
    )


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("with_workspace", [False, True])
@pytest.mark.parametrize("op", [OPS.moe_forward, OPS.moe_calibrate], ids=str)
def test_opcheck_layer(layer, inputs, op, with_workspace):
    workspace = torch.zeros(layer.workspace_size(T), dtype=torch.uint8) if with_workspace else None
    expert_map = torch.arange(E, dtype=torch.int32)
    torch.library.opcheck(
        op.default, (*inputs, expert_map, workspace, layer.id, torch.zeros(T, H).bfloat16()), test_utils=CHECKS
    )


@pytest.mark.parametrize("op", [OPS.linear_forward, OPS.linear_calibrate], ids=str)
def test_opcheck_linear(linear, inputs, op):
    torch.library.opcheck(op.default, (inputs[0], None, linear.id, torch.zeros(T, 48).bfloat16()), test_utils=CHECKS)


@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("global_scale", [None, 0.01])
def test_opcheck_quantize(inputs, global_scale, swizzled):
    torch.library.opcheck(OPS.quantize.default, (inputs[0], global_scale, swizzled), test_utils=CHECKS)


def test_opcheck_dequantize():
    packed, block_scale = torch.zeros(3, 16, dtype=torch.uint8), torch.full((3, 2), 0x38, dtype=torch.uint8)
    torch.library.opcheck(OPS.dequantize.default, (packed, block_scale, 0.5), test_utils=CHECKS)


# ---- Refusals ------------------------------------------------------------------------------------------------------

i32 = partial(torch.zeros, dtype=torch.int32)
bf16 = partial(torch.zeros, dtype=torch.bfloat16)
u8 = partial(torch.zeros, dtype=torch.uint8)

FORWARD_REFUSALS = {
    "x dtype": (dict(x=torch.zeros(T, H)), r"x.dtype is float32; it must be bfloat16. Convert it"),
    "x width": (dict(x=bf16(T, H + 16)), r"x.shape is \[5, 80\]; it must be \[T, H\] = \[5, 64\]"),
    "x rank": (dict(x=bf16(1, T, H)), r"x.shape is \[1, 5, 64\]; it must be \[T, H\] = \[T, 64\]"),
    "x columns": (dict(x=bf16(H, T).T), r"x.stride\(1\) is 5; .*stride 1. Call .contiguous\(\)"),
    "x expanded": (dict(x=bf16(1, H).expand(T, H)), r"x.stride\(0\) is 0; rows of 64 elements may not"),
    "ids dtype": (dict(ids=torch.zeros(T, K)), r"topk_ids.dtype is float32; it must be int32 or int64"),
    "ids shape": (dict(ids=i32(T, 3)), r"topk_ids.shape is \[5, 3\]; it must be \[T, k\] = \[5, 2\]"),
    "ids tokens": (
        dict(ids=i32(4, K)),
        r"topk_ids.shape is \[4, 2\]; it must be .* = \[5, 2\], where T is x.size\(0\)",
    ),
    "weights dtype": (dict(w=bf16(T, K)), r"topk_weights.dtype is bfloat16; it must be float32"),
    "weights shape": (dict(w=torch.zeros(T)), r"topk_weights.shape is \[5\]; it must be \[T, k\] = \[5, 2\]"),
    "map dtype": (dict(map=i32(E).long()), r"expert_map.dtype is int64; it must be int32"),
    "map shape": (dict(map=i32(E + 1)), r"expert_map.shape is \[5\]; it must be \[E\] = \[4\]"),
    "map stride": (dict(map=i32(2 * E)[::2]), r"expert_map is a strided view .* must be contiguous"),
    "out dtype": (dict(out=torch.zeros(T, H)), r"out.dtype is float32; it must be bfloat16"),
    "out shape": (dict(out=bf16(T + 1, H)), r"out.shape is \[6, 64\]; it must be \[T, H\] = \[5, 64\]"),
    "out expanded": (dict(out=bf16(1, H).expand(T, H)), r"out.stride\(0\) is 0"),
    "shared dtype": (dict(shared=torch.zeros(T, H)), r"shared_output.dtype is float32; it must be bfloat16"),
    "shared shape": (dict(shared=bf16(T, H + 1)), r"shared_output.shape is \[5, 65\]; it must be \[T, H\] = \[5, 64\]"),
    "workspace dtype": (dict(workspace=i32(1 << 20)), r"workspace.dtype is int32; it must be uint8"),
    "workspace empty": (dict(workspace=u8(0)), r"workspace.numel\(\) is 0; it must hold"),
    "workspace small": (dict(workspace=u8(600)), r"workspace_size is \d+ bytes; it must be at least \d+"),
}


@pytest.mark.parametrize("change", FORWARD_REFUSALS)
def test_forward_refuses_and_leaves_out_alone(layer, inputs, change):
    changed, message = FORWARD_REFUSALS[change]
    arguments = dict(x=inputs[0], ids=inputs[1], w=inputs[2], map=None, workspace=None, out=torch.ones(T, H).bfloat16())
    arguments |= changed
    before = arguments["out"].clone()
    before_out = (arguments[n] for n in ("x", "ids", "w", "map", "workspace"))
    with pytest.raises(RuntimeError, match=message):
        OPS.moe_forward(*before_out, layer.id, arguments["out"], arguments.get("shared"))
    assert torch.equal(arguments["out"], before)


PREPARE_REFUSALS = {
    "shape": (lambda w: dict(w2=w.w2[:, :-1]), r"w2.shape is \[4, 63, 16\]; .*\[L, H, I/2\] = \[4, 64, 16\]"),
    "dtype": (lambda w: dict(w13=w.w13.float()), r"w13.dtype is float32; it must be uint8"),
    "view": (lambda w: dict(w13=w.w13.mT.contiguous().mT), r"w13 is a strided view of shape \[4, 64, 32\]"),
    "scale dtype": (lambda w: dict(w2_block_scale=w.w2_block_scale.int()), r"w2_block_scale.dtype is int32; it must"),
    "one global": (
        lambda w: dict(w13_global_scale=w.w13_global_scale[:, 0]),
        r"w13_global_scale.shape is \[4\]; .* = ",
    ),
    "nan scale": (lambda w: dict(w2_block_scale=torch.full_like(w.w2_block_scale, 0x7F)), r"NaN"),
    "inf global": (lambda w: dict(w2_global_scale=w.w2_global_scale * torch.inf), r"w2_global_scale.* is inf"),
    "negative input scale": (lambda w: dict(w13_input_scale=-1.0), r"w13_input_scale is -1"),
}


@pytest.mark.parametrize("change", PREPARE_REFUSALS)
def test_prepare_refuses(weights, change):
    changed, message = PREPARE_REFUSALS[change]
    with pytest.raises(RuntimeError, match=message):
        runner.make_layer(replace(weights, **changed(weights)), num_experts=E, top_k=K)


CREATE_REFUSALS = {
    "hidden": (dict(hidden_size=60), r"hidden_size is 60; .*16"),
    "top_k": (dict(top_k=0), r"top_k is 0"),
    "too wide": (dict(num_experts=2**40), r"num_experts is 1099511627776; it must fit in 32 bits"),
    "mode": (dict(mode="fp4"), r'mode is "fp4"; it must be "default", "bf16"'),
    "policy": (dict(scale_policy="auto"), r'scale_policy is "auto"; it must be "static" or "dynamic"'),
    "local": (dict(first_local_expert=2), r"first_local_expert"),
    "device": (dict(device="meta"), r"device is .*; it must be cpu or cuda"),
}  # fmt: skip


@pytest.mark.parametrize("change", CREATE_REFUSALS)
def test_create_refuses(change):
    changed, message = CREATE_REFUSALS[change]
    options = dict(hidden_size=H, intermediate_size=INTER, num_experts=E, top_k=K) | changed
    with pytest.raises(RuntimeError, match=message):
        nvfp4_moe.Layer(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused():
    for device in ("cuda:0", "cuda-portable:0"):
        with pytest.raises(RuntimeError, match=r"device|CUDA|cuda"):
            nvfp4_moe.Layer(hidden_size=H, intermediate_size=INTER, num_experts=E, top_k=K, device=device)
    with pytest.raises(RuntimeError, match=r"device is cuda:0; "):
        nvfp4_moe.read_device_status("cuda:0")


# ---- Strides, types, empty batches ---------------------------------------------------------------------------------


def test_strided_rows_give_the_same_bits(layer, inputs):
    x, ids, topk_weights = inputs
    expected = layer(x, ids, topk_weights)
    wide = [runner.poisoned(T, 3 * t.shape[1] + 7, dtype=t.dtype) for t in (x, ids, topk_weights)]
    views = [w[:, 5 : 5 + t.shape[1]].copy_(t) for w, t in zip(wide, inputs)]
    around = runner.poisoned(T, 3 * H)
    layer(*views, out=around[:, H : 2 * H])
    assert torch.equal(bits(around[:, H : 2 * H]), bits(expected))
    assert (around[:, :H].isnan() & around[:, 2 * H :].isnan()).all(), "wrote beside its rows"


def test_no_tokens(layer):
    out = layer(torch.zeros(0, H).bfloat16(), torch.zeros(0, K, dtype=torch.int32), torch.zeros(0, K))
    assert out.shape == (0, H)


def test_one_token_of_any_stride(layer, inputs):
    x, ids, topk_weights = (t[:1] for t in inputs)
    expected = layer(x, ids, topk_weights)
    odd = x.as_strided((1, H), (1, 1))  # a row stride that one row never uses
    assert torch.equal(bits(layer(odd, ids, topk_weights)), bits(expected))


def test_workspace_of_any_alignment(layer, inputs):
    expected = layer(*inputs)
    for shift in (0, 1, 63, 255):
        workspace = runner.poisoned(layer.workspace_size(T) + shift, dtype=torch.uint8)[shift:]
        assert torch.equal(bits(layer(*inputs, workspace=workspace)), bits(expected))


def test_block_scales_as_float8_or_as_bytes(weights, layer, inputs):
    as_float8 = replace(
        weights,
        w13_block_scale=weights.w13_block_scale.view(torch.float8_e4m3fn),
        w2_block_scale=weights.w2_block_scale.view(torch.float8_e4m3fn),
    )
    other = runner.make_layer(as_float8, num_experts=E, top_k=K)
    assert torch.equal(bits(layer(*inputs)), bits(other(*inputs)))


# ---- Handles -------------------------------------------------------------------------------------------------------


def test_dead_forged_and_mistaken_ids_are_errors(layer, linear, inputs):
    out = torch.zeros(T, H).bfloat16()
    layer.close()
    for bad in (layer.id, linear.id, 0, -1, 2**40):
        with pytest.raises(RuntimeError, match=rf"layer is {bad}; no living layer of this process has that id"):
            OPS.moe_forward(*inputs, None, None, bad, out)
        with pytest.raises(RuntimeError, match="no living layer"):
            OPS.layer_destroy(bad)
    layer.close()  # twice is nothing


def test_forward_before_prepare_is_an_error(inputs):
    layer = nvfp4_moe.Layer(hidden_size=H, intermediate_size=INTER, num_experts=E, top_k=K)
    with pytest.raises(RuntimeError, match="prepare"):
        layer(*inputs)


def test_the_handle_goes_with_its_object(weights):
    layer = runner.make_layer(weights, num_experts=E, top_k=K)
    dead = layer.id
    del layer
    gc.collect()
    with pytest.raises(RuntimeError, match="no living layer"):
        OPS.layer_workspace_size(dead, 1)


def test_the_layer_keeps_its_weights_alive(generator, inputs):
    def make():
        weights = generate.random_code_weights(E, H, INTER, generator)
        layer = runner.make_layer(weights, num_experts=E, top_k=K)
        return layer, layer(*inputs).clone()

    layer, expected = make()
    gc.collect()
    others = [generate.random_code_weights(E, H, INTER, generator) for _ in range(20)]  # reuse freed memory, if any
    assert torch.equal(bits(layer(*inputs)), bits(expected))
    assert others


def test_preparing_again_takes_the_new_weights(generator, weights, layer, inputs):
    other_weights = generate.random_code_weights(E, H, INTER, generator)
    other = runner.make_layer(other_weights, num_experts=E, top_k=K)
    fields = ("w13", "w13_block_scale", "w13_global_scale", "w2", "w2_block_scale", "w2_global_scale")
    layer.prepare(nvfp4_moe.LayerWeights(**{name: getattr(other_weights, name) for name in fields}))
    assert torch.equal(bits(layer(*inputs)), bits(other(*inputs)))


# ---- The format ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("global_scale", [None, 0.002, 2.0**-20, 2.0**-110, 3e5])
def test_quantize_equals_the_oracle(generator, global_scale):
    x = (torch.randn(37, 160, generator=generator) * torch.logspace(-30, 30, 37)[:, None]).bfloat16()
    x[3] = 0
    x[4, 5], x[5, 6], x[6, 7], x[7, 8] = torch.nan, torch.inf, -torch.inf, -0.0
    expected = nvfp4.quantize(x, global_scale)
    got = nvfp4_moe.quantize(x, global_scale)
    assert torch.equal(got.packed, nvfp4.pack(expected.codes))
    assert torch.equal(got.block_scale.view(torch.uint8), expected.block_scale)
    if global_scale is None:
        assert torch.equal(got.global_scale[:, None], expected.global_scale)
    swizzled = nvfp4_moe.quantize(x, global_scale, swizzled=True)
    assert torch.equal(swizzled.packed, got.packed)
    assert torch.equal(swizzled.block_scale, nvfp4.swizzle(expected.block_scale))
    wide = runner.poisoned(37, 200)
    wide[:, 3:163] = x
    assert torch.equal(nvfp4_moe.quantize(wide[:, 3:163], global_scale).packed, got.packed)


def test_quantize_of_nothing():
    for shape in [(0, 16), (0, 0)]:
        q = nvfp4_moe.quantize(torch.zeros(shape).bfloat16(), 1.0, swizzled=True)
        assert q.packed.shape == (0, shape[1] // 2)
        assert q.block_scale.shape == (0,)


def test_quantize_refuses():
    with pytest.raises(RuntimeError, match=r"x.size\(1\) is 24; it must be a multiple of 16"):
        nvfp4_moe.quantize(torch.zeros(2, 24).bfloat16())
    with pytest.raises(RuntimeError, match=r"x.dim\(\) is 1; it must be 2"):
        nvfp4_moe.quantize(torch.zeros(16).bfloat16())
    with pytest.raises(RuntimeError, match=r"global_scale is .*2\^-110"):
        nvfp4_moe.quantize(torch.zeros(2, 16).bfloat16(), 0.0)


def test_dequantize_equals_the_oracle(generator):
    packed = torch.randint(0, 256, (19, 48), generator=generator, dtype=torch.uint8)
    block_scale = torch.randint(0, 127, (19, 6), generator=generator, dtype=torch.uint8)
    got = nvfp4_moe.dequantize(packed, block_scale.view(torch.float8_e4m3fn), 0.37)
    assert torch.equal(got, nvfp4.decode_blocks(packed, block_scale) * 0.37)
    with pytest.raises(RuntimeError, match=r"block_scale.shape is \[18, 6\]; it must be \[rows, cols/16\] = \[19, 6\]"):
        nvfp4_moe.dequantize(packed, block_scale[1:], 1.0)


def test_swizzle_functions_equal_the_oracle():
    for rows, cols in [(1, 1), (128, 4), (129, 5), (300, 9)]:
        assert nvfp4_moe.sf_size(rows, cols) == nvfp4.swizzle(torch.zeros(rows, cols, dtype=torch.uint8)).numel()
        marks = torch.arange(rows * cols).view(rows, cols)
        low, high = (nvfp4.swizzle((marks >> shift).to(torch.uint8)).int() for shift in (0, 8))
        for row in range(0, rows, 13):
            for col in range(cols):
                at = nvfp4_moe.sf_offset(row, col, cols)
                assert low[at] + 256 * high[at] == marks[row, col]
    with pytest.raises(RuntimeError, match="row is -1; it must not be negative"):
        nvfp4_moe.sf_offset(-1, 0, 4)


# ---- The package and its shared object -----------------------------------------------------------------------------


def test_version_is_everywhere_the_same():
    number = OPS.version()
    assert nvfp4_moe.__version__ == f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    cargo = (Path(__file__).parents[1] / "Cargo.toml").read_text()
    assert f'\nversion = "{nvfp4_moe.__version__}"\n' in cargo


def test_cpu_isa_is_one_of_the_headers():
    names = ["avx512vnni", "avx512bf16", "avx512", "avx2", "portable"]
    assert nvfp4_moe.cpu_isa() in ([os.environ["AS_CPU"]] if "AS_CPU" in os.environ else names)  # tests/tools/as_cpu


def test_build_info_is_one_of_the_headers():
    assert nvfp4_moe.build_info() in ("cpu", "cpu hopper portable sm100 sm120")


def test_importing_the_package_imports_no_torch():
    code = "import sys, nvfp4_moe; assert 'torch' not in sys.modules; nvfp4_moe.Layer; assert 'torch' in sys.modules"
    folder = Path(nvfp4_moe.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)


def test_the_shared_object_shows_nothing():
    def tool(*words: str) -> str:
        return subprocess.run([*words, str(ops.SHARED_OBJECT)], check=True, capture_output=True, text=True).stdout

    exported = [line for line in tool("nm", "-D", "--defined-only").splitlines() if line]
    assert exported == [], "Rust's or C++'s runtime, or the C ABI, leaks out"
    needed = {line.split("[")[1].rstrip("]") for line in tool("readelf", "-d").splitlines() if "(NEEDED)" in line}
    system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "libpthread.so.0", "libdl.so.2"}
    assert {name for name in needed - system if not name.startswith("ld-linux")} == {"libtorch_cpu.so"}
