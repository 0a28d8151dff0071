# SPDX-License-Identifier: Apache-2.0
"""Mode fp8: which weights it takes, which rows it makes, what it ignores. The matrix and the laws run it as well."""

from dataclasses import replace

import pytest
import torch

import nvfp4_moe
import runner
from reference import fp8, gates, generate, nvfp4
from reference.layer import ReferenceLayer, Swiglu, relative_l2

E, K, H, INTER = 4, 2, 256, 128
DEVICES = ("cpu", "cuda")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(11)


@pytest.fixture
def weights(generator):
    return generate.random_code_weights(E, H, INTER, generator, lossless=True)


def batch(num_tokens, generator):
    return (
        generate.tokens(num_tokens, H, generator),
        generate.random_ids(num_tokens, E, K, generator),
        generate.random_topk_weights(num_tokens, K, generator),
    )


def make(weights, device="cpu", **options):
    return runner.make_layer(weights, **({"num_experts": E, "top_k": K, "mode": "fp8", "device": device} | options))


# ---- Refusals ------------------------------------------------------------------------------------------------------


def test_linears_and_portable_kernels_refuse_it():
    with pytest.raises(RuntimeError, match=r"mode is 3 \(fp8\); it is for MoE layers, .* Use bf16"):
        nvfp4_moe.Linear(in_features=64, out_features=8, mode="fp8")
    with pytest.raises(RuntimeError, match=r"mode is 3 \(fp8\) for the portable kernels .* Use bf16"):
        nvfp4_moe.Layer(
            hidden_size=H, intermediate_size=INTER, num_experts=E, top_k=K, mode="fp8", device="cuda-portable:0"
        )


# Tensor, index of a block scale in it, byte to put there, and what the refusal says. All others are 2^-4 to 2^3.
REFUSALS = {
    "gate": (
        "w13_block_scale",
        (1, 5, 3),
        0x39,
        r"w13_block_scale\[1\] \(gate\) is no power of two in 1 of 2048 places",
    ),
    "up": (
        "w13_block_scale",
        (3, INTER, 0),
        0x03,
        r"w13_block_scale\[3\] \(up\) is no power of two in 1 of 2048 places",
    ),
    "down": ("w2_block_scale", (0, 0, 0), 0x7E, r"w2_block_scale\[0\] is no power of two in 1 of 2048 places"),
    "small": (
        "w13_block_scale",
        (0, 0, 0),
        0x01,
        r"w13_block_scale\[0\] \(gate\) is 2\^-9 to 2\^3, a factor of 2\^12; ",
    ),
    "wide": ("w2_block_scale", (2, H - 1, 7), 0x78, r"w2_block_scale\[2\] is 2\^-4 to 2\^8, a factor of 2\^12; "),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("change", REFUSALS)
def test_weights_that_e4m3_does_not_hold_are_refused(weights, change, device):
    name, place, byte, message = REFUSALS[change]
    block_scale = getattr(weights, name).clone()
    block_scale[place] = byte
    other = replace(weights, **{name: block_scale})
    with pytest.raises(RuntimeError, match=message + r".*Use mode bf16, which is exact for any weights\."):
        make(other, device)
    make(other, device, mode="bf16")
    block_scale[place] = 0  # a block of zeros is no offence
    make(other, device)


# Tensor, index of a block scale in it, how its rows lie, and the pair that is named.
UNPAIRED = {
    "gate": (
        "w13_block_scale",
        (1, 5, 3),
        "",
        r"w13_block_scale\[1\] \(gate\), row 5 is .* in block 2 and 1 in block 3; ",
    ),
    "up": (
        "w13_block_scale",
        (3, INTER + 7, 0),
        "",
        rf"\[3\] \(up\), row {INTER + 7} is 1 in block 0 and .* in block 1",
    ),
    "in_turn": (
        "w13_block_scale",
        (2, 9, 15),
        "interleaved",
        r"\[2\] \(up\), row 9 is .* in block 14 and 1 in block 15",
    ),
    "down": (
        "w2_block_scale",
        (0, H - 1, 6),
        "",
        rf"w2_block_scale\[0\], row {H - 1} is 1 in block 6 and .* in block 7",
    ),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("change", UNPAIRED)
def test_a_pair_of_scales_that_differ_is_refused_by_its_place(weights, change, device):
    name, place, order, message = UNPAIRED[change]
    block_scale = getattr(weights, name).clone()
    block_scale[place] = 0x38
    block_scale[place[:2]][place[2] ^ 1] = 0x40
    block_scale[-1, -1, -2:] = torch.tensor([0x38, 0x40])  # the first is named
    other = replace(weights, **{name: block_scale}, **({order: True} if order else {}))
    with pytest.raises(RuntimeError, match=message + r".*scale_block_size 32 needs one scale in both .*16\."):
        make(other, device, scale_block_size=32)
    make(other, device, scale_block_size=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scale_block_size": 24},
            "scale_block_size is 24; it must be 16, or 32 where block scales are equal in pairs",
        ),
        ({"mode": "bf16"}, "scale_block_size is 32; it must be 16 in modes other than fp8"),
        ({"fp8_max_error": 0.1}, r"fp8_max_error is 0\.1; it must be 0 where scale_block_size is 32"),
        ({"intermediate_size": 48}, "intermediate_size is 48; it must be a multiple of scale_block_size, which is 32"),
    ],
)
def test_pairs_that_there_cannot_be_are_refused(options, message):
    sizes = {"hidden_size": H, "intermediate_size": INTER, "num_experts": E, "top_k": K}
    with pytest.raises(RuntimeError, match=message + ".* Pass 16"):
        nvfp4_moe.Layer(**(sizes | {"mode": "fp8", "scale_block_size": 32} | options))


