# SPDX-License-Identifier: Apache-2.0
"""What becomes of our output in vLLM's kernel and runner: no copy, one addition of the shared experts' output."""

from types import SimpleNamespace

import pytest
import tiny_layers
import torch
from tiny_layers import EXPERTS, HIDDEN, TOKENS, TOP_K, load_experts, make_experts, process
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

import vllm
from reference import generate


@pytest.fixture(scope="module", autouse=True)
def _engine():
    with tiny_layers.engine():
        yield


@pytest.fixture
def layer():
    made = make_experts("modelopt")
    load_experts(made, "modelopt")
    return process(made)


@pytest.fixture
def workspaces(monkeypatch):
    """0.26 has none on a CPU; any vLLM takes these there, which lie side by side as on a GPU."""
    from vllm.v1.worker import workspace

    give = lambda *wanted: [torch.full(shape, torch.nan, dtype=dtype) for shape, dtype in wanted]  # noqa: E731
    monkeypatch.setattr(workspace, "_manager", SimpleNamespace(get_simultaneous=give))


class Written(TorchDispatchMode):
    """Operators that write or make a tensor of all tokens' values."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **named or {})
        name = function.__name__.split(".")[0]
        if name in ("copy_", "clone", "_to_copy", "add", "add_", "moe_forward"):
            self.names.append(name)
        return made


GENERATOR = torch.Generator().manual_seed(1)
IDS = generate.random_ids(TOKENS, EXPERTS, TOP_K, GENERATOR)
WEIGHTS = generate.random_topk_weights(TOKENS, TOP_K, GENERATOR)


def call(layer, x: torch.Tensor) -> torch.Tensor:
    """As vLLM's methods do: through its kernel."""
    return layer.quant_method.moe_kernel.apply(
        x,
        layer.w13_weight,
        layer.w2_weight,
        topk_ids=IDS[: len(x)],
        topk_weights=WEIGHTS[: len(x)],
        activation=layer.activation,
        global_num_experts=EXPERTS,
        expert_map=None,
        apply_router_weight_on_input=False,
    )


@pytest.fixture
def x():
    return generate.tokens(TOKENS, HIDDEN, torch.Generator().manual_seed(1))


def test_the_kernel_copies_nothing(layer, workspaces, x):
    """The layer writes the tensor that the kernel returns; calls of other sizes, too."""
    with Written() as written:
        out = call(layer, x)
    assert written.names == ["moe_forward"]
    assert out.isfinite().all()
    assert torch.equal(call(layer, x), out)
    assert call(layer, x[:1]).shape == (1, HIDDEN)


def test_without_that_the_kernel_copies_where_vllm_gives_scratch(layer, workspaces, x):
    """What the test above would see: before 0.32 one copy. The bits are the same."""
    out = call(layer, x)
    layer.quant_method.moe_kernel.fused_experts.may_run_late = False
    with Written() as written:
        assert torch.equal(call(layer, x), out)
    version = tuple(map(int, vllm.__version__.split(".")[:2]))
    assert written.names == ["moe_forward", *["copy_"] * (version < (0, 32))]


class Runner(MoERunner):
    """vLLM's, of one layer, whose experts and shared experts have computed."""

    def __init__(self, layer, shared, routed):
        torch.nn.Module.__init__(self)
        self.routed_experts, self._shared_experts, self.moe_config = layer, torch.nn.Identity(), layer.moe_config
        self.routed_input_transform = self.routed_output_transform = self.router = None
        self.routed_scaling_factor = 1.0
        self._forward_entry = lambda *_: (shared, routed)

    def _encode_layer_name(self):
        return self.routed_experts.layer_name


def test_the_runner_adds_the_shared_output_by_itself(layer, x):
    """And takes no sum that is made already. Where this fails vLLM has a seam for `shared_output` (docs/serving.md)."""
    runner = Runner(layer, x, 2 * x)
    with Written() as written:
        out = runner.forward(x, x)
    assert written.names == ["add"]
    assert torch.equal(out, x + 2 * x)
    with pytest.raises(AssertionError):
        runner._maybe_combine(None, x)
