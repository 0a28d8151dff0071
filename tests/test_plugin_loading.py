# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint lacks and what its input scales are worth, over a vLLM of names only."""

from types import SimpleNamespace

import pytest
import torch

import fake_vllm

E, H, INTER = 3, 64, 32
NAN = float("nan")


@pytest.fixture(scope="module", autouse=True)
def _vllm_of_names():
    fake_vllm.install()
    yield
    fake_vllm.remove()


# ---- What was never loaded -------------------------------------------------------------------------------------------


class Module(torch.nn.Module):
    """Parameters as vLLM's method makes them, with whatever memory held."""

    def __init__(self, packed: str = "", encodes: bool = False):
        super().__init__()
        self.layer_name = "model.layers.7.mlp.experts"
        weight, inputs = ("weight_global_scale", "input_global_scale") if encodes else ("weight_scale_2", "input_scale")
        for name, shape, dtype in (
            (f"w13_weight{packed}", (E, 2 * INTER, H // 2), torch.uint8),
            (f"w2_weight{packed}", (E, H, INTER // 2), torch.uint8),
            ("w13_weight_scale", (E, 2 * INTER, H // 16), torch.float8_e4m3fn),
            ("w2_weight_scale", (E, H, INTER // 16), torch.float8_e4m3fn),
            (f"w13_{weight}", (E, 2), torch.float32),
            (f"w2_{weight}", (E,), torch.float32),
            (f"w13_{inputs}", (E, 2), torch.float32),
            (f"w2_{inputs}", (E,), torch.float32),
        ):
            data = torch.full(shape, 3, dtype=torch.uint8).to(dtype)
            self.register_parameter(name, torch.nn.Parameter(data, requires_grad=False))


@pytest.fixture(params=[("", False), ("_packed", True)], ids=["modelopt", "compressed-tensors"])
def module(request):
    return Module(*request.param)


def load(module, value: int = 0) -> None:
    """All of a checkpoint's tensors, each of one legal value."""
    for parameter in module.parameters():
        parameter.data.view(torch.uint8).fill_(value)


def test_nothing_is_missing_where_all_was_loaded(module):
    from nvfp4_moe.plugin import loaded

    for value in (0, 0x38):
        loaded.mark(module)
        load(module, value)
        assert loaded.missing(module) == {}


def test_everything_is_missing_before(module):
    from nvfp4_moe.plugin import loaded

    loaded.mark(module)
    weights = {name for name, _ in module.named_parameters() if "input" not in name}
    assert loaded.missing(module) == {name: [0, 1, 2] for name in weights}


def test_one_shard_of_one_expert(module):
    """Up of expert 1, and the down codes of expert 2; the text names layer, tensors and experts."""
    from nvfp4_moe.plugin import loaded

    loaded.mark(module)
    marked = {name: parameter.data.view(torch.uint8).clone() for name, parameter in module.named_parameters()}
    load(module, 0x38)
    parameters = {name: parameter.data.view(torch.uint8) for name, parameter in module.named_parameters()}
    codes = next(name for name in parameters if name in ("w2_weight", "w2_weight_packed"))
    parameters["w13_weight_scale"][1, INTER:] = marked["w13_weight_scale"][1, INTER:]
    parameters[codes][2] = marked[codes][2]
    found = loaded.missing(module)
    assert found == {codes: [2], "w13_weight_scale": [1]}
    with pytest.raises(
        ValueError, match=rf"model.layers.7.*: {codes} of expert 2; w13_weight_scale of expert 1 is miss"
    ):
        loaded.refuse_missing(module.layer_name, found)


def test_a_row_of_minus_zero_is_no_missing_tensor(module):
    """A checkpoint may hold the mark in a row, but not in a tensor that is zero elsewhere."""
    from nvfp4_moe.plugin import loaded

    loaded.mark(module)
    load(module, 0x38)
    codes = next(parameter for name, parameter in module.named_parameters() if name.startswith("w13_weight"))
    codes.data[0, 0] = loaded.CODE_MARK
    assert loaded.missing(module) == {}


def test_padding_behind_a_shard_stays_zero(module):
    """Only a shard's first row is marked, and of its scales the first."""
    from nvfp4_moe.plugin import loaded

    loaded.mark(module)
    scales = module.w13_weight_scale.data.view(torch.uint8)
    assert scales.count_nonzero() == 2 * E
    assert not scales[:, 1:INTER].any()


def test_many_experts_are_listed_shortly():
    from nvfp4_moe.plugin.loaded import listed

    assert listed([3]) == "expert 3"
    assert listed([0, 4]) == "experts 0, 4"
    assert listed(list(range(64))) == "experts 0, 1, 2, 3, 4, 5, 6, 7 and 56 more"


# ---- Input scales: the rule and the examples of rust/checkpoint/input_scale.rs ---------------------------------------

SETTLED = {
    "placeholders and giants": ([0.001, 1.0, 0.003, 0.002, 1e6, 3.4e38, NAN], 0.003, 4),
    "all are placeholders": ([1.0, 1.0], 0.0, 2),
    "tens are what experts differ by": ([0.001, 0.002, 0.003, 0.09], 0.09, 0),
    "one of two is no exception": ([1e-6, 0.01], 0.01, 0),
    "nor are three of four": ([1e-6, 0.01, 0.02, 0.03], 0.03, 0),
    "above a gap": ([1e-7, 0.001, 0.002, 0.003, 500.0], 0.003, 1),
    "zero, denormal, infinite, negative": ([0.004, 0.0, 1e-40, float("inf"), -0.5], 0.004, 4),
    "nothing": ([], 0.0, 0),
}


@pytest.mark.parametrize("case", SETTLED)
def test_the_maximum_is_over_what_was_measured(case):
    from nvfp4_moe.plugin.input_scales import settle

    stored, scale, num_left_out = SETTLED[case]
    settled = settle({f"expert {at}": value for at, value in enumerate(stored)})
    assert settled.scale == scale
    assert len(settled.left_out) == num_left_out


def test_what_is_left_out_is_named():
    from nvfp4_moe.plugin.input_scales import settle

    settled = settle({"expert 0": 0.001, "expert 1": 1.0, "expert 2": 0.002, "expert 3": NAN, "expert 4": 900.0})
    assert settled.left_out == [
        ("expert 1", "1, a placeholder"),
        ("expert 3", "nan"),
        ("expert 4", "900, where the largest of all others is 0.002"),
    ]


def test_the_experts_scale_is_over_gate_and_up(monkeypatch):
    from nvfp4_moe.plugin import experts, input_scales

    warned = []
    monkeypatch.setattr(
        input_scales.logger, "warning", lambda text, *values: warned.append(text % values), raising=False
    )
    ours = object.__new__(experts.Nvfp4MoeExperts)
    ours.layer_name = "layer 7"
    layer = SimpleNamespace(
        w13_input_scale=torch.nn.Parameter(torch.tensor([[0.01, 0.02], [0.01, NAN], [1.0, 0.03]])),
        w2_input_scale=torch.nn.Parameter(torch.tensor([0.5, 0.25, 0.125])),
    )
    assert ours._checkpoint_scale(layer, "w13") == pytest.approx(0.03)
    assert ours._checkpoint_scale(layer, "w2") == 0.5
    (line,) = warned
    assert "layer 7: w13_input_scale of expert 1 (w3) is nan; expert 2 (w1) is 1, a placeholder: left out" in line


# ---- Calibrated scales, where weights are loaded again ---------------------------------------------------------------


def test_what_was_measured_on_the_old_weights_is_measured_again_and_a_files_scales_stay(monkeypatch, tmp_path):
    from nvfp4_moe.plugin import scales

    asked = []
    monkeypatch.setattr(scales, "refuse_where_unseen", lambda: asked.append("may it be measured?"))
    measured = scales.Calibration(None)
    assert measured.known("layer 0") is None
    measured.record("layer 0", [0.1, 0.2])
    assert measured.known("layer 0") is None
    assert measured.waiting == {"layer 0"}
    assert len(asked) == 1  # at the first load, when vLLM has its configuration
    scales.write_scales(tmp_path / "scales.json", {"layer 0": [0.3, 0.4]})
    assert scales.Calibration(str(tmp_path / "scales.json")).known("layer 0") == [0.3, 0.4]


def test_a_calibration_that_begins_again_forgets_the_old_weights_maxima():
    from nvfp4_moe.plugin import scales

    seen = [[0.5, 0.5]]
    scales.LayerCalibration("layer 0", seen.pop, lambda *scales: None, use_ep=False)
    assert not seen
