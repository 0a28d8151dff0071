# SPDX-License-Identifier: Apache-2.0
"""`doctor attention` about sinks, on a toy model in torch: with biases and without, healthy and ill."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from nvfp4_moe.doctor import attention
from nvfp4_moe.doctor.finding import Report
from nvfp4_moe.doctor.sink_probe import num_heads
from nvfp4_moe.doctor.worker import Probe

HIDDEN, HEADS, HEAD_DIM, PADDING = 32, 2, 16, 2


class Attention(torch.nn.Module):
    """Causal, without rotation; `weigh` makes logits of sinks, padding heads stand behind the others."""

    def __init__(self, biased: bool):
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(HIDDEN, HIDDEN, bias=biased) for _ in range(4))
        self.sinks = torch.nn.Parameter(torch.tensor([0.3, -0.4] + PADDING * [-torch.inf]), requires_grad=False)
        self.weigh, self.leak = lambda sinks: sinks, 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (each(x).view(len(x), HEADS, HEAD_DIM).transpose(0, 1) for each in (self.q, self.k, self.v))
        logits = q @ k.transpose(1, 2) * HEAD_DIM**-0.5
        logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -torch.inf)
        sinks = self.weigh(self.sinks[:HEADS])[:, None, None].expand(HEADS, len(x), -1)
        weights = torch.cat([logits, sinks], dim=-1).softmax(-1)[..., : len(x)]
        out = (weights @ v).transpose(0, 1).flatten(1)
        return self.o(out + self.leak * torch.sigmoid(-self.sinks[-1]) * x)


class Model(torch.nn.Module):
    def __init__(self, biased: bool):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(1000, HIDDEN)
        self.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"self_attn": Attention(biased)}) for _ in range(2)])

    def forward(self, ids: list[int]) -> torch.Tensor:
        x = self.embed(torch.tensor(ids))
        for layer in self.layers:
            x = x + layer["self_attn"](x)
        return x


class Engine:
    """As the doctor's, in this process and without vLLM."""

    def __init__(self, model: Model, path):
        self.model, self.module, self.probe = str(path), model, Probe()
        self.probe.model_runner = SimpleNamespace(get_model=lambda: model)

    @torch.inference_mode()
    def ask(self, prompt: list[int], num_forwards: int = 1) -> None:
        self.module(prompt)

    def workers(self, method: str, *arguments):
        return [getattr(self.probe, f"nvfp4_moe_doctor_{method}")(*arguments)]


def asked(path, biased: bool = False, layer: int = 1, stored: float = 0.3, **damage) -> Report:
    """What is said of a toy whose files have these sinks, with one layer's attention damaged."""
    model = Model(biased)
    for name, value in damage.items():
        setattr(model.layers[layer]["self_attn"], name, value)
    (path / "config.json").write_text(json.dumps({"model_type": "toy"}))
    sinks = {f"model.layers.{at}.attn.sinks": torch.tensor([stored, -0.4]) for at in range(2)}
    save_file(sinks, path / "model.safetensors")
    report = Report("attention", "toy")
    attention.examine(report, Engine(model, path), skip=("range", "decode", "shift"))
    assert [layer["self_attn"].sinks[0] for layer in model.layers] == [pytest.approx(0.3)] * 2
    return report


@pytest.mark.parametrize("biased", [False, True])
def test_a_healthy_model_has_no_finding(tmp_path, biased):
    report = asked(tmp_path, biased)
    assert report.findings == []
    facts = dict(report.facts)
    assert facts["attention sinks"] == "2 layers, 2 heads and 2 of padding on a rank"
    assert biased or facts["a sink of 0 weighs"] == "1.000 to 1.000 keys of logit 0"


FAULTS = [
    ("ignored", {"weigh": lambda sinks: sinks - torch.inf}, "sink-ignored", "layer 1, head 0"),
    ("doubled logit", {"weigh": lambda sinks: 2 * sinks}, "sink-misapplied", "doubled"),
    ("under another base", {"weigh": lambda sinks: sinks * 0.6931}, "sink-misapplied", "under another base"),
    ("added twice", {"weigh": lambda sinks: sinks.repeat(2, 1).logsumexp(0)}, "sink-misapplied", "added 2 times"),
    ("padding leaks", {"leak": 1.0}, "padding-head-leaks", "layer 1: garbage in 2 padding heads"),
    ("not loaded", {"stored": 1.5}, "sinks-not-the-files", "layer 0: the sink of head 0 is 0.3"),
]


@pytest.mark.parametrize(
    ("damage", "name", "words"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
def test_a_fault_is_found_by_name(tmp_path, damage, name, words):
    (found,) = asked(tmp_path, **damage).findings
    assert found.name == name
    assert words in found.seen + found.means


@pytest.mark.parametrize(("damage", "name"), [(fault[1], fault[2]) for fault in FAULTS[:3]])
def test_where_zeros_have_logits_a_sink_that_grows_wrongly_is_found(tmp_path, damage, name):
    """What is added twice is not: only its growth is known."""
    assert [found.name for found in asked(tmp_path, biased=True, **damage).findings] == [name]


def test_a_model_without_sinks_is_not_asked(tmp_path):
    report, model = Report("attention", "toy"), Model(False)
    for layer in model.layers:
        layer["self_attn"].register_parameter("sinks", None)
        layer["self_attn"].forward = layer["self_attn"].q.forward
    (tmp_path / "config.json").write_text("{}")
    attention.examine(report, Engine(model, tmp_path), skip=("range", "decode", "shift"))
    assert (report.findings, dict(report.facts)["attention sinks"]) == ([], "none")


def test_padding_is_what_nobody_loaded():
    assert num_heads([0.0, 1.0, -torch.inf]) == 2
    assert num_heads(2 * [-torch.inf]) == 2
