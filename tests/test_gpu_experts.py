# SPDX-License-Identifier: Apache-2.0
"""Kinds of experts on a GPU: every tile of every GEMM ends in an epilogue of its own, so every size is asked for."""

import pytest
import torch

import runner
from reference import gates, generate
from reference.layer import (
    Gelu,
    GeluTanh,
    ReferenceLayer,
    Relu2,
    Silu,
    Situ,
    Swiglu,
    SwigluStep,
    local_ids,
    relative_l2,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
TILE_ROWS = (8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144)
E, K, H, INTER = 6, 2, 352, 224  # no multiple of a tile
OAI = Swiglu(7.0, 1.702, 1.0)
KINDS = {
    "oai-interleaved-bias": (OAI, True, True),
    "swiglu-bias": (Swiglu(10.0), False, True),
    "swiglu_step": (SwigluStep(7.0), False, False),
    "situ": (Situ(25.0, beta=4.0), False, False),
    "gelu_tanh-bias": (GeluTanh(), False, True),
    "gelu": (Gelu(), False, False),
    "relu2": (Relu2(), False, False),
    "relu2-bias": (Relu2(), False, True),
    "silu": (Silu(), False, False),
}


def weights_of(kind: str, lossless: bool, generator: torch.Generator) -> tuple[generate.Weights, Swiglu]:
    activation, interleaved, bias = KINDS[kind]
    weights = generate.random_code_weights(E, H, INTER, generator, lossless=lossless, gated=activation.gated)
    weights = weights.with_biases(generator) if bias else weights
    return weights.with_interleaved_rows() if interleaved else weights, activation


@pytest.mark.parametrize("mode", ["bf16", "nvfp4", "fp8"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tile_of_every_kind(kind, mode):
    generator = torch.Generator().manual_seed(7)
    weights, activation = weights_of(kind, mode == "fp8", generator)
    num_tokens = 400  # 133 rows an expert: several tiles, the last of them not full
    x = generate.tokens(num_tokens, H, generator)
    ids = generate.random_ids(num_tokens, E, K, generator)
    topk_weights = generate.random_topk_weights(num_tokens, K, generator)
    reference = ReferenceLayer(weights, activation)
    local = local_ids(ids, E, E)
    amax = reference.forward(x, local, topk_weights)
    weights = weights.with_input_scales(amax.x_amax, amax.h_amax)
    result = reference.forward(x, local, topk_weights, mode, (weights.w13_input_scale, weights.w2_input_scale))
    for tile_rows in TILE_ROWS + ((208,) if mode == "fp8" else ()):
        layer = runner.make_layer(
            weights, num_experts=E, top_k=K, mode=mode, swiglu=activation, tile_rows=tile_rows, device="cuda"
        )
        loss = relative_l2(runner.run(layer, x, ids, topk_weights), result.out)
        assert loss <= gates.bound(result, mode, "cuda"), f"tile_rows {tile_rows}: {loss}"


@pytest.mark.parametrize("device", ["cuda", "cuda-portable"])
def test_interleaved_rows_give_the_same_bits_as_gate_first(device):
    generator = torch.Generator().manual_seed(3)
    weights = generate.random_code_weights(E, H, INTER, generator, lossless=True).with_biases(generator)
    x, ids = generate.tokens(50, H, generator), generate.random_ids(50, E, K, generator)
    for mode in ("bf16", "fp8") if device == "cuda" else ("bf16",):
        options = dict(num_experts=E, top_k=K, mode=mode, swiglu=OAI, device=device)
        outs = [runner.run(runner.make_layer(w, **options), x, ids) for w in (weights, weights.with_interleaved_rows())]
        assert torch.equal(*(out.view(torch.int16) for out in outs)), mode


@pytest.mark.parametrize("device", ["cuda", "cuda-portable"])
def test_biases_move_with_their_expert(device):
    """A slice is all that an expert is: swapped with another's, the outputs are swapped ids'."""
    generator = torch.Generator().manual_seed(4)
    weights = generate.random_code_weights(2, H, INTER, generator).with_biases(generator)
    x = generate.tokens(9, H, generator)
    layer = runner.make_layer(weights, num_experts=2, top_k=1, swiglu=OAI, device=device)
    ids = torch.arange(9, dtype=torch.int32)[:, None] % 2
    before = runner.run(layer, x, ids)
    layer.expert_slices.copy_(layer.expert_slices.flip(0).clone())
    assert torch.equal(runner.run(layer, x, 1 - ids).view(torch.int16), before.view(torch.int16))
    assert not torch.equal(runner.run(layer, x, ids).view(torch.int16), before.view(torch.int16))
