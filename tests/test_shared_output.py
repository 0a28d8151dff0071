# SPDX-License-Identifier: Apache-2.0
"""What sums begin with: the output of shared experts, which combine adds to a token's experts before it rounds once."""

import pytest
import torch

import matrix
import runner
from reference import generate

E, K, H, INTER, T = 8, 3, 256, 192, 100


def bits(tensor):
    return tensor.view(torch.int16)


def strided(rows: torch.Tensor) -> torch.Tensor:
    """The same values in a wider buffer, from an odd multiple of two bytes on."""
    wide = runner.poisoned(len(rows), rows.shape[1] + 5)
    wide[:, 1 : 1 + rows.shape[1]] = rows
    return wide[:, 1 : 1 + rows.shape[1]]


@pytest.fixture(params=runner.DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=matrix.MODES)
def mode(request):
    return request.param


@pytest.fixture
def layer(mode, device):
    generator = torch.Generator().manual_seed(7)
    weights = generate.random_code_weights(E, H, INTER, generator, lossless=mode == "fp8")
    return runner.make_layer(weights.with_input_scales(4.0, 4.0), num_experts=E, top_k=K, mode=mode, device=device)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(8)
    ids = generate.random_ids(T, E, K, generator)
    ids[:4] = -1
    return generate.tokens(T, H, generator), ids, generate.random_topk_weights(T, K, generator)


@pytest.fixture
def shared():
    return generate.tokens(T, H, torch.Generator().manual_seed(9))


@pytest.mark.parametrize("lay", [torch.Tensor.contiguous, strided])
def test_sums_begin_with_it(layer, inputs, shared, lay):
    """Zeros change no bit, a token without experts becomes its row, and the rest is the sum up to bf16's rounding."""
    plain = runner.run(layer, *inputs)
    assert torch.equal(bits(plain), bits(runner.run(layer, *inputs, shared_output=lay(torch.zeros_like(shared)))))
    out = runner.run(layer, *inputs, shared_output=lay(shared))
    assert torch.equal(bits(out[:4]), bits(shared[:4]))
    wanted = plain.double() + shared.double()
    # Each of the two is rounded to 8 bits: half of the last one's place, of what either number is.
    assert ((out.double() - wanted).abs() <= 2.0**-8 * (plain.double().abs() + wanted.abs())).all()


def test_it_is_added_first_and_rounded_once(layer, inputs, shared):
    """A sum that began with it has passed f32's range, and stays there; one that added it last never left it."""
    x, ids, _ = inputs
    ids[:] = torch.tensor([1, 1, -1])
    y = runner.run(layer, x, ids[:, :1].expand(T, K).where(torch.arange(K) == 0, -1)).float()
    t, column = divmod(int(y.abs().argmax()), H)
    weight = 2e38 / y[t, column].item()
    weights = torch.tensor([weight, -weight, 0.0]).repeat(T, 1)
    shared[t, column] = 3e38
    out = runner.run(layer, x, ids, weights, shared_output=shared)
    assert out[t, column] == torch.inf
    shared[t, column] = 1e38
    out = runner.run(layer, x, ids, weights, shared_output=shared)
    assert out[t, column] == shared[t, column], "2e38 was added and taken off again"


def test_any_leading_shape_and_calibration_take_it(inputs, shared):
    x, ids, weights = (t.view(4, 25, -1) for t in inputs)
    generator = torch.Generator().manual_seed(7)
    layer = runner.make_layer(generate.random_code_weights(E, H, INTER, generator), num_experts=E, top_k=K)
    wanted = layer(*inputs, shared_output=shared)
    assert torch.equal(layer(x, ids, weights, shared_output=shared.view(4, 25, H)), wanted.view(4, 25, H))
    assert torch.equal(layer.calibrate(*inputs, shared_output=shared), wanted)
    with pytest.raises(RuntimeError, match="requires_grad is True"):
        layer(*inputs, shared_output=shared.clone().requires_grad_())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("num_tokens", [1, 8, 300, 30000])  # the last in several chunks
@pytest.mark.parametrize("device", ["cuda", "cuda-portable"])
def test_another_stream_may_make_it_meanwhile(num_tokens, device):
    """It takes longer than the routed experts; without the event its rows would still be poison."""
    generator = torch.Generator().manual_seed(num_tokens)
    weights = generate.random_code_weights(4, H, 4096, generator)
    layer = runner.make_layer(weights, num_experts=16, top_k=6, device=device)
    x, ids, topk_weights, shared = (
        t.cuda()
        for t in (
            generate.tokens(num_tokens, H, generator),
            generate.random_ids(num_tokens, 16, 6, generator),
            generate.random_topk_weights(num_tokens, 6, generator),
            generate.tokens(num_tokens, H, generator),
        )
    )
    wanted = layer(x, ids, topk_weights, shared_output=shared)
    made, beside, ready = runner.poisoned(num_tokens, H, device="cuda"), torch.cuda.Stream(), torch.cuda.Event()
    torch.cuda.synchronize()
    with torch.cuda.stream(beside):
        torch.cuda._sleep(100_000_000)  # about 50 ms
        made.copy_(shared)
        ready.record()
    out = layer(x, ids, topk_weights, shared_output=made, shared_output_ready=ready)
    assert torch.equal(bits(out), bits(wanted))
