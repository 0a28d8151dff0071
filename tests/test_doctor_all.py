# SPDX-License-Identifier: Apache-2.0
"""`doctor all`: the order of its questions, where it stops, and the picture; and the float64 experts beside our own."""

import json
import math
import sys
import xml.dom.minidom
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import doctor_models
import doctor_tokenizers
from nvfp4_moe import Checkpoint
from nvfp4_moe.doctor import all as everything
from nvfp4_moe.doctor import canonical, norm, picture
from nvfp4_moe.doctor.expert_reference import FileExperts, hypotheses, worst_row
from nvfp4_moe.doctor.finding import Report


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    """Healthy, with weights, tokenizer and ends."""
    monkeypatch.setattr(canonical, "vllm_contract", lambda _: None)
    doctor_tokenizers.deepseek(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 257}')
    return doctor_models.write(tmp_path, *doctor_models.healthy())


def ask(model: Path, capsys, **given) -> tuple[int, list[dict]]:
    defaults = {"offline": True, "keep_going": False, "json": True, "options": "{}", "picture": None}
    status = everything.run(Namespace(model=str(model), **defaults | given))
    return status, json.loads(capsys.readouterr().out)


def test_a_healthy_model_is_asked_everything(model, capsys):
    status, reports = ask(model, capsys)
    assert status == 0
    assert [(report["command"], report["findings"]) for report in reports] == [
        ("checkpoint", []),
        ("prompt", []),
        ("stop", []),
    ]


def test_it_stops_at_the_first_fault_unless_it_is_told_otherwise(model, capsys):
    tensors, config = doctor_models.healthy()
    doctor_models.set_scale("layers.2.attn.wq_a", 1e-3)(tensors, config)
    doctor_models.write(model, tensors, config)
    status, reports = ask(model, capsys)
    assert (status, [report["command"] for report in reports]) == (1, ["checkpoint"])
    status, reports = ask(model, capsys, keep_going=True)
    assert (status, len(reports)) == (1, 3)


def test_what_cannot_be_asked_is_a_note(model, capsys):
    (model / "tokenizer.json").unlink()
    status, reports = ask(model, capsys)
    assert status == 0
    assert [found["name"] for found in reports[1]["findings"]] == ["not-asked"]


SIZES = {"<the MoE output>": {0: 0.1, 1: 20.0, 2: math.nan}}


def test_without_matplotlib_a_png_is_an_svg(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert picture.draw(str(tmp_path / "p.png"), "a", SIZES, {0: 1e-3}) == str(tmp_path / "p.svg")
    assert [file.name for file in tmp_path.iterdir()] == ["p.svg"]


def test_with_matplotlib_it_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    file = picture.draw(str(tmp_path / "p.png"), "a & b", SIZES, {0: 1e-3, 1: 0.5})
    assert Path(file).read_bytes().startswith(b"\x89PNG")


def test_the_picture_is_an_image_of_every_layer(tmp_path):
    file = tmp_path / "p.svg"
    assert picture.draw(str(file), "a & b", SIZES, {0: 1e-3, 1: 0.5}) == str(file)
    image = xml.dom.minidom.parse(str(file))
    lines = image.getElementsByTagName("polyline")
    assert [len(line.getAttribute("points").split()) for line in lines] == [3, 2]
    first, second, _ = (point.split(",") for point in lines[0].getAttribute("points").split())
    assert float(first[1]) > float(second[1])  # what is larger is higher


HEALTHY_HEAD = {
    "final": "model.norm",
    "errors": {"model.norm": 0.002},
    "ran": True,
    "head_differs": 0.0,
    "factor": 0.01,
    "argmax": [7, 7],
    "behind": 0.0,
    "cosine": 0.99999,
    "sizes": [10.0, 10.0],
    "residual_rms": 9.0,
}


@pytest.mark.parametrize(
    ("changes", "findings"),
    [
        ({}, []),
        ({"argmax": [7, 8], "behind": 0.01}, []),  # rounding chose between two that are tied
        ({"argmax": [7, 8], "behind": 2.0}, ["residual-size-matters"]),
        ({"sizes": [10.0, 0.1]}, ["residual-size-matters"]),  # a linear head, without a norm
        ({"errors": {"model.norm": 9.3}}, ["norm-misapplied"]),
        ({"errors": {"model.norm": math.nan}}, ["norm-misapplied"]),
        ({"ran": False}, ["final-norm-missing"]),
        ({"final": None}, ["final-norm-missing"]),
        ({"head_differs": 0.7}, ["final-norm-bypassed"]),
    ],
)
def test_what_the_norms_numbers_mean(changes, findings):
    report = Report("norm", "model")
    norm.judge(report, HEALTHY_HEAD | changes)
    assert [found.name for found in report.findings] == findings


@pytest.fixture
def routed():
    g = torch.Generator().manual_seed(1)
    x = (torch.randn(6, doctor_models.HIDDEN, generator=g) * 0.05).bfloat16()
    ids = torch.tensor([[0], [1], [0], [1], [0], [1]])
    return x, ids, torch.rand(6, 1, generator=g) + 0.5


def test_the_float64_experts_are_the_layers(model, routed):
    x, ids, weights = routed
    checkpoint = Checkpoint(str(model))
    out = checkpoint.make_layer(2, mode="bf16")(x, ids.int(), weights)
    reference = FileExperts(checkpoint, 2)
    assert worst_row(out, reference.forward(x, ids, weights)) < 0.01
    parts = [FileExperts(checkpoint, 2, rows) for rows in ((0, 16), (16, 32))]  # as two tensor-parallel ranks
    assert worst_row(sum(part.forward(x, ids, weights) for part in parts), reference.forward(x, ids, weights)) < 1e-12


def test_every_hypothesis_is_another_one_where_the_clamp_acts(model, routed):
    x, ids, weights = routed
    tensors, config = doctor_models.healthy()
    tensors["layers.2.ffn.experts.0.w3.weight_scale_2"] = torch.tensor(0.02)
    doctor_models.write(model, tensors, config | {"routed_scaling_factor": 1.5, "swiglu_limit": 1.0})
    reference = FileExperts(Checkpoint(str(model)), 2)
    large = reference.amplified(x, ids)
    outputs = {"healthy": reference.forward(large, ids, weights)} | hypotheses(reference, large, ids, weights)
    # With two experts the next one is the one before.
    del outputs["the expert map is off by one (the expert's before)"]
    for one, first in outputs.items():
        for other, second in outputs.items():
            assert one == other or worst_row(first, second) > 0.05, (one, other)
