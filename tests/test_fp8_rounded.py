# SPDX-License-Identifier: Apache-2.0
"""Mode fp8 with fp8_max_error: any weights, rounded to e4m3 as reference/rounding.py says, measured and bounded."""

from dataclasses import replace

import pytest
import torch

import matrix
import nvfp4_moe
import runner
from reference import gates, generate, nvfp4, rounding
from reference.layer import ReferenceLayer, Swiglu, local_ids, relative_l2

E, K, H, INTER = 4, 2, 256, 128
DEVICES = ("cpu", "cuda")
ANY = 1.0  # no rounding costs more

# Small layers: every activation, sizes that are no multiple of a tile, numbers of tokens in every tile size.
SMALL = [case for case in matrix.CASES if case.hidden * case.intermediate <= 1 << 17 and case.local_count <= 64]
CASES = [case for case in SMALL if case.num_tokens <= 257]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(13)


def make(weights, device="cpu", **options):
    defaults = {"num_experts": len(weights.w13), "top_k": K, "mode": "fp8", "device": device, "fp8_max_error": ANY}
    return runner.make_layer(weights, **(defaults | options))


def layer_weights(weights):
    fields = ("w13", "w13_block_scale", "w13_global_scale", "w2", "w2_block_scale", "w2_global_scale")
    return nvfp4_moe.LayerWeights(*(getattr(weights, name) for name in fields))


def with_any_scales(weights, generator):
    """Every block scale that there is, in the matrices of w13; so most lie below the floor."""
    scales = torch.randint(0, 0x7F, weights.w13_block_scale.shape, generator=generator, dtype=torch.uint8)
    return replace(weights, w13_block_scale=scales)


