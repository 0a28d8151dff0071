# SPDX-License-Identifier: Apache-2.0
"""torch.compile takes the ops as they are: no graph break, the same bits as eager."""

import pytest
import torch

import nvfp4_moe
import runner
from reference import generate

E, K, H, INTER = 4, 2, 64, 32
BACKENDS = ("aot_eager", "inductor")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(11)


def make_inputs(num_tokens, generator):
    return (
        generate.tokens(num_tokens, H, generator),
        generate.random_ids(num_tokens, E, K, generator),
        generate.random_topk_weights(num_tokens, K, generator),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_layers_and_a_linear_in_one_graph(backend, generator):
    first, second = (
        runner.make_layer(generate.random_code_weights(E, H, INTER, generator), num_experts=E, top_k=K)
        for _ in range(2)
    )
    linear = nvfp4_moe.Linear(in_features=H, out_features=H)
    linear.prepare(
        nvfp4_moe.LinearWeights(
            torch.randint(0, 256, (H, H // 2), dtype=torch.uint8, generator=generator),
            torch.full((H, H // 16), 0x38, dtype=torch.uint8),
            torch.tensor([0.02]),
        )
    )
    workspace = torch.zeros(first.workspace_size(16), dtype=torch.uint8)

    def model(x, ids, topk_weights):
        x = x + first(x, ids, topk_weights)
        x = x + linear(x)
        return second(x * 0.5, ids, topk_weights, workspace=workspace) + x

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for num_tokens in (3, 16, 7):
        inputs = make_inputs(num_tokens, generator)
        expected, got = model(*inputs), compiled(*inputs)
        # Inductor may keep sums in f32 where eager rounds to bf16.
        if backend == "inductor":
            torch.testing.assert_close(got, expected, rtol=3e-2, atol=3e-2)
        else:
            assert torch.equal(got.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_layer_alone_keeps_its_bits_and_writes_into_out(backend, generator):
    layer = runner.make_layer(generate.random_code_weights(E, H, INTER, generator), num_experts=E, top_k=K)
    inputs = make_inputs(9, generator)
    expected = layer(*inputs)

    def into(out, *inputs):
        layer(*inputs, out=out)
        return out.abs()

    out = runner.poisoned(9, H)
    absolute = torch.compile(into, backend=backend, fullgraph=True)(out, *inputs)
    assert torch.equal(out.view(torch.int16), expected.view(torch.int16))
    assert torch.equal(absolute, expected.abs())
