# SPDX-License-Identifier: Apache-2.0
"""A layer of experts and a linear whose weights vLLM loads again, by its own reload: same handle, same memory."""

from types import SimpleNamespace

import pytest
import tiny_layers
import torch
from tiny_layers import (
    EXPERTS,
    FORMATS,
    NAME,
    load_experts,
    load_linear,
    make_experts,
    make_linear,
    process,
    run_experts,
    run_linear,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
    record_metadata_for_reloading,
)

from nvfp4_moe.plugin import experts, linear_library, moe, settings


@pytest.fixture(scope="module", autouse=True)
def _engine():
    with tiny_layers.engine():
        yield


def loaded(layer, load, **values):
    """As at the start of an engine: vLLM notes what the parameters are, loads, and processes."""
    record_metadata_for_reloading(layer)
    load(layer, **values)
    return process(layer)


def reload(layer, load, **values) -> None:
    """As `reload_weights` does with a whole model, of which only this layer's tensors come."""
    initialize_layerwise_reload(layer)
    load(layer, **values)
    finalize_layerwise_reload(layer, None)


def addresses(layer) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in layer.named_parameters()}


def experts_of(layer):
    return layer.quant_method.moe_kernel.fused_experts


@pytest.mark.parametrize("mode", ["bf16", "nvfp4"])
@pytest.mark.parametrize("format", FORMATS)
def test_experts_loaded_again_compute_with_the_new_weights_where_the_old_were(monkeypatch, format, mode):
    """Three times, as after three steps of training; input scales change, too."""
    monkeypatch.setenv("NVFP4_MOE_MODE", mode)
    load = lambda layer, seed: load_experts(layer, format, seed=seed, w1_0=0.002 * (1 + seed))  # noqa: E731
    layer = loaded(make_experts(format), load, seed=0)
    kernel, handle, before = experts_of(layer), experts_of(layer).layer.id, addresses(layer)
    first = run_experts(layer)
    for seed in (1, 2, 0):
        reload(layer, load, seed=seed)
        fresh = loaded(make_experts(format), load, seed=seed)
        assert torch.equal(run_experts(layer), run_experts(fresh))
        assert addresses(layer) == before
        assert (experts_of(layer), kernel.layer.id) == (kernel, handle)
        # What the library reads are vLLM's parameters, not copies of them.
        read = {tensor.data_ptr() for tensor in vars(kernel.handle.weights).values() if torch.is_tensor(tensor)}
        assert len(read) == 6
        assert read <= set(before.values())
    assert torch.equal(run_experts(layer), first)


def test_another_ranks_expert_after_a_reload_leaves_the_weights(monkeypatch):
    """Under expert parallel, tensors of a file go on to come when all of this rank's have."""
    load = lambda layer, seed: load_experts(layer, "modelopt", seed=seed)  # noqa: E731
    layer = loaded(make_experts("modelopt"), load, seed=0)
    reload(layer, load, seed=1)
    before = run_experts(layer)
    monkeypatch.setattr(layer, "_map_global_expert_id_to_local_expert_id", lambda expert: -1)
    for name in ("w13_weight", "w13_weight_scale", "w2_weight"):
        weight = getattr(layer, name)
        shard = "w2" if name.startswith("w2") else "w3"
        weight.weight_loader(weight, weight[0], f"9.{name}", shard_id=shard, expert_id=9)
    assert torch.equal(run_experts(layer), before)


@pytest.mark.parametrize("format", FORMATS)
def test_what_eplb_moves_after_a_reload_is_what_the_layer_reads(format):
    """vLLM lists the rows once, when it starts."""
    load = lambda layer, seed: load_experts(layer, format, seed=seed)  # noqa: E731
    layer = loaded(make_experts(format), load, seed=0)
    rows_of_each = list(layer.get_expert_weights())
    reload(layer, load, seed=1)
    before = run_experts(layer)
    order = torch.tensor([2, 0, 3, 1])
    for rows in rows_of_each:
        rows.data.copy_(rows.data[order].clone())
    expert_map = torch.empty(EXPERTS, dtype=torch.int32)
    expert_map[order] = torch.arange(EXPERTS, dtype=torch.int32)
    assert torch.equal(run_experts(layer, expert_map), before)
    assert not torch.equal(run_experts(layer), before)


@pytest.mark.parametrize("what", ["weight", "block", "global"])
@pytest.mark.parametrize("format", FORMATS)
def test_what_a_reload_does_not_bring_is_refused(format, what):
    """vLLM makes the parameters anew, of whatever memory held; all of w2 is missing, so no loader was called."""
    name = FORMATS[format][1].get(what, "weight_scale")
    load = lambda layer, **skipped: load_experts(layer, format, **skipped)  # noqa: E731
    layer = loaded(make_experts(format), load)
    with pytest.raises(ValueError, match=rf"{NAME}: w2_{name} of experts 0, 1, 2, 3 is missing"):
        reload(layer, load, skip=lambda expert, tensor: tensor == f"w2.{name}")


def test_one_missing_tensor_of_a_reload_is_refused_by_expert():
    load = lambda layer, **skipped: load_experts(layer, "modelopt", **skipped)  # noqa: E731
    layer = loaded(make_experts("modelopt"), load)
    with pytest.raises(ValueError, match=rf"{NAME}: w13_weight of expert 2 is missing"):
        reload(layer, load, skip=lambda expert, tensor: expert == 2 and tensor == "w3.weight")


