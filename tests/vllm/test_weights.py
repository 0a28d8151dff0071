# SPDX-License-Identifier: Apache-2.0
"""Our experts over parameters as vLLM lays them out: maps, padding, tensor-parallel shards, experts that move."""

import re
from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import (
    FusedMoEConfig,
    FusedMoEParallelConfig,
    FusedMoEQuantConfig,
    RoutingMethodType,
)

from nvfp4_moe.plugin import log, moe
from nvfp4_moe.plugin.experts import Nvfp4MoeExperts
from reference import generate
from reference.layer import ReferenceLayer, Swiglu, local_ids, relative_l2
from reference.rounding import RoundedLayer

EXPERTS, TOP_K, HIDDEN, INTER, TOKENS, LIMIT = 8, 3, 128, 96, 17, 10.0
BOUND = 5e-3


@pytest.fixture(scope="module")
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def weights(generator):
    return generate.normal_weights(EXPERTS, HIDDEN, INTER, generator)


@pytest.fixture(scope="module")
def batch(generator):
    x = generate.tokens(TOKENS, HIDDEN, generator)
    ids = generate.random_ids(TOKENS, EXPERTS, TOP_K, generator)
    ids[-2:] = -1  # padding
    return x, ids, generate.random_topk_weights(TOKENS, TOP_K, generator)


class Module(torch.nn.Module):
    """What vLLM's RoutedExperts holds after our method has named it."""

    def __init__(self, weights):
        super().__init__()
        self.layer_name, self.swiglu_alpha, self.swiglu_beta = "model.layers.0.mlp.experts", None, None
        e4m3 = torch.float8_e4m3fn
        self.w13_weight = parameter(weights.w13)
        self.w13_weight_scale = parameter(weights.w13_block_scale.view(e4m3))
        self.w13_weight_scale_2 = parameter(weights.w13_global_scale)
        self.w2_weight = parameter(weights.w2)
        self.w2_weight_scale = parameter(weights.w2_block_scale.view(e4m3))
        self.w2_weight_scale_2 = parameter(weights.w2_global_scale)


def parameter(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor.clone(), requires_grad=False)


def make_experts(module: Module, activation: MoEActivation = MoEActivation.SILU) -> Nvfp4MoeExperts:
    config = FusedMoEConfig(
        num_experts=EXPERTS,
        experts_per_token=TOP_K,
        hidden_dim=HIDDEN,
        intermediate_size=module.w13_weight.shape[1] // 2,
        num_local_experts=len(module.w13_weight),
        num_logical_experts=EXPERTS,
        activation=activation,
        device="cpu",
        routing_method=RoutingMethodType.Default,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
        in_dtype=torch.bfloat16,
        swiglu_limit=LIMIT,
    )
    experts = Nvfp4MoeExperts(config, FusedMoEQuantConfig.make())
    experts.process_weights_after_loading(module)
    return experts


def run(experts, x, ids, topk_weights, expert_map=None, weight_on_input=False) -> torch.Tensor:
    out = torch.full_like(x, torch.nan)
    nothing = torch.empty(0, dtype=x.dtype)
    experts.apply(
        output=out,
        hidden_states=x,
        w1=None,
        w2=None,
        topk_weights=topk_weights,
        topk_ids=ids,
        activation=MoEActivation.SILU,
        global_num_experts=EXPERTS,
        expert_map=expert_map,
        a1q_scale=None,
        a2_scale=None,
        workspace13=nothing,
        workspace2=nothing,
        expert_tokens_meta=None,
        apply_router_weight_on_input=weight_on_input,
    )
    return out


def reference(weights, x, ids, topk_weights, expert_map=None, **swiglu: float) -> torch.Tensor:
    local = local_ids(ids, EXPERTS, len(weights.w13), expert_map=expert_map)
    return ReferenceLayer(weights, Swiglu(limit=LIMIT, **swiglu)).forward(x, local, topk_weights).out


def test_padding_rows_become_zero_and_the_rest_is_right(weights, batch):
    out = run(make_experts(Module(weights)), *batch)
    assert relative_l2(out, reference(weights, *batch)) < BOUND
    assert not out[-2:].any()