# ---- The layer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer_matches_float64_on_rounded_weights(case, device):
    generator = torch.Generator().manual_seed(case.num_tokens + case.hidden)
    ids = matrix.route(case, generator)
    local = local_ids(ids, case.num_experts, case.local_count, case.first_local)
    sizes = (case.local_count, case.hidden, case.intermediate)
    weights = generate.random_code_weights(*sizes, generator, gated=case.swiglu.gated)
    weights = weights.with_biases(generator) if case.bias else weights
    weights = weights.with_interleaved_rows() if case.interleaved else weights
    x = generate.tokens(case.num_tokens, case.hidden, generator)
    topk_weights = generate.random_topk_weights(case.num_tokens, case.top_k, generator)
    options = {"num_experts": case.num_experts, "top_k": case.top_k, "first_local_expert": case.first_local}
    layer = make(weights, device, swiglu=case.swiglu, **options)
    out = runner.run(layer, x, ids, topk_weights)
    rounded = rounding.RoundedLayer(weights, case.swiglu).forward(x, local, topk_weights, "fp8")
    exact = ReferenceLayer(weights, case.swiglu).forward(x, local, topk_weights, "fp8")
    assert relative_l2(out, rounded.out) <= gates.bound(rounded, "fp8", device, rounded=True)
    stated = layer.weight_error().rel_l2
    assert 0 < stated <= 2 / 42, "no product loses more than 6 * 1.75 does, which is 10.5 of which 10 is left"
    if case.swiglu.limit == 0 or exact.clamped < 0.5:  # where the clamp leaves the signs of up, one near 0 turns
        assert relative_l2(out, exact.out) <= gates.ROUNDED_WEIGHTS * stated + gates.bound(
            exact, "fp8", device, rounded=True
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("largest", [0x7E, 0x79, 0x40, 0x03])
def test_weights_are_the_references_bit_for_bit(generator, largest, device):
    """h is x where w13 is a unit matrix (see test_fp8.py), and x one value: columns of w2, which bf16 holds."""
    size = 256
    eye = torch.zeros(size, size, dtype=torch.uint8).fill_diagonal_(2)  # the code of 1
    ones = torch.full((1, 2 * size, size // 16), 0x38, dtype=torch.uint8)
    w13 = nvfp4.pack(torch.cat([eye, torch.zeros_like(eye)]))[None]
    packed = torch.randint(0, 256, (1, size, size // 2), generator=generator, dtype=torch.uint8)
    block_scale = torch.randint(0, largest + 1, (1, size, size // 16), generator=generator, dtype=torch.uint8)
    block_scale[0, 7, 3] = largest
    weights = generate.Weights(w13, ones, torch.ones(1, 2), packed, block_scale, torch.ones(1))
    layer = make(weights, device, top_k=1, swiglu=Swiglu(0.0, alpha=1e30, beta=1.0))
    out = runner.run(layer, torch.eye(size).bfloat16(), torch.zeros(size, 1, dtype=torch.int32))
    assert torch.equal(out.float().T, rounding.rounded_values(packed[0], block_scale[0]))


@pytest.mark.parametrize("device", DEVICES)
def test_exact_weights_stay_exact_bit_for_bit(generator, device):
    weights = generate.random_code_weights(E, H, INTER, generator, lossless=True)
    inputs = (
        generate.tokens(100, H, generator),
        generate.random_ids(100, E, K, generator),
        generate.random_topk_weights(100, K, generator),
    )
    options = {"device": device, "tile_rows": 0 if device == "cpu" else 48}
    rounds, exact = make(weights, **options), make(weights, **options, fp8_max_error=0.0)
    assert rounds.weight_error() == exact.weight_error() == (0.0, 0, "gate", 0.0, 0, "gate", 0, 0)
    a, b = (runner.run(layer, *inputs) for layer in (rounds, exact))
    if device == "cpu":  # one adds in the order of vectors, the other in that of an instruction set
        assert relative_l2(a, b.double()) < 4e-3
    else:
        assert torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize("device", DEVICES)
def test_a_token_alone_is_the_token_in_a_batch(generator, device):
    weights = generate.random_code_weights(E, H, INTER, generator)
    x, ids = generate.tokens(60, H, generator), generate.random_ids(60, E, K, generator)
    layer = make(weights, device, tile_rows=0 if device == "cpu" else 48)
    batch = runner.run(layer, x, ids)
    alone = torch.cat([runner.run(layer, x[t : t + 1], ids[t : t + 1]) for t in (0, 31, 59)])
    assert torch.equal(batch[[0, 31, 59]].view(torch.int16), alone.view(torch.int16))


@pytest.mark.parametrize("device", ["cuda"])
def test_a_graph_computes_with_weights_that_are_rounded_later(generator, device):
    """The description chooses the kernels: what was captured on exact weights serves any."""
    exact, ordinary = (generate.random_code_weights(E, H, INTER, generator, lossless=p) for p in (True, False))
    x, ids = generate.tokens(30, H, generator).cuda(), generate.random_ids(30, E, K, generator).cuda()
    layer, out = make(exact, device), torch.empty(30, H, dtype=torch.bfloat16, device="cuda")
    workspace = torch.empty(layer.workspace_size(30), dtype=torch.uint8, device="cuda")
    layer(x, ids, workspace=workspace, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer(x, ids, workspace=workspace, out=out)
    layer.prepare(layer_weights(ordinary).to(layer.device))
    graph.replay()
    assert torch.equal(out.cpu(), runner.run(make(ordinary, device), x.cpu(), ids.cpu()))


# ---- The error -----------------------------------------------------------------------------------------------------

ORDERS = {"gate_first": {}, "up_first": {"up_first": True}, "interleaved": {"interleaved": True}}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("any_scales", [False, True], ids=["like_a_checkpoints", "any_scales"])
def test_the_error_is_the_references(generator, order, any_scales, device):
    weights = replace(generate.random_code_weights(E, H, INTER, generator), **ORDERS[order])
    weights.w13_block_scale[1] = 0  # what is 0 has no error
    if any_scales:
        weights = with_any_scales(weights, generator)
    reference = rounding.RoundedLayer(weights)
    errors = [(e, name, own) for e in range(E) for name, own in reference.errors(e)._asdict().items()]
    got = make(weights, device).weight_error()
    expert, name, worst = max(errors, key=lambda found: found[2].rel_l2)
    assert (got.expert, got.matrix, got.rel_l2) == (expert, name, pytest.approx(worst.rel_l2, rel=1e-6))
    assert got.block_rel_l2 == pytest.approx(max(own.block_rel_l2 for _, _, own in errors), rel=1e-6)
    # Many blocks may be as bad: the one that is named is.
    packed, scales = getattr(weights, "w2" if got.block_matrix == "down" else "w13"), None
    scales = getattr(weights, "w2_block_scale" if got.block_matrix == "down" else "w13_block_scale")
    matrix_of = getattr(reference.expert(got.block_expert), got.block_matrix)
    row, part = (got.block_expert, got.block_row), slice(8 * got.block, 8 * got.block + 8)
    exact = nvfp4.decode_blocks(packed[row][None, part], scales[row][None, got.block : got.block + 1])
    in_matrix = (matrix_of.packed[:, part] == packed[row][part]).all(1) & (
        matrix_of.block_scale[:, got.block] == scales[row][got.block]
    )
    after = matrix_of.block_values[in_matrix][0, 16 * got.block : 16 * got.block + 16]
    assert relative_l2(after, exact[0].double()) == pytest.approx(got.block_rel_l2, rel=1e-6)


@pytest.mark.parametrize("device", ["cuda"])
def test_both_devices_report_the_same_bits(generator, device):
    weights = with_any_scales(generate.random_code_weights(E, H, INTER, generator), generator)
    assert make(weights, device).weight_error() == make(weights, "cpu").weight_error()


@pytest.mark.parametrize("device", DEVICES)
def test_more_than_is_allowed_is_refused_and_leaves_the_weights(generator, device):
    weights = generate.random_code_weights(E, H, INTER, generator)
    cost = make(weights, device).weight_error()
    message = (
        rf"relative L2 error of w.*\[{cost.expert}\].* in e4m3 is 0\.0\d+; it must be at most fp8_max_error, which is"
    )
    with pytest.raises(RuntimeError, match=message + r" 0\.001\. Use mode bf16, .* or allow more\."):
        make(weights, device, fp8_max_error=0.001)
    make(weights, device, fp8_max_error=cost.rel_l2 * 1.0001)

    exact = generate.random_code_weights(E, H, INTER, generator, lossless=True)
    layer = make(exact, device, fp8_max_error=0.001)
    x, ids = generate.tokens(9, H, generator), generate.random_ids(9, E, K, generator)
    before = runner.run(layer, x, ids)
    with pytest.raises(RuntimeError, match="in e4m3 is"):
        layer.prepare(layer_weights(weights).to(layer.device))
    assert torch.equal(runner.run(layer, x, ids), before)
    assert layer.weight_error().rel_l2 == 0


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"fp8_max_error": -0.1}, r"is -0\.1; it must be 0 \(weights are exact\) to 1"),
        ({"fp8_max_error": 1.5}, r"is 1\.5; it must be 0"),
        ({"fp8_max_error": float("nan")}, "is NaN; it must be 0"),
        ({"fp8_max_error": 0.1, "mode": "bf16"}, r"is 0\.1; it must be 0 in modes other than fp8"),
    ],
)
def test_what_means_nothing_is_refused(options, rule):
    sizes = {"hidden_size": H, "intermediate_size": INTER, "num_experts": E, "top_k": K}
    with pytest.raises(RuntimeError, match=f"fp8_max_error {rule}.* Pass 0, which rounds no weights"):
        nvfp4_moe.Layer(**sizes, **({"mode": "fp8"} | options))


def test_an_error_is_read_of_prepared_weights_alone():
    layer = nvfp4_moe.Layer(hidden_size=H, intermediate_size=INTER, num_experts=E, top_k=K, mode="fp8")
    with pytest.raises(nvfp4_moe.NotPreparedError):
        layer.weight_error()
