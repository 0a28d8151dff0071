# SPDX-License-Identifier: Apache-2.0
"""`doctor gpu`: on the CPU, whose layer has the same face, and on a GPU where there is one."""

import json
from argparse import Namespace

import pytest
import torch

from nvfp4_moe import Layer
from nvfp4_moe.doctor import gpu, self_test
from nvfp4_moe.doctor.finding import WrongUse


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sizes that take no time; layers are made anew."""
    for name, value in {"HIDDEN": 256, "INTER": 128, "EXPERTS": 8, "TOKENS": (1, 4, 8)}.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(self_test, "SHAPES", (self_test.Shape(144, 48),))
    monkeypatch.setattr(self_test, "TOKENS", (1, 9))
    gpu.made.cache_clear()
    yield
    gpu.made.cache_clear()


def ask(device: str, capsys, out: str | None = None) -> tuple[int, dict]:
    status = gpu.run(Namespace(device=device, out=out, inside_sanitizer=False, json=True))
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_healthy_device_has_no_finding(device, capsys, tmp_path):
    status, report = ask(device, capsys, str(tmp_path / "report.json"))
    assert (status, report["findings"]) == (0, [])
    facts = dict(report["facts"])
    assert float(facts["error in mode bf16"].split()[0]) < 0.01
    assert "us; reading" in facts["8 tokens, bf16"]
    assert "us; reading" in facts["8 tokens, nvfp4"]
    assert facts["self-test"].startswith("0 of ")
    assert int(facts["self-test"].split()[2]) >= 2 * 2 * 2  # modes, of a layer and a linear, numbers of tokens
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["facts"] == report["facts"][:-1]


@pytest.mark.parametrize(
    ("name", "damage", "finding"),
    [
        ("values are wrong", lambda out, n: out * 1.1, "layer-is-wrong"),
        ("one value is wrong", lambda out, n: out.index_fill(0, torch.tensor([len(out) - 1]), 0.0), "layer-is-wrong"),
        (
            "a bit is wrong",
            lambda out, n: out.view(torch.int16).bitwise_xor(n % 2).view(out.dtype),
            "differs-from-portable",
        ),
        ("runs differ", lambda out, n: out * (1 + 2**-7 * (n % 2)), "not-repeatable"),
    ],
)
def test_a_planted_fault_is_found_by_name(name, damage, finding, capsys, monkeypatch):
    healthy, count = Layer.forward, iter(range(10**6))
    monkeypatch.setattr(Layer, "__call__", lambda self, *a, **k: damage(healthy(self, *a, **k), next(count)))
    status, report = ask("cpu", capsys)
    assert status == 1
    assert finding in {found["name"] for found in report["findings"]}


def test_kernels_that_do_not_run_are_a_finding(capsys, monkeypatch):
    def fails(self, *arguments, **options):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(Layer, "__call__", fails)
    status, report = ask("cpu", capsys)
    assert status == 1
    assert {found["name"] for found in report["findings"]} == {"step-fails"}


def test_where_there_is_no_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WrongUse, match="no GPU"):
        ask(None, capsys)


def test_the_self_tests_data_has_one_right_answer():
    """Sums in float32 of any order are those in float64, and x is NVFP4 as it is: with a scale of 1 nothing is lost."""
    from nvfp4_moe import format as nvfp4

    generator = torch.Generator().manual_seed(3)
    for shape in (self_test.SHAPES[0], self_test.Shape(4112, 1040)):
        x = self_test.inputs(40, shape.hidden, generator).float()
        codes, scales = self_test.values_of((64, shape.hidden), generator)
        weights = nvfp4.dequantize(codes, scales, 1.0).float()
        exact = x.double() @ weights.double().T
        shuffled = torch.randperm(shape.hidden, generator=generator)
        assert torch.equal((x[:, shuffled] @ weights[:, shuffled].T).double(), exact)
        assert torch.equal(sum(x[:, i, None] * weights[None, :, i] for i in range(shape.hidden)).double(), exact)
        assert (exact * 16 == (exact * 16).round()).all()
        assert exact.abs().max() < 2**18