def test_mode_fp8_rounds_weights_where_a_setting_allows_it_and_says_what_it_cost(weights, batch, monkeypatch):
    monkeypatch.setenv("NVFP4_MOE_MODE", "fp8")
    with pytest.raises(ValueError, match=r"no power of two in .* To have them rounded, set fp8_max_error"):
        make_experts(Module(weights))
    monkeypatch.setenv("NVFP4_MOE_FP8_MAX_ERROR", "0.001")
    with pytest.raises(
        ValueError, match=r"experts: relative L2 error of .* must be at most fp8_max_error, which is 0\.001"
    ):
        make_experts(Module(weights))
    monkeypatch.setenv("NVFP4_MOE_FP8_MAX_ERROR", "0.04")
    said = []
    monkeypatch.setattr(log.logger, "info", lambda text, *words: said.append(text % words))
    out = run(make_experts(Module(weights)), *batch)
    assert len(said) == 1
    assert re.search(r"experts: weights rounded to e4m3, relative L2 error 0\.0\d+ at most .*, worst block ", said[0])
    x, ids, topk_weights = batch
    local = local_ids(ids, EXPERTS, EXPERTS)
    wanted = RoundedLayer(weights, Swiglu(limit=LIMIT)).forward(x, local, topk_weights, "fp8")
    assert relative_l2(out, wanted.out) < BOUND + wanted.slack


def test_mode_fp8_finds_scales_that_are_equal_in_pairs_and_stays_with_them(batch, monkeypatch, generator):
    monkeypatch.setenv("NVFP4_MOE_MODE", "fp8")
    cast, other = (
        generate.normal_weights(EXPERTS, HIDDEN, INTER, generator, lossless=True, scale_block_size=size)
        for size in (32, 16)
    )
    x, ids, topk_weights = batch
    for weights, size in ((cast, 32), (other, 16)):
        experts = make_experts(Module(weights))
        assert experts.layer.scale_block_size == size
        wanted = ReferenceLayer(weights, Swiglu(limit=LIMIT))
        result = wanted.forward(x, local_ids(ids, EXPERTS, EXPERTS), topk_weights, "fp8")
        assert relative_l2(run(experts, *batch), result.out) < BOUND + result.slack
        experts.process_weights_after_loading(Module(cast))  # a reload of what fits both
    paired = make_experts(Module(cast))
    with pytest.raises(
        ValueError, match=r"experts: w13_block_scale\[0\].* scale_block_size 32 needs one scale in both"
    ):
        paired.process_weights_after_loading(Module(other))


def test_weights_already_on_the_input_are_not_applied_again(weights, batch):
    x, ids, topk_weights = batch
    out = run(make_experts(Module(weights)), x, ids, topk_weights, weight_on_input=True)
    assert relative_l2(out, reference(weights, x, ids, None)) < BOUND


def test_alpha_and_beta_of_the_activation_count_only_where_vllm_asks_for_them(weights, batch):
    module = Module(weights)
    module.swiglu_alpha, module.swiglu_beta = 1.702, 1.0
    asked = run(make_experts(module, MoEActivation.SWIGLUOAI_UNINTERLEAVE), *batch)
    assert relative_l2(asked, reference(weights, *batch, alpha=1.702, beta=1.0)) < BOUND
    assert relative_l2(run(make_experts(module), *batch), reference(weights, *batch)) < BOUND


def test_ranks_of_expert_parallel_add_up(weights, batch):
    """Two ranks with four experts each, dealt in turn, as an expert_map may."""
    total = 0
    for rank in (0, 1):
        mine = list(range(rank, EXPERTS, 2))
        expert_map = torch.full((EXPERTS,), -1, dtype=torch.int32)
        expert_map[mine] = torch.arange(len(mine), dtype=torch.int32)
        part = pick(weights, mine)
        out = run(make_experts(Module(part)), *batch, expert_map=expert_map)
        assert relative_l2(out, reference(part, *batch, expert_map=expert_map)) < BOUND
        total = total + out.double()
    assert relative_l2(total, reference(weights, *batch)) < BOUND


def pick(weights, experts: list[int]) -> generate.Weights:
    names = ("w13", "w13_block_scale", "w13_global_scale", "w2", "w2_block_scale", "w2_global_scale")
    return generate.Weights(**{name: getattr(weights, name)[experts] for name in names})


def test_experts_that_move_need_no_new_layer(weights, batch):
    """EPLB copies rows of what vLLM lists as expert weights, in place, and changes the map; we read where they lie."""
    x, ids, topk_weights = batch
    module = Module(weights)
    experts = make_experts(module)
    before = run(experts, x, ids, topk_weights)
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    module.local_num_experts = EXPERTS
    moved = RoutedExperts.get_expert_weights(module)
    assert len(moved) == 6  # weights, block scales and global scales of both GEMMs
    for rows in moved:
        rows.data.copy_(rows.data[order].clone())
    expert_map = torch.empty(EXPERTS, dtype=torch.int32)
    expert_map[order] = torch.arange(EXPERTS, dtype=torch.int32)
    assert torch.equal(run(experts, x, ids, topk_weights, expert_map=expert_map), before)


