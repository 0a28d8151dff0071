# SPDX-License-Identifier: Apache-2.0
"""Every case of the matrix, in every mode, on every backend, against float64."""

from functools import lru_cache
from typing import NamedTuple

import pytest
import torch

import matrix
import runner
from matrix import Case
from reference import gates, generate
from reference.layer import ReferenceLayer, Result, cosine, local_ids, relative_l2


class Problem(NamedTuple):
    weights: generate.Weights
    reference: ReferenceLayer
    x: torch.Tensor
    topk_ids: torch.Tensor
    topk_weights: torch.Tensor
    local_ids: torch.Tensor
    shared_output: torch.Tensor | None
    bf16: Result


@lru_cache(maxsize=1)  # the modes and devices of a case follow one another, fp8 last
def problem(case: Case, lossless: bool = False) -> Problem:
    generator = torch.Generator().manual_seed(case.num_tokens + case.hidden)
    ids = matrix.route(case, generator)
    local = local_ids(ids, case.num_experts, case.local_count, case.first_local)
    touched = [e for e in local.unique().tolist() if e >= 0]
    weights = generate.random_code_weights(
        case.local_count, case.hidden, case.intermediate, generator, touched, lossless=lossless, gated=case.swiglu.gated
    )
    if case.bias:
        weights = weights.with_biases(generator)
    if case.interleaved:
        weights = weights.with_interleaved_rows()
    x = generate.tokens(case.num_tokens, case.hidden, generator)
    topk_weights = generate.random_topk_weights(case.num_tokens, case.top_k, generator)
    reference = ReferenceLayer(weights, case.swiglu)
    shared = generate.tokens(case.num_tokens, case.hidden, generator) if case.shared_output else None
    bf16 = reference.forward(x, local, topk_weights)
    # Scales of a layer that routed nothing: any valid one.
    weights = weights.with_input_scales(bf16.x_amax or 1.0, bf16.h_amax or 1.0)
    return Problem(weights, reference, x, ids, topk_weights, local, shared, bf16)


@pytest.mark.parametrize("device", runner.DEVICES)  # the first varies fastest
@pytest.mark.parametrize("mode", matrix.MODES)
@pytest.mark.parametrize("case", matrix.CASES, ids=str)
def test_layer_matches_float64(case: Case, mode: str, device: str):
    p = problem(case, lossless=mode == "fp8")
    layer = runner.make_layer(
        p.weights,
        num_experts=case.num_experts,
        top_k=case.top_k,
        mode=mode,
        swiglu=case.swiglu,
        first_local_expert=case.first_local,
        device=device,
    )
    out = runner.run(layer, p.x, p.topk_ids, p.topk_weights, shared_output=p.shared_output)
    begin = torch.zeros_like(out) if p.shared_output is None else p.shared_output
    result = p.bf16
    if mode != "bf16":
        scales = (p.weights.w13_input_scale, p.weights.w2_input_scale)
        result = p.reference.forward(p.x, p.local_ids, p.topk_weights, mode, scales)
    assert out.isfinite().all()
    alone = (p.local_ids < 0).all(dim=1)
    assert torch.equal(out[alone], begin[alone]), "tokens with no expert here"
    wanted = result.out + begin
    assert relative_l2(out, wanted) <= gates.bound(result, mode, device)
    if mode == "bf16":
        assert cosine(out, wanted) >= gates.COSINE
    if mode == "fp8":
        loss = relative_l2(out, p.bf16.out + begin)
        print(f"fp8 against bf16: rel-L2 {loss:.2e}")
        assert loss <= gates.REL_L2_FP8 or not is_typical(case, p)


def is_typical(case: Case, p: Problem) -> bool:
    """Does what quantising costs here say something about the format? Not where few values of h make the output, nor
    where the clamp leaves little but the signs of up: one near 0 that turns costs as much as any."""
    return int((p.local_ids >= 0).sum()) * case.intermediate >= 1024 and p.bf16.clamped < 0.5


def test_mode_fp8_is_judged_by_its_loss_in_most_cases():
    small = [case for case in matrix.CASES if case.hidden <= 512]
    assert sum(is_typical(case, problem(case)) for case in small) >= 0.8 * len(small)


def test_matrix_reaches_the_clamp_and_the_full_models():
    """The cases that make the matrix worth running are really in it."""
    clamped = [problem(case).bf16.clamped for case in matrix.CASES if 0 < case.swiglu.limit < 1]
    assert clamped
    assert min(clamped) > 0.5
    sizes = {(case.num_experts, case.hidden, case.intermediate) for case in matrix.CASES}
    assert {(256, 7168, 2048), (256, 4096, 2048), (384, 7168, 3072)} <= sizes
