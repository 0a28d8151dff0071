# SPDX-License-Identifier: Apache-2.0
"""`doctor gpu`: on the CPU, whose layer has the same face, and on a GPU where there is one."""

import json
from argparse import Namespace

import pytest
import torch

from nvfp4_moe import Layer
from nvfp4_moe.doctor import gpu
from nvfp4_moe.doctor.finding import WrongUse


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sizes that take no time; layers are made anew."""
    for name, value in {"HIDDEN": 256, "INTER": 128, "EXPERTS": 8, "TOKENS": (1, 4, 8)}.items():
        monkeypatch.setattr(gpu, name, value)
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
    assert "us; reading" in facts["8 tokens"]
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["facts"] == report["facts"][:-1]


@pytest.mark.parametrize(
    ("name", "damage", "finding"),
    [
        ("values are wrong", lambda out, n: out * 1.1, "layer-is-wrong"),
        ("one value is wrong", lambda out, n: out.index_fill(0, torch.tensor([len(out) - 1]), 0.0), "layer-is-wrong"),
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