def test_prepared_experts_are_what_eplb_moves(weights):
    """Where the library keeps experts repacked, vLLM lists their slices instead of the originals, which are gone."""
    module = Module(weights)
    module.local_num_experts = EXPERTS
    slices = torch.arange(EXPERTS * 64, dtype=torch.uint8).view(EXPERTS, 64)
    moe.free_originals(module, slices)
    moved = list(RoutedExperts.get_expert_weights(module))
    assert len(moved) == 3  # the slices, and the global scales of both GEMMs
    assert next(rows for rows in moved if rows.data_ptr() == slices.data_ptr()).shape == slices.shape
    assert all(rows.shape[0] == EXPERTS and rows.numel() for rows in moved)
    assert module.w13_weight.shape[:2] == weights.w13.shape[:2]
    assert not module.w13_weight.numel()


def test_weights_are_used_in_place(weights):
    """The layer reads vLLM's own storage: a weight changed there changes the output."""
    module = Module(weights)
    experts = make_experts(module)
    x, ids = torch.ones(1, HIDDEN, dtype=torch.bfloat16), torch.zeros(1, TOP_K, dtype=torch.int32)
    ones = torch.ones(1, TOP_K)
    before = run(experts, x, ids, ones)
    module.w2_weight.data.zero_()
    assert before.any()
    assert not run(experts, x, ids, ones).any()


def test_a_shard_that_is_no_multiple_of_the_tile_is_padded_by_halves(weights, batch, monkeypatch):
    """Two tensor-parallel ranks of 48 rows under a tile of 64, filled by vLLM's own loader; their outputs add up."""
    monkeypatch.setattr(moe, "INTERMEDIATE_TILE", 64)
    method = object.__new__(moe.ModelOptMoE)
    parallel = FusedMoEParallelConfig.make_no_parallel()
    hidden, padded = method.maybe_roundup_sizes(HIDDEN, INTER // 2, torch.bfloat16, parallel)
    assert (hidden, padded) == (HIDDEN, 64)
    shards = [padded_shard(weights, rank, padded) for rank in (0, 1)]
    assert not shards[0].w13[:, 48:64].any()
    assert torch.equal(shards[0].w13[:, 64 : 64 + 48], weights.w13[:, INTER : INTER + 48])
    total = sum(run(make_experts(Module(shard)), *batch).double() for shard in shards)
    assert relative_l2(total, reference(weights, *batch)) < BOUND


def padded_shard(weights, rank: int, padded: int) -> generate.Weights:
    loader = object.__new__(RoutedExperts)
    loader.__dict__.update(
        moe_config=SimpleNamespace(is_act_and_mul=True, moe_parallel_config=SimpleNamespace(tp_size=2)),
        hidden_size=HIDDEN,
    )
    shard = generate.Weights(
        w13=torch.zeros(EXPERTS, 2 * padded, HIDDEN // 2, dtype=torch.uint8),
        w13_block_scale=torch.zeros(EXPERTS, 2 * padded, HIDDEN // 16, dtype=torch.uint8),
        w13_global_scale=weights.w13_global_scale,
        w2=torch.zeros(EXPERTS, HIDDEN, padded // 2, dtype=torch.uint8),
        w2_block_scale=torch.zeros(EXPERTS, HIDDEN, padded // 16, dtype=torch.uint8),
        w2_global_scale=weights.w2_global_scale,
    )
    for expert in range(EXPERTS):
        for name in ("w13", "w13_block_scale"):
            gate, up = getattr(weights, name)[expert].chunk(2)
            loader._load_w13(getattr(shard, name)[expert], 0, "w1", gate, rank)
            loader._load_w13(getattr(shard, name)[expert], 0, "w3", up, rank)
        for name in ("w2", "w2_block_scale"):
            loader._load_w2(getattr(shard, name)[expert], 1, getattr(weights, name)[expert], rank)
    return shard


def test_a_shard_that_splits_a_block_is_refused_with_the_number():
    method = object.__new__(moe.ModelOptMoE)
    parallel = FusedMoEParallelConfig.make_no_parallel()
    with pytest.raises(ValueError, match="intermediate_size_per_partition is 24; it must be a multiple of 16"):
        method.maybe_roundup_sizes(HIDDEN, 24, torch.bfloat16, parallel)


def test_a_missing_scale_is_refused_by_layer_and_name(weights):
    module = Module(weights)
    module.w2_weight_scale_2.data[5] = torch.nan
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.experts: w2_global_scale\[5\] is NaN"):
        make_experts(module)