# ---- Weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("hidden", "inter"), [(H, INTER), (352, 96)])
def test_pairs_of_scales_take_less_and_give_the_same_bits(generator, hidden, inter, device):
    weights = generate.random_code_weights(E, hidden, inter, generator, lossless=True)
    inputs = generate.tokens(100, hidden, generator), generate.random_ids(100, E, K, generator)
    for tile_rows in (0,) if device == "cpu" else (8, 16, 24, 48, 64, 80, 112, 144):
        pairs, single = (make(weights, device, tile_rows=tile_rows, scale_block_size=size) for size in (32, 16))
        a, b = (runner.run(layer, *inputs).view(torch.int16) for layer in (pairs, single))
        assert torch.equal(a, b), tile_rows
    if device == "cuda":
        tiles = -(-2 * inter // 64) * -(-hidden // 128) * 2 + -(-hidden // 64) * -(-inter // 128) * 2
        assert single.expert_slices.shape[1] - pairs.expert_slices.shape[1] == tiles * 128


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_tokens", [1, 8, 100])
def test_each_part_may_use_the_whole_span(generator, num_tokens, device):
    """2^-9 to 2^2, 2^-3 to 2^8 and 2^-6 to 2^5 in one expert, zeros between, an expert of zeros alone."""
    weights = generate.random_code_weights(E, H, INTER, generator)

    def choose(shape, exponents):
        scales = torch.tensor([0.0] + [2.0**e for e in exponents]).to(torch.float8_e4m3fn).view(torch.uint8)
        return scales[torch.randint(len(scales), shape, generator=generator)]

    parts = [choose((E, INTER, H // 16), range(first, first + 12)) for first in (-9, -3)]
    weights.w13_block_scale[:] = torch.cat(parts, dim=1)
    weights.w2_block_scale[:] = choose((E, H, INTER // 16), range(-6, 6))
    weights.w13_global_scale *= torch.tensor([4.0, 2.0**-4])
    weights.w13_block_scale[2] = 0
    x, ids, topk_weights = batch(num_tokens, generator)
    result = ReferenceLayer(weights).forward(x, ids.long(), topk_weights, "fp8")
    out = runner.run(make(weights, device), x, ids, topk_weights)
    assert relative_l2(out, result.out) <= gates.bound(result, "fp8", device)


# ---- Rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_rows_have_the_codes_of_the_reference(generator, device):
    """Unit weights show them: h = x where alpha makes the sigmoid 1 and beta the factor, out = h; x quantised once
    changes no code the second time, and bf16 is finer than half of e4m3's steps."""
    size = 256
    eye, none = torch.zeros(size, size, dtype=torch.uint8), torch.zeros(size, size, dtype=torch.uint8)
    eye.fill_diagonal_(2)  # the code of 1
    ones = lambda rows: torch.full((1, rows, size // 16), 0x38, dtype=torch.uint8)  # noqa: E731
    weights = generate.Weights(
        nvfp4.pack(torch.cat([eye, none]))[None], ones(2 * size), torch.ones(1, 2),
        nvfp4.pack(eye)[None], ones(size), torch.ones(1),
    )  # fmt: skip
    # All of e4m3's exponents in a row, not in a block of 16: below 2^-11 of a block's largest avx512vnni rounds.
    exponents = torch.empty(90, size // 16, 1).uniform_(-13, 0, generator=generator)
    exponents = exponents + torch.empty(90, size // 16, 16).uniform_(-7, 0, generator=generator)
    x = (2.0 ** exponents.flatten(1) * torch.logspace(-5, 5, 90)[:, None]).bfloat16()
    x[3] = 0
    x[4, :-1] = 0
    layer = make(weights, device, num_experts=1, top_k=1, swiglu=Swiglu(0.0, alpha=1e30, beta=1.0))
    out = runner.run(layer, x, torch.zeros(90, 1, dtype=torch.int32))
    q = fp8.quantize(x)
    assert q.codes.unique().numel() == 0x7F, "every code that is finite and not negative"
    assert torch.equal((out.double() / q.row_scale.double()).to(torch.float8_e4m3fn).view(torch.uint8), q.codes)


@pytest.mark.parametrize("device", DEVICES)
def test_policy_and_input_scales_change_nothing(weights, generator, device):
    inputs = batch(20, generator)
    expected = runner.run(make(weights, device), *inputs)
    for policy, source in [("dynamic", weights), ("static", weights.with_input_scales(0.01, 100.0))]:
        out = runner.run(make(source, device, scale_policy=policy), *inputs)
        assert torch.equal(out.view(torch.int16), expected.view(torch.int16)), policy


@pytest.mark.parametrize("device", DEVICES)
def test_twice_the_row_is_four_times_the_product(weights, generator, device):
    """Row scales follow their rows, so that bits follow where the SwiGLU is gate / 2 * up."""
    x, ids, topk_weights = batch(30, generator)
    layer = make(weights, device, swiglu=Swiglu(0.0, alpha=1e-30))
    once, twice = (runner.run(layer, x * factor, ids, topk_weights) for factor in (1, 2))
    assert torch.equal((once * 4).view(torch.int16), twice.view(torch.int16))


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_zeros_give_zeros(weights, generator, device):
    x, ids, topk_weights = batch(9, generator)
    x[4] = 0
    x[5] = -0.0
    out = runner.run(make(weights, device), x, ids, topk_weights)
    assert (out[4:6] == 0).all()
    assert (out[[0, 1, 2, 3, 6, 7, 8]] != 0).any(dim=1).all()


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_finite_is_counted_as_in_mode_nvfp4(weights, generator, device):
    x, ids, topk_weights = batch(30, generator)
    x[7, 17] = torch.nan
    x[21, 3], x[21, 4] = torch.inf, -torch.inf
    seen = []
    for mode in ("nvfp4", "fp8"):
        layer = make(weights, device, mode=mode, scale_policy="dynamic")
        nvfp4_moe.reset_device_status(device)
        out = runner.run(layer, x, ids, topk_weights)
        seen.append(nvfp4_moe.read_device_status(device))
        assert out[7].isnan().all()
        assert out[[t for t in range(30) if t != 7]].isfinite().all()
    assert (seen[1].saturated_blocks, seen[1].out_of_range_ids) == (0, 0)
    assert seen[1].nonfinite_values == seen[0].nonfinite_values == 3 + K * INTER
    assert seen[1].first_bad_token in (7, 21)
