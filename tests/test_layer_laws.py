# SPDX-License-Identifier: Apache-2.0
"""Laws that need no oracle, or that the matrix does not reach: bits, hostile data, calibration, scale policies."""

import threading
from dataclasses import replace

import pytest
import torch

import matrix
import nvfp4_moe
import runner
from reference import gates, generate
from reference.layer import ReferenceLayer, Swiglu, local_ids, relative_l2

E, K, H, INTER = 8, 3, 256, 192
MODES = matrix.MODES
DEVICES = runner.DEVICES


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture
def weights(request, generator):
    """Such as the test's mode takes."""
    mode = getattr(request.node, "callspec", None) and request.node.callspec.params.get("mode")
    made = generate.random_code_weights(E, H, INTER, generator, lossless=mode == "fp8")
    return made.with_input_scales(4.0, 4.0)


def batch(num_tokens, generator):
    return (
        generate.tokens(num_tokens, H, generator),
        generate.random_ids(num_tokens, E, K, generator),
        generate.random_topk_weights(num_tokens, K, generator),
    )


def bits(tensor):
    return tensor.view(torch.int16)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("device", DEVICES)
class TestBits:
    def test_permuted_tokens_give_permuted_outputs(self, weights, generator, mode, device):
        layer = runner.make_layer(weights, num_experts=E, top_k=K, mode=mode, device=device)
        inputs = batch(100, generator)
        order = torch.randperm(100, generator=generator)
        out = runner.run(layer, *inputs)
        permuted = runner.run(layer, *(t[order] for t in inputs))
        assert torch.equal(bits(out[order]), bits(permuted))

    def test_twice_gives_the_same_bits(self, weights, generator, mode, device):
        layer = runner.make_layer(weights, num_experts=E, top_k=K, mode=mode, device=device)
        inputs = batch(130, generator)
        first = runner.run(layer, *inputs)
        for _ in range(5):
            assert torch.equal(bits(first), bits(runner.run(layer, *inputs)))

    def test_a_token_alone_equals_the_token_in_a_batch(self, weights, generator, mode, device):
        # Hopper splits the reduction by the row-tile size: batches of up to 8 keep the order of one token.
        num_tokens = 8 if device == "cuda" else 70
        layer = runner.make_layer(weights, num_experts=E, top_k=K, mode=mode, device=device)
        inputs = batch(num_tokens, generator)
        out = runner.run(layer, *inputs)
        for t in (0, 1, num_tokens // 2, num_tokens - 1):
            assert torch.equal(bits(out[t : t + 1]), bits(runner.run(layer, *(i[t : t + 1] for i in inputs))))

    def test_a_nan_row_and_an_inf_row_stay_in_their_rows(self, weights, generator, mode, device):
        layer = runner.make_layer(weights, num_experts=E, top_k=K, mode=mode, device=device)
        x, ids, topk_weights = batch(40, generator)
        clean = runner.run(layer, x, ids, topk_weights)
        x[5, 17] = torch.nan
        x[21, 3] = torch.inf
        dirty = runner.run(layer, x, ids, topk_weights)
        assert dirty[5].isnan().all()
        others = [t for t in range(40) if t not in (5, 21)]
        assert torch.equal(bits(clean[others]), bits(dirty[others]))

    def test_hostile_ids_change_nothing_else(self, weights, generator, mode, device):
        layer = runner.make_layer(weights, num_experts=E, top_k=K, mode=mode, device=device)
        x, ids, topk_weights = batch(32, generator)
        clean = runner.run(layer, x, ids, topk_weights)
        hostile = torch.tensor(generate.hostile_ids(E, torch.int64))
        ids = ids.long()
        ids[8:12] = hostile[:12].view(4, 3)
        out = runner.run(layer, x, ids, topk_weights)
        assert (out[8:12] == 0).all()
        others = [t for t in range(32) if not 8 <= t < 12]
        assert torch.equal(bits(clean[others]), bits(out[others]))

    def test_id_dtypes_agree(self, weights, generator, mode, device):
        layer = runner.make_layer(weights, num_experts=E, top_k=K, mode=mode, device=device)
        x, ids, topk_weights = batch(9, generator)
        assert torch.equal(
            bits(runner.run(layer, x, ids, topk_weights)), bits(runner.run(layer, x, ids.long(), topk_weights))
        )

    def test_no_weights_means_one(self, weights, generator, mode, device):
        layer = runner.make_layer(weights, num_experts=E, top_k=K, mode=mode, device=device)
        x, ids, _ = batch(9, generator)
        assert torch.equal(bits(runner.run(layer, x, ids)), bits(runner.run(layer, x, ids, torch.ones(9, K))))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("outlier", [1e4, 1e6])
@pytest.mark.parametrize("every", [16, H])
def test_what_stands_beside_an_outlier_is_not_lost(weights, generator, device, outlier, every):
    """Weights of the outliers' columns are 0, as trained ones nearly are; calibrate computes as mode bf16 does."""
    x, ids, topk_weights = batch(20, generator)
    ordinary = x[10:].clone()
    x[:, ::every] = outlier
    x[10:] = ordinary  # half of the batch has none
    weights.w13[:, :, :: every // 2] &= 0xF0
    reference = ReferenceLayer(weights).forward(x, ids.long(), topk_weights).out
    layer = runner.make_layer(weights, num_experts=E, top_k=K, mode="bf16", device=device)
    out = runner.run(layer, x, ids, topk_weights)
    inputs = (t.to(layer.device) for t in (x, ids, topk_weights))
    assert torch.equal(bits(out), bits(layer.calibrate(*inputs).cpu()))
    for rows in (slice(10), slice(10, 20)):
        assert relative_l2(out[rows], reference[rows]) <= gates.REL_L2


def test_hostile_ids_are_counted(weights, generator):
    layer = runner.make_layer(weights, num_experts=E, top_k=K)
    x, ids, topk_weights = batch(6, generator)
    nvfp4_moe.reset_device_status()
    runner.run(layer, x, ids, topk_weights)
    assert nvfp4_moe.read_device_status().out_of_range_ids == 0
    ids[4] = torch.tensor([-1, E, -(2**31)])  # -1 is padding and no offence
    runner.run(layer, x, ids, topk_weights)
    status = nvfp4_moe.read_device_status()
    assert (status.out_of_range_ids, status.first_bad_token) == (2, 4)
    nvfp4_moe.reset_device_status()
    assert nvfp4_moe.read_device_status() == (0, 0, 0, -1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_sum_to_the_whole(weights, generator, mode, device, num_ranks):
    x, ids, topk_weights = batch(50, generator)
    whole = runner.run(
        runner.make_layer(weights, num_experts=E, top_k=K, mode=mode, device=device), x, ids, topk_weights
    )
    count = E // num_ranks
    total = torch.zeros(50, H, dtype=torch.float64)
    for rank in range(num_ranks):
        part = weights.experts(rank * count, count)
        options = {"num_experts": E, "top_k": K, "mode": mode, "device": device}
        shard = runner.run(runner.make_layer(part, first_local_expert=rank * count, **options), x, ids, topk_weights)
        # The same shard, said with a map in which the local experts stand in reverse.
        expert_map = torch.full((E,), -1, dtype=torch.int32)
        expert_map[rank * count : (rank + 1) * count] = torch.arange(count - 1, -1, -1, dtype=torch.int32)
        backwards = {
            name: getattr(part, name).flip(0)
            for name in ("w13", "w13_block_scale", "w13_global_scale", "w2", "w2_block_scale", "w2_global_scale")
        }
        mapped = runner.run(runner.make_layer(replace(part, **backwards), **options), x, ids, topk_weights, expert_map)
        assert torch.equal(bits(shard), bits(mapped))
        total += shard.double()
    assert relative_l2(whole, total) <= gates.REL_L2


def test_hostile_expert_map_is_skipped_and_counted(weights, generator):
    layer = runner.make_layer(weights.experts(0, 4), num_experts=E, top_k=K)
    x, ids, topk_weights = batch(12, generator)
    good = torch.tensor([0, 1, -1, -1, -1, -1, -1, -1], dtype=torch.int32)
    bad = torch.tensor([0, 1, 4, 123456789, 98765, 2071690107, -7, -(2**31)], dtype=torch.int32)
    nvfp4_moe.reset_device_status()
    expected = runner.run(layer, x, ids, topk_weights, good)
    assert nvfp4_moe.read_device_status().out_of_range_ids == 0
    assert torch.equal(bits(expected), bits(runner.run(layer, x, ids, topk_weights, bad)))
    assert nvfp4_moe.read_device_status().out_of_range_ids == int((ids >= 2).sum())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("up_first", [False, True])
@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_scale_policies_and_row_order(weights, generator, device, up_first, policy):
    x, ids, topk_weights = batch(64, generator)
    x *= torch.logspace(-3, 3, 64).bfloat16()[:, None]  # rows of very different size
    weights = replace(weights, up_first=up_first)
    reference = ReferenceLayer(weights, Swiglu(10.0))
    scales = (None, None)
    if policy == "static":
        bf16 = reference.forward(x, ids.long(), topk_weights)
        weights = weights.with_input_scales(bf16.x_amax, bf16.h_amax)
        scales = (weights.w13_input_scale, weights.w2_input_scale)
    options = {"num_experts": E, "top_k": K, "swiglu": Swiglu(10.0), "device": device}
    layer = runner.make_layer(weights, mode="nvfp4", scale_policy=policy, **options)
    result = reference.forward(x, ids.long(), topk_weights, "nvfp4", scales)
    out = runner.run(layer, x, ids, topk_weights)
    assert relative_l2(out, result.out) <= gates.REL_L2 + result.slack


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("x_amax", "h_amax"), [(0.05, 4.0), (5.0, 0.01)])
def test_live_values_above_the_calibrated_ones_saturate_and_are_counted(weights, generator, device, x_amax, h_amax):
    weights = weights.with_input_scales(x_amax, h_amax)
    layer = runner.make_layer(weights, num_experts=E, top_k=K, mode="nvfp4", device=device)
    x, ids, topk_weights = batch(16, generator)
    nvfp4_moe.reset_device_status(device)
    out = runner.run(layer, x, ids, topk_weights)
    status = nvfp4_moe.read_device_status(device)
    if x_amax < 1:
        assert status.saturated_blocks == 16 * H // 16, "every block of x"
    else:
        assert 16 * K * INTER // 16 * 0.5 < status.saturated_blocks <= 16 * K * INTER // 16, "most blocks of h"
    assert status.nonfinite_values == 0
    scales = (weights.w13_input_scale, weights.w2_input_scale)
    result = ReferenceLayer(weights).forward(x, ids.long(), topk_weights, "nvfp4", scales)
    assert relative_l2(out, result.out) <= gates.REL_L2 + result.slack


def test_without_input_scales_static_nvfp4_refuses(weights, generator):
    bare = replace(weights, w13_input_scale=0.0, w2_input_scale=0.0)
    x, ids, topk_weights = batch(2, generator)
    with pytest.raises(RuntimeError, match="input_scale"):
        runner.run(runner.make_layer(bare, num_experts=E, top_k=K, mode="nvfp4"), x, ids, topk_weights)
    # It needs none in mode bf16, and in the dynamic policy.
    runner.run(runner.make_layer(bare, num_experts=E, top_k=K), x, ids, topk_weights)
    runner.run(
        runner.make_layer(bare, num_experts=E, top_k=K, mode="nvfp4", scale_policy="dynamic"), x, ids, topk_weights
    )


@pytest.mark.parametrize("device", DEVICES)
def test_calibration_sees_the_largest_inputs_of_all_calls(weights, generator, device):
    layer = runner.make_layer(weights, num_experts=E, top_k=K, mode="nvfp4", device=device)
    with pytest.raises(RuntimeError, match=r"calibrat"):
        layer.calibrated_scales()
    bf16 = runner.make_layer(weights, num_experts=E, top_k=K, mode="bf16", device=device)
    reference = ReferenceLayer(weights)
    x_amax = h_amax = 0.0
    for size in (1.0, 3.0, 2.0):
        x, ids, topk_weights = batch(20, generator)
        x = (x * size).bfloat16()
        result = reference.forward(x, ids.long(), topk_weights)
        x_amax, h_amax = max(x_amax, result.x_amax), max(h_amax, result.h_amax)
        workspace = runner.poisoned(layer.workspace_size(20), dtype=torch.uint8, device=layer.device)
        inputs = (t.to(layer.device) for t in (x, ids, topk_weights))
        out = layer.calibrate(*inputs, workspace=workspace).cpu()
        assert torch.equal(bits(out), bits(runner.run(bf16, x, ids, topk_weights)))
    w13_input_scale, w2_input_scale = layer.calibrated_scales()
    assert w13_input_scale == pytest.approx(x_amax / 2688, rel=1e-6)
    assert w2_input_scale == pytest.approx(h_amax / 2688, rel=2**-8)  # h is seen as bf16
    with pytest.raises(RuntimeError, match=r"calibrat"):  # forgotten once told
        layer.calibrated_scales()
    layer.set_input_scales(w13_input_scale, w2_input_scale)
    out = runner.run(layer, x, ids, topk_weights)
    result = reference.forward(x, ids.long(), topk_weights, "nvfp4", (w13_input_scale, w2_input_scale))
    assert relative_l2(out, result.out) <= gates.REL_L2 + result.slack


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 2.0**-111])
def test_bad_input_scales_are_refused(weights, value):
    layer = runner.make_layer(weights, num_experts=E, top_k=K, mode="nvfp4")
    with pytest.raises(RuntimeError, match=r"2\^-110"):
        layer.set_input_scales(value, 1.0)
    with pytest.raises(RuntimeError, match=r"2\^-110"):
        layer.set_input_scales(1.0, value)


