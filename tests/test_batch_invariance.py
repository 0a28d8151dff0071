# SPDX-License-Identifier: Apache-2.0
"""A token's bits do not depend on what else is in the batch: on the CPU, and on a GPU with row tiles of one order."""

import pytest
import torch

import matrix
import runner
from nvfp4_moe.layer import ONE_ORDER
from reference import generate
from reference.layer import Relu2, Swiglu

E, K, H, INTER = 8, 3, 2624, 1088  # 41 and 17 slabs of 64 columns: the last stage of every pipeline is not full
SIZES = (1, 2, 7, 8, 9, 33, 200, 1023, 1024, 1025, 1100)  # of batches; routing changes its kernels past 1024
ROWS_ON_HOPPER = (8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144)
ROWS_OF = {"bf16": ROWS_ON_HOPPER, "nvfp4": ROWS_ON_HOPPER, "fp8": (*ROWS_ON_HOPPER, 208)}
SUMMED_IN_ONE_RUN_FROM = 16


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16)


def problem(mode: str, hidden: int, inter: int, gated: bool = True):
    """Weights, and the tokens of the largest batch: x, ids, weights."""
    generator = torch.Generator().manual_seed(5)
    weights = generate.random_code_weights(E, hidden, inter, generator, lossless=mode == "fp8", gated=gated)
    tokens = max(SIZES)
    ids = generate.random_ids(tokens, E, K, generator)
    inputs = generate.tokens(tokens, hidden, generator), ids, generate.random_topk_weights(tokens, K, generator)
    return weights.with_input_scales(4.0, 4.0), inputs


def check(layer, inputs) -> torch.Tensor:
    """Every batch gives its tokens the bits that they have in the largest; returns these."""
    expected = runner.run(layer, *inputs)
    for size in SIZES:
        for first in {0, max(SIZES) - size}:
            part = [tensor[first : first + size] for tensor in inputs]
            assert torch.equal(bits(runner.run(layer, *part)), bits(expected[first : first + size])), (size, first)
    # The same token beside others: every second one is another.
    mixed = [tensor.clone() for tensor in inputs]
    for tensor in mixed:
        tensor[1::2] = tensor[1::2].flip(0)
    assert torch.equal(bits(runner.run(layer, *mixed)[::2]), bits(expected[::2]))
    return expected


@pytest.mark.parametrize("policy", ["static", "dynamic"])
@pytest.mark.parametrize("mode", matrix.MODES)
def test_batches_of_any_size_on_the_cpu(mode, policy):
    weights, inputs = problem(mode, 320, 208)
    options = dict(num_experts=E, top_k=K, mode=mode, scale_policy=policy)
    expected = check(runner.make_layer(weights, **options), inputs)
    assert torch.equal(bits(check(runner.make_layer(weights, tile_rows=ONE_ORDER, **options), inputs)), bits(expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
class TestCuda:
    @pytest.mark.parametrize("mode", matrix.MODES)
    def test_one_size_of_row_tiles_on_hopper(self, mode):
        """And all sizes whose warpgroups take the reduction in one run give the same bits as each other."""
        weights, inputs = problem(mode, H, INTER)
        outs = []
        for rows in ROWS_OF[mode]:
            layer = runner.make_layer(weights, num_experts=E, top_k=K, mode=mode, tile_rows=rows, device="cuda")
            out = check(layer, inputs)
            if rows >= SUMMED_IN_ONE_RUN_FROM:
                outs.append(out)
        assert all(torch.equal(bits(out), bits(outs[0])) for out in outs)

    @pytest.mark.parametrize("device", ["cuda", "cuda-portable"])
    @pytest.mark.parametrize("mode", matrix.MODES)
    def test_sizes_of_one_order(self, mode, device):
        weights, inputs = problem(mode, H, INTER)
        options = dict(num_experts=E, top_k=K, mode=mode, device=device)
        check(runner.make_layer(weights, tile_rows=ONE_ORDER, **options), inputs)

    @pytest.mark.parametrize("mode", matrix.MODES)
    @pytest.mark.parametrize("activation", [Swiglu(7.0, 1.702, 1.0), Relu2()], ids=["swigluoai", "relu2"])
    def test_experts_with_biases_and_without_a_gate(self, mode, activation):
        """Kernels of their own."""
        weights, inputs = problem(mode, H, INTER, activation.gated)
        weights = weights.with_biases(torch.Generator().manual_seed(6))
        options = dict(num_experts=E, top_k=K, mode=mode, swiglu=activation, device="cuda")
        check(runner.make_layer(weights, tile_rows=ONE_ORDER, **options), inputs)

    def test_weights_rounded_to_e4m3(self):
        weights, inputs = problem("bf16", H, INTER)  # block scales of any kind
        options = dict(num_experts=E, top_k=K, mode="fp8", fp8_max_error=0.1, device="cuda")
        check(runner.make_layer(weights, tile_rows=ONE_ORDER, **options), inputs)

    def test_sizes_that_the_library_chooses_by_itself_are_not_enough(self):
        """Few rows are summed by several warpgroups, each a part of the reduction. If not, the setting is idle."""
        weights, inputs = problem("bf16", H, INTER)
        layer = runner.make_layer(weights, num_experts=E, top_k=K, device="cuda")
        alone = runner.run(layer, *(tensor[:8] for tensor in inputs))
        assert not torch.equal(bits(alone), bits(runner.run(layer, *inputs)[:8]))
