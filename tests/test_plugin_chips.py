# SPDX-License-Identifier: Apache-2.0
"""What the plugin says of chips that nobody ran the kernels on, over a vLLM of names only."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fake_vllm


@pytest.fixture(scope="module", autouse=True)
def _vllm_of_names():
    fake_vllm.install()
    yield
    fake_vllm.remove()


@pytest.mark.parametrize(("capability", "is_proved"), [((9, 0), True), ((10, 0), False), ((12, 1), False)])
def test_where_nobody_ran_the_kernels_it_is_said(monkeypatch, capability, is_proved):
    from nvfp4_moe.plugin import log, support

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(log, "current_platform", SimpleNamespace(device_type="cuda"))
    lines = []
    monkeypatch.setattr(log.logger, "warning", lambda text, *parts: lines.append(text % parts), raising=False)
    log.say_proof.cache_clear()
    log.say_proof()
    log.say_proof()
    log.say_proof.cache_clear()
    assert support.proof("cpu") is None
    if is_proved:
        assert lines == []
        return
    major, minor = capability
    (line,) = lines
    assert line.startswith(
        f"nvfp4_moe's kernels for compute capability {major}.{minor}: verified by stand-in on Hopper"
    )
    assert "not yet run on this chip by their authors. Their self-test here has passed." in line


def test_the_plugin_and_the_library_know_the_same_chips():
    from nvfp4_moe.plugin import support

    families = (Path(__file__).parents[1] / "rust/cuda/families.rs").read_text()
    (proved,) = re.findall(r"const PROVED: [^=]* = \[(.*)\];", families)
    pairs = re.findall(r"\((\d+), (\d+)\)", proved)
    assert tuple((int(major), int(minor)) for major, minor in pairs) == support.PROVED_CAPABILITIES
