# SPDX-License-Identifier: Apache-2.0
"""Few tokens in one launch on Hopper: the bits of four launches, whatever a call looks like and what runs beside it."""

import pytest
import torch

import runner
from nvfp4_moe import read_device_status, reset_device_status
from reference import generate

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no Hopper on this machine"
)
MANY = 9  # tokens that take four launches


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16)


def problem(hidden: int, inter: int, experts: int, local: int, top_k: int, first: int = 0):
    """A layer with the smallest row tiles, and nine tokens for it."""
    generator = torch.Generator().manual_seed(hidden + top_k)
    weights = generate.random_code_weights(local, hidden, inter, generator)
    options = dict(num_experts=experts, top_k=top_k, tile_rows=8, first_local_expert=first, device="cuda")
    x, ids = generate.tokens(MANY, hidden, generator), generate.random_ids(MANY, experts, top_k, generator)
    return runner.make_layer(weights, **options), (x, ids, generate.random_topk_weights(MANY, top_k, generator))


def check(layer, inputs, **options):
    expected = runner.run(layer, *inputs, **options)
    for count in range(1, 9):
        for first in (0, MANY - count):
            part = [None if t is None else t[first : first + count] for t in inputs]
            assert torch.equal(bits(runner.run(layer, *part, **options)), bits(expected[first : first + count])), count


@pytest.mark.parametrize(
    "sizes",
    [
        (3392, 80, 8, 8, 2),  # GEMM2 has less than a stage
        (4096, 2048, 32, 8, 6),  # clusters of two; tokens without an expert here
        (4160, 1088, 8, 8, 8),  # all 64 slots; 65 weight tiles; stages that are not full
        (8448, 64, 16, 4, 1, 5),  # a weight tile for each of 132 multiprocessors; experts from 5 on
        (8512, 64, 8, 8, 2),  # one more: four launches at any size
        (4096, 512, 16, 16, 10),  # from 7 tokens on more slots than one launch takes
    ],
    ids=str,
)
def test_bits_are_those_of_four_launches(sizes):
    check(*problem(*sizes))


def test_maps_wide_ids_and_slots_that_are_nowhere():
    layer, (x, ids, weights) = problem(4096, 512, 16, 8, 4)
    expert_map = torch.tensor([-1, 3, 2, -1, 7, 0, -1, -1, 1, -1, 4, -1, 5, 6, -1, -1], dtype=torch.int32)
    ids[::2, 1] = -1
    ids[3] = -1
    check(layer, (x, ids.long(), weights), expert_map=expert_map)
    check(layer, (x, ids, None))


def test_bad_ids_are_counted_once():
    layer, (x, ids, weights) = problem(4096, 512, 16, 8, 4)
    ids[2, 1], ids[5, 3] = 16, -7
    reset_device_status("cuda")
    runner.run(layer, x[:8], ids[:8], weights[:8])
    status = read_device_status("cuda")
    assert status.out_of_range_ids == 2
    assert status.first_bad_token == 2


def test_two_streams_of_unequal_priority():
    """Each launch wants all multiprocessors at once: they take turns."""
    layer, inputs = problem(4096, 2048, 32, 8, 6)
    inputs = [tensor[:8].cuda() for tensor in inputs]
    streams = [torch.cuda.Stream(priority=priority) for priority in (0, -1)]
    workspaces = [torch.empty(layer.workspace_size(8), dtype=torch.uint8, device="cuda") for _ in streams]
    expected, outs = bits(layer(*inputs)), []
    busy = torch.randn(2048, 2048, device="cuda")
    torch.cuda.synchronize()
    for _ in range(300):
        busy = torch.tanh(busy @ busy)  # on a third stream
        for stream, workspace in zip(streams, workspaces):
            with torch.cuda.stream(stream):
                outs.append(layer(*inputs, workspace=workspace))
    torch.cuda.synchronize()
    assert all(torch.equal(bits(out), expected) for out in outs)