@pytest.mark.parametrize("device", DEVICES)
def test_topk_weights_zero_negative_and_huge(weights, generator, device):
    layer = runner.make_layer(weights, num_experts=E, top_k=K, device=device)
    x, ids, topk_weights = batch(8, generator)
    topk_weights[0] = 0
    topk_weights[1] = -topk_weights[1]
    topk_weights[2] = 1e30
    out = runner.run(layer, x, ids, topk_weights)
    reference = ReferenceLayer(weights).forward(x, ids.long(), topk_weights).out
    for t in range(8):
        assert relative_l2(out[t], reference[t]) <= gates.REL_L2, t


@pytest.mark.parametrize("mode", MODES)
def test_threads_and_their_number_change_no_bit(weights, generator, mode):
    layer = runner.make_layer(weights, num_experts=E, top_k=K, mode=mode)
    inputs = batch(200, generator)
    expected = runner.run(layer, *inputs)
    nvfp4_moe.set_num_threads(1)
    try:
        assert torch.equal(bits(expected), bits(runner.run(layer, *inputs)))
    finally:
        nvfp4_moe.set_num_threads(0)
    # One layer, many threads: half with a workspace of their own, half with the library's.
    results = [None] * 8

    def work(i):
        results[i] = runner.run(layer, *inputs) if i % 2 else layer(*inputs)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(bits(expected), bits(result)) for result in results)


def test_ids_of_every_shard_meet_the_oracle_of_routing():
    ids = torch.tensor([[0, 5], [-1, 7], [8, 2**31 - 1], [4, 4]], dtype=torch.int32)
    assert local_ids(ids, 8, 4, 4).tolist() == [[-1, 1], [-1, 3], [-1, -1], [0, 0]]
