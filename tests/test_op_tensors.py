# SPDX-License-Identifier: Apache-2.0
"""Which tensors the ops take beside the plain ones, and where prepared weights lie."""

from dataclasses import replace

import pytest
import torch

import nvfp4_moe
from nvfp4_moe import ops
from reference import generate

E, K, H, INTER, T = 4, 2, 64, 32, 5
OPS = ops.load()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


@pytest.fixture
def weights(generator):
    made = generate.random_code_weights(E, H, INTER, generator)
    names = ("w13", "w13_block_scale", "w13_global_scale", "w2", "w2_block_scale", "w2_global_scale")
    return nvfp4_moe.LayerWeights(*(getattr(made, name) for name in names))


def make_layer(weights):
    return nvfp4_moe.Layer(hidden_size=H, intermediate_size=INTER, num_experts=E, top_k=K).prepare(weights)


@pytest.fixture
def inputs(generator):
    return (
        generate.tokens(T, H, generator),
        generate.random_ids(T, E, K, generator),
        generate.random_topk_weights(T, K, generator),
    )


def test_the_six_tensors_have_the_shapes_that_the_op_wants(weights):
    made = nvfp4_moe.LayerWeights.empty(E, H, INTER, w13_input_scale=0.5)
    assert [t.shape for t in made.tensors()[:6]] == [t.shape for t in weights.tensors()[:6]]
    assert made.tensors()[6:] == (None, None)
    biased = nvfp4_moe.LayerWeights.empty(E, H, INTER, gated=False, has_bias=True)
    assert [t.shape[1:] for t in biased.tensors() if t.dim() > 1] == [
        (INTER, H // 2), (INTER, H // 16), (1,), (H, INTER // 2), (H, INTER // 16), (INTER,), (H,)
    ]  # fmt: skip
    assert (made.w13_input_scale, made.w2_input_scale) == (0.5, 0.0)


def test_packed_fp4_may_have_torchs_own_type(weights, inputs):
    """torch.float4_e2m1fn_x2 is two e2m1 in a byte, the even one low: the same bytes."""
    fp4 = torch.float4_e2m1fn_x2
    other = make_layer(replace(weights, w13=weights.w13.view(fp4), w2=weights.w2.view(fp4)).to("cpu"))
    assert torch.equal(other(*inputs), make_layer(weights)(*inputs))


def test_a_linear_and_dequantize_take_it_too(generator):
    packed = torch.randint(0, 256, (48, H // 2), generator=generator, dtype=torch.uint8)
    block_scale = torch.randint(0x30, 0x48, (48, H // 16), generator=generator, dtype=torch.uint8)
    x = generate.tokens(T, H, generator)

    def run(weight):
        linear = nvfp4_moe.Linear(in_features=H, out_features=48)
        return linear.prepare(nvfp4_moe.LinearWeights(weight, block_scale, torch.tensor([0.01])))(x)

    fp4 = packed.view(torch.float4_e2m1fn_x2)
    assert torch.equal(run(fp4), run(packed))
    dequantized = [nvfp4_moe.dequantize(numbers, block_scale, 0.5) for numbers in (fp4, packed)]
    assert torch.equal(*dequantized)


@pytest.mark.parametrize("dtype", [torch.uint4, torch.bits8, torch.complex32, torch.float8_e8m0fnu, torch.int8])
def test_any_other_type_is_refused_by_the_name_of_the_tensor(weights, dtype):
    """Also types that torch's stable ABI cannot name."""
    with pytest.raises(RuntimeError, match=r"w2.dtype is \S+; it must be uint8. Convert it with .to\(torch.uint8\)"):
        make_layer(replace(weights, w2=torch.empty(E, H, INTER // 2, dtype=dtype)))
    ids = torch.zeros(T, K, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"x.dtype is \S+; it must be bfloat16"):
        make_layer(weights)(torch.empty(T, H, dtype=dtype), ids)


def test_scratch_may_come_in_the_type_of_the_activations(weights, inputs):
    layer = make_layer(weights)
    num_bytes = layer.workspace_size(T)
    scratch = torch.full((-(-num_bytes // 2),), torch.nan, dtype=torch.bfloat16)
    assert torch.equal(layer(*inputs, workspace=scratch), layer(*inputs))
    with pytest.raises(RuntimeError, match=r"workspace_size is \d+ bytes; it must be at least \d+"):
        layer(*inputs, workspace=scratch[: len(scratch) // 2])


def test_on_the_cpu_there_is_no_storage(weights):
    layer = make_layer(weights)
    assert layer.expert_slices is None
    assert OPS.layer_storage(layer.id) is None
    assert OPS.layer_storage_size(layer.id) == 0


def test_on_the_cpu_weights_are_kept_whatever_storage_is_given(weights):
    """They are used in place."""
    layer, before = make_layer(weights), weights.w13._use_count()
    OPS.layer_prepare(*weights.tensors(), 0.0, 0.0, False, torch.empty(8, dtype=torch.uint8), layer.id)
    assert OPS.layer_storage(layer.id) is None
    assert weights.w13._use_count() == before
    layer.close()
    assert weights.w13._use_count() == before - 1