def test_a_layer_that_would_now_be_made_in_another_way_needs_a_restart(monkeypatch):
    load = lambda layer: load_experts(layer, "modelopt")  # noqa: E731
    monkeypatch.setenv("NVFP4_MOE_MODE", "bf16")
    layer = loaded(make_experts("modelopt"), load)
    monkeypatch.setenv("NVFP4_MOE_MODE", "nvfp4")
    with pytest.raises(ValueError, match=rf"{NAME}: mode is nvfp4; it must stay bf16 .*Restart the engine"):
        reload(layer, load)


def test_broken_scales_of_a_reload_leave_the_layer_as_it_was():
    load = lambda layer, **values: load_experts(layer, "modelopt", **values)  # noqa: E731
    layer = loaded(make_experts("modelopt"), load)
    before = run_experts(layer)

    def load_broken(layer):
        load(layer, seed=1, skip=lambda expert, tensor: tensor == "w2.weight_scale_2" and expert == 3)
        parameter = dict(layer.named_parameters())["w2_weight_scale_2"]
        infinite = torch.tensor(float("inf"))
        parameter.weight_loader(parameter, infinite, "3.w2_weight_scale_2", shard_id="w2", expert_id=3)

    with pytest.raises(ValueError, match=rf"{NAME}: w2_global_scale"):
        reload(layer, load_broken)
    assert torch.equal(run_experts(layer), before)


# ---- Where the library repacks: a stand-in for its layer on a GPU ----------------------------------------------------


class OnGpu:
    """Keeps a byte of each weight, in storage of its own, as the library does on CUDA."""

    def __init__(self, **options):
        self.device, self.expert_slices, self.storage = SimpleNamespace(type="cuda"), None, None

    def prepare(self, weights):
        if hasattr(weights, "w13"):
            made = weights.w13.flatten(1).clone()
            self.expert_slices = made if self.expert_slices is None else self.expert_slices.copy_(made)
        else:
            made = weights.weight.clone()
            self.storage = made if self.storage is None else self.storage.copy_(made)
        return self

    def workspace_size(self, tokens):
        return 0


def test_the_experts_own_storage_stays_a_parameter_at_its_address(monkeypatch):
    monkeypatch.setattr(experts, "Layer", OnGpu)
    monkeypatch.setattr(moe.current_platform, "is_cpu", lambda: False, raising=False)
    load = lambda layer, seed: load_experts(layer, "modelopt", seed=seed)  # noqa: E731
    layer = loaded(make_experts("modelopt"), load, seed=0)
    slices, listed, before = layer.expert_slices, list(layer.get_expert_weights()), addresses(layer)
    for seed in (1, 2):
        reload(layer, load, seed=seed)
        assert layer.expert_slices is slices
        assert torch.equal(slices, loaded(make_experts("modelopt"), load, seed=seed).expert_slices)
        assert addresses(layer) == before
        assert [rows.data_ptr() for rows in layer.get_expert_weights()] == [rows.data_ptr() for rows in listed]
        assert not sum(buffer.numel() for name, buffer in layer.named_buffers() if name.startswith("w"))


def test_a_linears_own_storage_stays_a_parameter_at_its_address(monkeypatch):
    monkeypatch.setattr(linear_library, "Linear", OnGpu)
    load = lambda layer, seed: load_linear(layer, "modelopt", seed=seed)  # noqa: E731
    linear = loaded(make_linear("modelopt"), load, seed=0)
    storage, before = linear.nvfp4_moe_storage, addresses(linear)
    for seed in (1, 2):
        reload(linear, load, seed=seed)
        assert linear.nvfp4_moe_storage is storage
        assert torch.equal(storage, loaded(make_linear("modelopt"), load, seed=seed).nvfp4_moe_storage)
        assert addresses(linear) == before
        assert not linear.weight.numel()


# ---- Linears ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["", "*"], ids=["library", "bf16"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("format", FORMATS)
def test_a_linear_loaded_again_computes_with_the_new_weights_where_the_old_were(monkeypatch, format, parts, override):
    monkeypatch.setenv(settings.BF16_LINEARS, override)
    monkeypatch.setattr("nvfp4_moe.plugin.linear_bf16.counts_as_request", lambda x: False)
    load = lambda layer, seed: load_linear(layer, format, parts, seed=seed)  # noqa: E731
    linear = loaded(make_linear(format, parts=parts), load, seed=0)
    runner, before = linear.nvfp4_moe_linear, addresses(linear)
    for seed in (1, 2):
        reload(linear, load, seed=seed)
        fresh = loaded(make_linear(format, parts=parts), load, seed=seed)
        assert torch.equal(run_linear(linear), run_linear(fresh))
        assert addresses(linear) == before
        assert linear.nvfp4_moe_linear is runner


def test_a_linear_that_would_now_be_served_otherwise_needs_a_restart(monkeypatch):
    load = lambda layer: load_linear(layer, "modelopt")  # noqa: E731
    linear = loaded(make_linear("modelopt"), load)
    monkeypatch.setenv(settings.BF16_LINEARS, "*")
    with pytest.raises(ValueError, match=r"qkv: kind is Bf16Linear; it must stay Nvfp4Linear .*Restart the engine"):
        reload(linear, load)


@pytest.mark.parametrize("what", ["weight", "block", "global"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("format", FORMATS)
def test_what_of_a_linear_never_came_is_refused_by_part_and_tensor(format, parts, what):
    """At the first load and at a reload."""
    name = FORMATS[format][1].get(what, "weight_scale")
    load = lambda layer, skip: load_linear(layer, format, parts, skip)  # noqa: E731
    text = rf"model.layers.0.qkv: {name} of part {parts - 1} is missing; every part must have all its tensors"
    with pytest.raises(ValueError, match=text):
        loaded(make_linear(format, parts=parts), load, skip=name)
    linear = loaded(make_linear(format, parts=parts), load, skip="")
    with pytest.raises(ValueError, match=text):
        reload(linear, load, skip=name)
