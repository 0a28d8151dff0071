# SPDX-License-Identifier: Apache-2.0
"""What `doctor layers` and `doctor attention` make of numbers; tests/vllm has real ones."""

import math
from types import SimpleNamespace

import pytest
import torch

from nvfp4_moe.doctor import attention, layers, layers_verdict, moe_probe
from nvfp4_moe.doctor.attention import LENGTH, Rule, rule_of
from nvfp4_moe.doctor.expert_reference import row_cosines
from nvfp4_moe.doctor.finding import Report
from nvfp4_moe.doctor.hooks import FIELDS, Recorder, reduce
from nvfp4_moe.errors import UnsupportedError


class Engine:
    """Answers as two tensor-parallel workers do, of which each has a part of one sum."""

    model = "model"

    def __init__(self):
        self.saved = self.compared = None

    def watch(self, prompt, keep):
        assert keep

    def workers(self, method, *arguments):
        if method == "boundaries":
            return [[], []]
        if method == "experts":
            return [
                {"rank": rank, "mode": "bf16", "layers": [], "blocks": 0, "counters": dict(COUNTERS)} for rank in (0, 1)
            ]
        if method == "kept":
            return [{"layers.0.attn": 1, "layers.0.shared": 2}, {"layers.0.attn": 1, "layers.0.shared": 3}]
        if method == "save":
            self.saved = arguments[1]
            return [None, None]
        self.compared = arguments[1]
        return [[["layers.0.attn", 0.999, 0.01]], []]


COUNTERS = {"saturated_blocks": 0, "nonfinite_values": 0, "out_of_range_ids": 0, "first_bad_token": -1}


def test_a_part_of_a_sum_is_neither_saved_nor_compared():
    engine, report = Engine(), Report("layers", "model")
    layers.examine(report, engine, save="file", against="other")
    assert engine.saved == engine.compared == ["layers.0.attn"]
    assert report.faults == []


def row(name: str, layer: int, **changes) -> dict:
    return {"name": name, "step": 0, "layer": layer, "numel": 10.0, "nan": 0.0, "inf": 0.0, "first_nan": 0.0} | {
        "first_inf": 0.0,
        "min": -1.0,
        "max": 1.0,
        "rms": 0.5,
        **changes,
    }


def test_the_first_infinity_of_attention_is_not_the_experts():
    rows = [row("embed", -1), row("layers.0.attn", 0), row("layers.1.attn", 1, inf=2.0, first_inf=7.0)]
    rows.append(row("layers.1.ffn.experts", 1, nan=10.0))
    report = Report("layers", "model")
    layers_verdict.first_not_finite(report, [rows], [{"layers": []}])
    (found,) = report.faults
    assert found.seen.startswith(
        "first infinity in the prompt at layer 1 in the attention output (layers.1.attn, element 7"
    )
    assert "experts" not in found.means


def test_a_nan_that_a_sum_passes_to_all_ranks_is_the_guilty_ones():
    rows = [row("embed", -1), row("layers.1.ffn.experts", 1, nan=10.0)]
    ill = {"layer": 1, "verdict": "not finite", "experts": {32: "down"}, "files": {32: None}}
    report = Report("layers", "model")
    layers_verdict.first_not_finite(report, [rows, rows], [{"layers": []}, {"layers": [ill]}])
    (found,) = report.faults
    assert found.seen.startswith("first NaN on rank 1 in the prompt at layer 1 in the MoE output")
    assert "expert 32 alone produces it, in its down" in found.means


def test_what_differs_from_a_saved_run_is_named_first():
    report = Report("layers", "model")
    compared = [["layers.0.attn", 0.9999, 0.99], ["layers.0.ffn", 0.42, 0.1], ["layers.1.attn", -1.0, -1.0]]
    layers_verdict.against(report, compared, "file", 0.99)
    assert "layers.0.ffn is the first of 3 outputs whose median token has a cosine below 0.99: 0.4200" in (
        report.faults[0].seen
    )
    assert "the 1 before agree to 0.9999" in report.faults[0].seen


def test_a_few_tokens_that_differ_are_a_note():
    report = Report("layers", "model")
    layers_verdict.against(report, [["layers.0.ffn", 0.9999, 0.3], ["layers.1.ffn", 0.9998, 0.2]], "file", 0.99)
    assert [(found.name, found.is_fault) for found in report.findings] == [("tokens-differ-from-saved", False)]


class Files:
    """A checkpoint whose experts have biases, or that cannot be read at all."""

    def __init__(self, refusal: str | None):
        self.refusal = refusal

    def layer_info(self, _layer, any_activation):
        if self.refusal:
            raise UnsupportedError(self.refusal)
        return SimpleNamespace(activation="gelu_tanh", has_bias=True)


