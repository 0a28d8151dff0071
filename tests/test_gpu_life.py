# SPDX-License-Identifier: Apache-2.0
"""A layer's and a linear's life on a GPU: graphs that outlive weights and scales, memory, streams, deaths."""

import gc
from dataclasses import replace

import pytest
import torch

import runner
from nvfp4_moe import Layer, LayerWeights, Linear, LinearWeights, ops
from reference import generate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
DEVICES = [device for device in runner.DEVICES if device != "cpu"]
E, K, H, INTER, N, T = 16, 4, 1024, 512, 768, 8


def random_bytes(seed, *shape, low=0, high=256):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=generator).cuda()


class OfLayer:
    """A layer, its weights by seed, and one batch."""

    def __init__(self, mode, device):
        self.made = Layer(hidden_size=H, intermediate_size=INTER, num_experts=E, top_k=K, mode=mode, device=device)
        generator = torch.Generator().manual_seed(0)
        self.inputs = [
            tensor.cuda()
            for tensor in (
                generate.tokens(T, H, generator),
                generate.random_ids(T, E, K, generator),
                generate.random_topk_weights(T, K, generator),
            )
        ]
        self.workspace = torch.empty(self.made.workspace_size(T), dtype=torch.uint8, device="cuda")
        self.out = torch.empty_like(self.inputs[0])

    def weights(self, seed, scale=0.01):
        scales = [random_bytes(seed + i, E, rows, cols // 16, low=0x28, high=0x38) for i, (rows, cols) in self.shapes()]
        codes = [random_bytes(seed + 5 + i, E, rows, cols // 2) for i, (rows, cols) in self.shapes()]
        globals_ = torch.full((E, 2), 0.02, device="cuda")
        return LayerWeights(
            codes[0], scales[0], globals_, codes[1], scales[1], globals_[:, 0].contiguous(), scale, scale
        )

    def shapes(self):
        return enumerate([(2 * INTER, H), (H, INTER)])

    def broken(self, seed):
        weights = self.weights(seed)
        weights.w2_block_scale[3, 5, 1] = 0x7F
        return weights

    def prepare(self, weights, storage=None):
        scales = weights.w13_input_scale, weights.w2_input_scale
        ops.load().layer_prepare(*weights.tensors(), *scales, False, storage, self.made.id)

    def storage_size(self):
        return ops.load().layer_storage_size(self.made.id)

    def set_scale(self, scale):
        self.made.set_input_scales(scale, scale)

    def run(self):
        return self.made(*self.inputs, workspace=self.workspace, out=self.out)


class OfLinear:
    """The same of a linear; every other seed has a bias."""

    def __init__(self, mode, device):
        self.made = Linear(in_features=H, out_features=N, mode=mode, device=device)
        self.x = generate.tokens(T, H, torch.Generator().manual_seed(0)).cuda()
        self.workspace = torch.empty(self.made.workspace_size(T), dtype=torch.uint8, device="cuda")
        self.out = torch.empty(T, N, dtype=torch.bfloat16, device="cuda")

    def weights(self, seed, scale=0.01):
        codes, scales = random_bytes(seed, N, H // 2), random_bytes(seed + 1, N, H // 16, low=0x28, high=0x38)
        bias = torch.ones(N, dtype=torch.bfloat16, device="cuda") if seed % 2 == 0 else None
        return LinearWeights(codes, scales, torch.full((1,), 0.02, device="cuda"), bias=bias, input_scale=scale)

    def broken(self, seed):
        return replace(self.weights(seed), global_scale=torch.full((1,), torch.inf, device="cuda"))

    def prepare(self, weights, storage=None):
        tensors = weights.weight, weights.block_scale, weights.global_scale, weights.bias
        ops.load().linear_prepare(*tensors, [], weights.input_scale, storage, self.made.id)

    def storage_size(self):
        return ops.load().linear_storage_size(self.made.id)

    def set_scale(self, scale):
        self.made.set_input_scale(scale)

    def run(self):
        return self.made.forward(self.x, workspace=self.workspace, out=self.out)


def bits_of(subject):
    """What an eager call gives."""
    subject.out.fill_(torch.nan)
    return subject.run().view(torch.int16).clone()


def bits_when_new(subject_type, mode, device, *, seed, scale=0.01):
    """What a subject gives that never had other weights."""
    subject = subject_type(mode, device)
    subject.prepare(subject.weights(seed, scale))
    return bits_of(subject)


def captured(subject):
    bits_of(subject)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        subject.run()
    return graph


def bits_of_replay(graph, subject):
    subject.out.fill_(torch.nan)
    graph.replay()
    return subject.out.view(torch.int16).clone()


@pytest.fixture(params=[OfLayer, OfLinear])
def subject_type(request):
    return request.param


each_device = pytest.mark.parametrize("device", DEVICES)
each_mode = pytest.mark.parametrize("mode", ["bf16", "nvfp4"])


@each_device
@each_mode
def test_a_refused_prepare_changes_nothing(subject_type, mode, device):
    subject = subject_type(mode, device)
    subject.prepare(subject.weights(1))
    graph, before = captured(subject), bits_of(subject)
    with pytest.raises(RuntimeError, match="number of broken weight scales is 1; it must be 0"):
        subject.prepare(subject.broken(2))
    assert torch.equal(bits_of(subject), before)
    assert torch.equal(bits_of_replay(graph, subject), before)


def test_mode_fp8_refuses_before_it_writes():
    subject = OfLayer("fp8", "cuda")
    powers = subject.weights(1)
    for scales in (powers.w13_block_scale, powers.w2_block_scale):
        scales.bitwise_and_(0x78)
    subject.prepare(powers)
    before = bits_of(subject)
    with pytest.raises(RuntimeError, match="no power of two"):
        subject.prepare(subject.weights(2))
    assert torch.equal(bits_of(subject), before)


@each_device
@each_mode
def test_a_graph_computes_with_the_weights_that_are_there(subject_type, mode, device):
    """Input scales of the new weights included, and a bias where there was none."""
    subject = subject_type(mode, device)
    subject.prepare(subject.weights(1))
    graph, before = captured(subject), bits_of(subject)
    for seed, scale in ((2, 0.004), (3, 0.02)):
        subject.prepare(subject.weights(seed, scale))
        expected = bits_when_new(subject_type, mode, device, seed=seed, scale=scale)
        assert not torch.equal(expected, before)
        assert torch.equal(bits_of_replay(graph, subject), expected)
        assert torch.equal(bits_of(subject), expected)


@each_device
def test_a_graph_computes_with_the_input_scales_that_are_set(subject_type, device):
    """Those may be set during a capture, too, which goes on."""
    subject = subject_type("nvfp4", device)
    subject.prepare(subject.weights(1, scale=0.01))
    bits_of(subject)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="global"):
        subject.set_scale(0.05)
        subject.run()
        subject.set_scale(0.003)
    for scale in (0.003, 0.0007, 0.02):
        torch.cuda.synchronize()
        subject.set_scale(scale)
        expected = bits_when_new(subject_type, "nvfp4", device, seed=1, scale=scale)
        assert torch.equal(bits_of_replay(graph, subject), expected)
        assert torch.equal(bits_of(subject), expected)


@each_device
def test_a_graph_without_an_input_scale_gives_nan(subject_type, device):
    """A forward would be refused; a replay cannot be."""
    subject = subject_type("nvfp4", device)
    subject.prepare(subject.weights(1))
    graph = captured(subject)
    subject.prepare(subject.weights(1, scale=0.0))
    with pytest.raises(RuntimeError, match="mode nvfp4 with static scales needs"):
        subject.run()
    bits_of_replay(graph, subject)
    assert subject.out.isnan().all()


@each_device
def test_a_graph_over_another_storage_keeps_its_weights(subject_type, device):
    subject = subject_type("nvfp4", device)
    first, second = (torch.empty(subject.storage_size(), dtype=torch.uint8, device="cuda") for _ in range(2))
    subject.prepare(subject.weights(1), first)
    graph = captured(subject)
    subject.prepare(subject.weights(2, scale=0.004), second)
    assert torch.equal(bits_of(subject), bits_when_new(subject_type, "nvfp4", device, seed=2, scale=0.004))
    expected = bits_when_new(subject_type, "nvfp4", device, seed=1, scale=0.004)
    assert torch.equal(bits_of_replay(graph, subject), expected)


@each_device
def test_a_layer_dies_during_a_capture(subject_type, device):
    subject, dying = subject_type("bf16", device), [subject_type("bf16", device) for _ in range(3)]
    subject.prepare(subject.weights(1))
    for other in dying:
        other.prepare(other.weights(2))
    before = bits_of(subject)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="global"):
        subject.run()
        while dying:
            dying.pop().made.close()
        subject.run()
    assert torch.equal(bits_of_replay(graph, subject), before)


@each_device
def test_lives_one_after_another_take_no_memory(subject_type, device):
    free = []
    for life in range(12):
        subject = subject_type("nvfp4", device)
        subject.prepare(subject.weights(life))
        graph, before = captured(subject), bits_of(subject)
        assert torch.equal(bits_of_replay(graph, subject), before)
        del subject, graph, before
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free.append(torch.cuda.mem_get_info()[0])
    assert free[-1] >= free[2] - (4 << 20)  # states come out of pages of 2 MB


@each_device
def test_a_growing_workspace_gives_back_what_it_outgrew(device):
    layer = Layer(hidden_size=2048, intermediate_size=1024, num_experts=16, top_k=4, device=device)
    zeros = [torch.zeros(shape, dtype=torch.uint8, device="cuda") for shape in
             ((16, 2048, 1024), (16, 2048, 128), (16, 2048, 512), (16, 2048, 64))]  # fmt: skip
    ones = torch.ones(16, 2, device="cuda")
    layer.prepare(LayerWeights(zeros[0], zeros[1], ones, zeros[2], zeros[3], ones[:, 0].contiguous()))
    x = torch.zeros(1024, 2048, dtype=torch.bfloat16, device="cuda")
    ids = torch.zeros(1024, 4, dtype=torch.int32, device="cuda")
    out = torch.empty_like(x)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.synchronize()
        before = torch.cuda.mem_get_info()[0]
        for tokens in range(1, 1025):
            layer(x[:tokens], ids[:tokens], out=out[:tokens])
        torch.cuda.synchronize()
        lost = before - torch.cuda.mem_get_info()[0]
    assert lost <= 2 * layer.workspace_size(1024) + (4 << 20)


@each_device
@each_mode
def test_two_streams_without_a_workspace(mode, device):
    """Their work runs at once, each in scratch of its own."""
    subjects = [OfLayer(mode, device) for _ in range(2)]
    expected = []
    for seed, subject in enumerate(subjects):
        subject.prepare(subject.weights(seed))
        expected.append(bits_of(subject))
    streams = [torch.cuda.Stream() for _ in subjects]
    for _ in range(300):
        torch.cuda.synchronize()
        for subject, stream in zip(subjects, streams):
            with torch.cuda.stream(stream):
                subject.made(*subject.inputs, out=subject.out)
        torch.cuda.synchronize()
        for subject, bits in zip(subjects, expected):
            assert torch.equal(subject.out.view(torch.int16), bits)


@each_device
def test_a_workspace_that_grows_during_a_capture_is_the_graphs(device):
    subject = OfLayer("bf16", device)
    subject.prepare(subject.weights(1))
    expected = bits_of(subject)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="global"):
        subject.made(*subject.inputs, out=subject.out)
    with torch.cuda.stream(stream):  # outgrows it
        many = [tensor.repeat(200, 1) for tensor in subject.inputs]
        subject.made(*many)
    torch.cuda.synchronize()
    assert torch.equal(bits_of_replay(graph, subject), expected)


@each_device
def test_a_global_scale_of_2_to_the_120_is_refused(device):
    """Times 2^8, which the products of Hopper's kernels lack, it would overflow."""
    subject = OfLinear("bf16", device)
    for power, refused in ((119, False), (120, True)):
        weights = replace(subject.weights(1), global_scale=torch.full((1,), 2.0**power, device="cuda"))
        if refused:
            with pytest.raises(RuntimeError, match=r"global scales positive and below 2\^120"):
                subject.prepare(weights)
        else:
            subject.prepare(weights)


@each_mode
def test_tables_that_are_read_before_the_wait_are_not_stale(mode):
    """Few tokens leave multiprocessors idle, whose L1 may hold another routing's tables in the same workspace."""
    layers = [OfLayer(mode, "cuda") for _ in range(3)]
    for seed, layer in enumerate(layers):
        layer.prepare(layer.weights(seed))
        layer.inputs[1].copy_(generate.random_ids(T, E, K, torch.Generator().manual_seed(seed)))
    batches = [(layer, [tensor[:tokens] for tensor in layer.inputs]) for tokens in (1, 2, 3, 5, 8) for layer in layers]
    expected = [layer.made(*batch, workspace=layer.workspace) for layer, batch in batches]
    outs = [torch.empty_like(out) for out in expected]
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for (layer, batch), out in zip(batches, outs):
            layer.made(*batch, workspace=layers[0].workspace, out=out)
    for _ in range(100):
        for _ in range(20):
            graph.replay()
        assert all(torch.equal(out, wanted) for out, wanted in zip(outs, expected))
