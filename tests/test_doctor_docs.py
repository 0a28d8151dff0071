# SPDX-License-Identifier: Apache-2.0
"""docs/garbage.md shows what the commands say: each `$ nvfp4-moe doctor ...` on a model that is made here runs."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

import doctor_models
import doctor_tokenizers
from fake_server import PLANTED, Engine, serving
from nvfp4_moe import __main__
from nvfp4_moe.doctor import canonical, counters, env

PAGE = (Path(__file__).parents[1] / "docs/garbage.md").read_text()
SHOWN = re.findall(r"^```\n\$ (nvfp4-moe doctor .*)\n((?:.*\n)*?)```", PAGE, re.MULTILINE)
COMMANDS = {"checkpoint", "prompt", "stop", "command", "serve", "counters", "layers", "norm", "attention", "env", "gpu"}
ELSEWHERE = {"layers", "norm", "attention", "env", "gpu"}  # needs vLLM, or tells of one machine
AGAIN = [(command, text) for command, text in SHOWN if shlex.split(command)[2] not in ELSEWHERE]
WORKERS = [
    {"device": f"cuda:{rank}", "saturated_blocks": 0, "nonfinite_values": 7 * rank, "out_of_range_ids": 0}
    | {"first_bad_token": 3 if rank else -1}
    for rank in range(2)
]


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The page's directories: one scale a thousandth of what it was, an end that nobody stops at, DeepSeek's config."""
    tensors, config = doctor_models.healthy()
    doctor_models.set_scale("layers.2.attn.wq_a", 1e-3)(tensors, config)
    doctor_models.write(tmp_path / "model", tensors, config)
    bos = doctor_tokenizers.DEEPSEEK[0]
    chat = doctor_tokenizers.deepseek(tmp_path / "chat", eos_token=bos)
    (chat / "generation_config.json").write_text(json.dumps({"eos_token_id": 256, "temperature": 1.0, "top_p": 1.0}))
    doctor_models.flash(tmp_path / "flash")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(env, "default_device", lambda: "cpu")
    monkeypatch.setattr(counters, "call", lambda *_: WORKERS)
    monkeypatch.setattr(canonical, "vllm_contract", lambda _: None)


@pytest.mark.parametrize(("command", "text"), AGAIN, ids=[command.split()[2] for command, _ in AGAIN])
def test_the_page_shows_what_the_command_says(models, capsys, monkeypatch, command, text):
    arguments = shlex.split(command)
    if arguments[2] == "serve":  # the page's server ignores the penalty
        _, attribute, replacement, _ = PLANTED[0]
        monkeypatch.setattr(Engine, attribute, replacement)
        with serving(Engine([1])) as url:
            said = run([url if each.startswith("http") else each for each in arguments], capsys, monkeypatch)
            text = text.replace("http://localhost:8000", url)
    else:
        said = run(arguments, capsys, monkeypatch)
    assert said == text


def run(arguments: list[str], capsys, monkeypatch) -> str:
    monkeypatch.setattr(sys, "argv", arguments)
    capsys.readouterr()
    __main__.main()
    return capsys.readouterr().out


def test_every_command_is_on_the_page():
    assert {shlex.split(command)[2] for command, _ in SHOWN} == COMMANDS
    assert len(AGAIN) == len(COMMANDS - ELSEWHERE)