@pytest.mark.parametrize("refusal", [None, "layer 0 is stored in a way of its own"])
def test_experts_without_a_reference_are_no_fault(refusal):
    experts = SimpleNamespace(layer_name="model.layers.0.mlp.experts", handle=SimpleNamespace(weights=None))
    arguments = {"hidden_states": torch.ones(2, 4).bfloat16(), "topk_ids": torch.zeros(2, 1), "expert_map": None}
    arguments |= {"topk_weights": torch.ones(2, 1), "apply_router_weight_on_input": False, "global_num_experts": 1}
    call = moe_probe.Call(experts, arguments, torch.ones(2, 4))
    found = moe_probe.examine(Files(refusal), call, "bf16", 2, (0, 1))
    assert (found["verdict"], found["why"]) == ("not compared", refusal or "activation gelu_tanh and biases")
    report = Report("layers", "model")
    ranks = [{"rank": 0, "mode": "bf16", "layers": [found]}]
    layers_verdict.table(report, [row("layers.0.mlp", 0)], ranks)
    layers_verdict.moe(report, ranks)
    assert report.findings == []
    assert f"experts not compared: {found['why']}" in dict(report.facts)["layer 0 rms/amax"]


def test_rows_are_compared_each_by_itself():
    values = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    other = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert row_cosines(values, other).tolist() == [1.0, 1.0, 0.0]
    assert row_cosines(values, values * torch.nan).isnan().all()


def test_reductions_name_the_first_of_each_and_pass_over_the_rest():
    values = torch.tensor([[3.0, -4.0], [math.nan, math.inf], [math.nan, 0.0]])
    found = dict(zip(FIELDS, reduce(values).tolist()))
    assert (found["numel"], found["nan"], found["inf"]) == (6, 2, 1)
    assert (found["first_nan"], found["first_inf"], found["min"], found["max"]) == (2, 3, -4, 3)
    assert found["rms"] == pytest.approx((25 / 3) ** 0.5)


def test_a_recorder_leaves_the_model_as_it_was():
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    model.forward = lambda x: model["layers"][0](x)
    before = [dict(module._forward_hooks) for module in model.modules()]
    recorder = Recorder(model)
    model(torch.ones(2, 4))
    recorder.remove()
    model(torch.ones(2, 4))
    assert [(each["name"], each["layer"], each["step"]) for each in recorder.table()] == [("layers.0", 0, 0)]
    assert [dict(module._forward_hooks) for module in model.modules()] == before


CONFIGS = [
    ({"compress_ratios": [0, 4, 128], "sliding_window": 128}, [Rule(128, 0), Rule(128, 4), Rule(128, 128)]),
    ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 64}, [Rule(None, 0), Rule(64, 0)]),
    ({"model_type": "gpt_oss", "sliding_window": 64}, [Rule(64, 0), Rule(None, 0), Rule(64, 0)]),
    ({"sliding_window": 4096, "use_sliding_window": False}, [Rule(None, 0)]),
    ({}, [Rule(None, 0)]),
]


@pytest.mark.parametrize(("config", "rules"), CONFIGS)
def test_rules_come_from_the_config(config, rules):
    assert [rule_of(config, layer) for layer in range(len(rules))] == rules


def test_a_block_is_seen_when_it_has_ended():
    rule = Rule(128, 128)
    assert not rule.sees(130, 131)
    assert rule.sees(258, 130)  # behind the window, in block 1, which ended at 255
    assert not Rule(128, 0).sees(258, 130)
    assert [query for query in range(LENGTH) if Rule(16, 64).sees(query, 70)] == [*range(70, 86), *range(127, LENGTH)]


def test_healthy_ranges_have_no_finding_and_an_off_by_one_is_named():
    rule, key = Rule(128, 0), 100
    change = [1.0 if rule.sees(query, key) else 0.0 for query in range(LENGTH)]
    report = Report("attention", "model")
    attention.judge_range(report, [{"layer": 3, "change": change}], {3: rule}, key)
    assert report.findings == []
    change[key + 128] = 1e-3
    attention.judge_range(report, [{"layer": 3, "change": change}], {3: rule}, key)
    assert [found.name for found in report.faults] == ["sees-too-much"]
    assert "layer 3: position 228 moves with token 100, 128 before it" in report.faults[0].seen


@pytest.mark.parametrize(("saturated", "is_fault"), [(2, False), (500, True)])
def test_a_few_saturated_blocks_are_a_note(saturated, is_fault):
    report = Report("layers", "model")
    rank = {"rank": 0, "blocks": 100_000, "counters": COUNTERS | {"saturated_blocks": saturated}}
    layers_verdict.counters(report, [rank])
    assert [(found.name, found.is_fault) for found in report.findings] == [("saturation", is_fault)]
