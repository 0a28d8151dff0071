# SPDX-License-Identifier: Apache-2.0
"""Tensor-parallel parts of a layer's weights: outputs of all ranks add up to the layer's, biases counted once."""

from dataclasses import replace

import pytest
import torch

import nvfp4_moe
import runner
from reference import gates, generate
from reference.layer import ReferenceLayer, Relu2, Swiglu, relative_l2

E, K, H, INTER, T = 4, 2, 64, 96, 9
KINDS = {
    "gate first": (Swiglu(10.0), lambda weights: weights),
    "up first": (Swiglu(10.0), lambda weights: replace(weights, up_first=True)),
    "interleaved": (Swiglu(7.0, 1.702, 1.0), lambda weights: weights.with_interleaved_rows()),
    "no gate": (Relu2(), lambda weights: weights),
}


def library_weights(weights: generate.Weights) -> nvfp4_moe.LayerWeights:
    names = [name for name in vars(weights) if name != "unquantized"]
    return nvfp4_moe.LayerWeights(**{name: getattr(weights, name) for name in names})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_add_up_to_the_layer(kind, num_ranks):
    activation, change = KINDS[kind]
    generator = torch.Generator().manual_seed(7)
    weights = generate.random_code_weights(E, H, INTER, generator, gated=activation.gated).with_biases(generator)
    weights = change(weights)
    x, ids = generate.tokens(T, H, generator), generate.random_ids(T, E, K, generator)
    topk_weights = generate.random_topk_weights(T, K, generator)
    parts = [library_weights(weights).shard(rank, num_ranks) for rank in range(num_ranks)]
    layers = [runner.make_layer(part, num_experts=E, top_k=K, swiglu=activation) for part in parts]
    total = sum(runner.run(layer, x, ids, topk_weights).double() for layer in layers)
    expected = ReferenceLayer(weights, activation).forward(x, ids.long(), topk_weights).out
    # Parts are rounded to bf16 before they are added, and larger than their sum.
    assert relative_l2(total, expected) <= 2 * gates.REL_L2
    without = sum(runner.run(layer, x, ids, topk_weights).double() for layer in layers[1:])
    assert relative_l2(without, expected) > 0.1, "the first rank counts"


def test_ranks_that_would_share_a_block_are_refused():
    weights = nvfp4_moe.LayerWeights.empty(E, H, INTER)
    with pytest.raises(ValueError, match="num_ranks is 4; intermediate_size 96 must be a multiple of 16 times that"):
        weights.shard(0, 4)
