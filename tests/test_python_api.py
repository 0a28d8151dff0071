# SPDX-License-Identifier: Apache-2.0
"""What a Python programmer meets: kinds of errors, ownership, gradients, shapes, and graphs in another process."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch

import nvfp4_moe
import runner
from reference import generate

E, K, H, INTER, T = 4, 2, 64, 32, 6


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


@pytest.fixture
def layer(generator):
    return runner.make_layer(generate.random_code_weights(E, H, INTER, generator), num_experts=E, top_k=K)


@pytest.fixture
def inputs(generator):
    ids = generate.random_ids(T, E, K, generator)
    return generate.tokens(T, H, generator), ids, generate.random_topk_weights(T, K, generator)


def make_linear(seed=1, **options):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 256, (32, H // 2), generator=generator, dtype=torch.uint8)
    weights = nvfp4_moe.LinearWeights(numbers, torch.full((32, H // 16), 0x38, dtype=torch.uint8), torch.tensor([0.02]))
    return nvfp4_moe.Linear(in_features=H, out_features=32, **options).prepare(weights)


# ---- Errors --------------------------------------------------------------------------------------------------------

SIZES = dict(hidden_size=H, intermediate_size=INTER, num_experts=E, top_k=K)
FAILURES = {
    "argument": (
        lambda _: nvfp4_moe.Layer(**SIZES | {"top_k": 0}),
        "InvalidArgumentError",
        ValueError,
        1,
        "top_k is 0",
    ),
    "device": (
        lambda _: nvfp4_moe.Linear(in_features=H, out_features=H, mode="fp8"),
        *("UnsupportedError", NotImplementedError, 2, "mode is 3"),
    ),
    "workspace": (
        lambda x: runner.make_layer(
            generate.random_code_weights(E, H, INTER, torch.Generator()), num_experts=E, top_k=K
        )(*x, workspace=torch.empty(512, dtype=torch.uint8)),
        *("WorkspaceTooSmallError", ValueError, 3, r"Ask Layer.workspace_size or Linear.workspace_size"),
    ),
    "unprepared": (lambda x: nvfp4_moe.Layer(**SIZES)(*x), "NotPreparedError", RuntimeError, 4, "Call Layer.prepare"),
    "missing": (lambda _: nvfp4_moe.Checkpoint("no such folder"), "MissingFileError", FileNotFoundError, 6, "no such"),
}


@pytest.mark.parametrize(("call", "name", "python", "status", "text"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_what_python_calls_it_with_its_status_and_in_pythons_words(
    inputs, call, name, python, status, text
):
    with pytest.raises(getattr(nvfp4_moe, name), match=text) as caught:
        call(inputs)
    assert isinstance(caught.value, (nvfp4_moe.Error, RuntimeError))
    assert isinstance(caught.value, python)
    assert caught.value.status == status
    assert "nvfp4_moe_" not in str(caught.value)


def test_a_broken_checkpoint_is_a_value_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(nvfp4_moe.CheckpointError) as caught:
        nvfp4_moe.Checkpoint(tmp_path)
    assert isinstance(caught.value, ValueError)


def test_what_torch_refuses_stays_torchs_error(layer, inputs):
    with pytest.raises(RuntimeError) as caught:
        layer(inputs[0], "ids")
    assert not isinstance(caught.value, nvfp4_moe.Error)


# ---- Ownership -----------------------------------------------------------------------------------------------------


def test_a_layer_says_what_it_is(layer):
    text = "Layer(hidden_size=64, intermediate_size=32, num_experts=4, num_local_experts=4, top_k=2, mode='bf16'"
    assert repr(layer) == f"{text}, device='cpu')"
    assert repr(make_linear()) == "Linear(in_features=64, out_features=32, mode='default', device='cpu')"


def test_the_end_of_a_with_frees(layer, inputs):
    with layer as same:
        assert same is layer
        layer(*inputs)
    with pytest.raises(nvfp4_moe.InvalidArgumentError, match="no living layer"):
        layer(*inputs)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [lambda: nvfp4_moe.Layer(**SIZES), make_linear], ids=["layer", "linear"])
def test_nobody_copies_a_handle(make, duplicate):
    with pytest.raises(TypeError, match=r"cannot be copied or pickled: it owns memory of this process\. Make another"):
        duplicate(make())


# ---- Tensors -------------------------------------------------------------------------------------------------------


def test_gradients_are_refused_not_dropped(layer, inputs):
    x, ids, weights = inputs
    linear = make_linear()
    for call in (
        lambda: layer(x.clone().requires_grad_(), ids, weights),
        lambda: layer(x, ids, weights.clone().requires_grad_()),
        lambda: linear(x.clone().requires_grad_()),
        lambda: layer.calibrate(x.clone().requires_grad_(), ids),
        lambda: linear.calibrate(x.clone().requires_grad_()),
    ):
        with pytest.raises(nvfp4_moe.UnsupportedError, match=r"no gradients. Call it under torch.no_grad\(\)"):
            call()
        with torch.no_grad():
            call()


def test_leading_dimensions_are_rows(layer, inputs):
    x, ids, weights = (tensor.reshape(2, 3, -1) for tensor in inputs)
    expected = layer(*inputs)
    assert torch.equal(layer(x, ids, weights), expected.view(2, 3, H))
    assert torch.equal(layer(x, ids), layer(inputs[0], inputs[1]).view(2, 3, H))
    out = runner.poisoned(2, 3, H)
    assert layer(x, ids, weights, out=out) is out
    assert torch.equal(out, expected.view(2, 3, H))


# ---- Other processes -----------------------------------------------------------------------------------------------

EXPORT = """
import sys, torch
sys.path[:0] = {path!r}
import test_python_api
linear = test_python_api.make_linear(**{options!r})
class Model(torch.nn.Module):
    def forward(self, x):
        return linear(x)
torch.export.save(torch.export.export(Model(), (torch.ones(3, 64).bfloat16(),), strict=True), {file!r})
"""


def exported(tmp_path, **options):
    """A program that another process exported, whose linear has this name, if any."""
    file = str(tmp_path / "program.pt2")
    script = EXPORT.format(path=sys.path, options=options, file=file)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    return torch.export.load(file).module()


def test_an_exported_graph_never_runs_with_another_processs_weights(tmp_path):
    others = [make_linear(seed) for seed in range(4)]  # with counted ids, one of these had the exported linear's
    program = exported(tmp_path)
    with pytest.raises(RuntimeError, match="no living linear of this process has that id"):
        program(torch.ones(3, H).bfloat16())
    assert others


def test_an_exported_graph_finds_the_linear_of_its_name(tmp_path):
    program = exported(tmp_path, name="model.layers.3.wq_b")
    x = torch.ones(3, H).bfloat16()
    with pytest.raises(RuntimeError, match="no living linear"):
        program(x)
    mine = make_linear(2, name="model.layers.3.wq_b")
    assert torch.equal(program(x), mine(x))
    twin = make_linear(3, name="model.layers.3.wq_b")  # a second of that name does not take the first's place
    assert twin.id != mine.id
    assert torch.equal(program(x), mine(x))
