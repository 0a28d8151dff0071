# SPDX-License-Identifier: Apache-2.0
"""`doctor serve` on a small server: healthy, with each planted fault, and where there is none."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import doctor_tokenizers
import fake_server
from fake_server import PLANTED, Engine, serving
from nvfp4_moe.doctor import canonical, serve
from nvfp4_moe.doctor.directory import Directory
from nvfp4_moe.doctor.finding import WrongUse
from nvfp4_moe.doctor.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return doctor_tokenizers.chatml(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def prompt_ids(model) -> list[int]:
    """Of the question, by the model's own template."""
    tokenizer = Tokenizer(Directory(str(model)))
    template = canonical.chat_template(Directory(str(model)), tokenizer)
    return tokenizer.encode(canonical.by_template(template, tokenizer, serve.QUESTION)[0].text)


def ask(url: str, model: Path | None, capsys, skip: list[str] | None = None) -> tuple[int, dict]:
    capsys.readouterr()
    arguments = Namespace(url=url, model_dir=str(model) if model else None, skip=skip, json=True)
    status = serve.run(arguments)
    return status, json.loads(capsys.readouterr().out)


# What cannot see a fault is not asked for it: it costs a second.
ASKED = {
    "repeat": ["repetition-penalty"],
    "count": ["other-penalties"],
    "logits": ["greedy"],
    "cached": ["prefix-cache"],
    "logprob": ["logprobs"],
    "choose": ["logprobs"],
    "chat": ["finish"],
    "tokenize": ["tokenize"],
    "batch": ["batch", "long-prompt"],
    "complete": ["logprobs"],
}


@pytest.mark.parametrize(("name", "attribute", "replacement", "finding"), PLANTED, ids=[name for name, *_ in PLANTED])
def test_a_planted_fault_is_found_by_name(
    model, prompt_ids, capsys, monkeypatch, name, attribute, replacement, finding
):
    monkeypatch.setattr(Engine, attribute, replacement)
    with serving(Engine(prompt_ids)) as url:
        status, report = ask(url, model, capsys, [each for each in serve.EXPERIMENTS if each not in ASKED[attribute]])
    assert status == 1
    assert finding in {found["name"] for found in report["findings"]}, report


def test_a_healthy_server_has_no_finding_and_says_what_it_does(model, prompt_ids):
    with serving(Engine(prompt_ids)) as url:
        command = [sys.executable, "-m", "nvfp4_moe", "doctor", "serve", url, "--model-dir", str(model), "--json"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "vllm_plugin")}, timeout=120
        )
    report = json.loads(done.stdout)
    assert (done.returncode, report["findings"]) == (0, [])
    facts = dict(report["facts"])
    assert facts["repetition_penalty"] == "1.5 reaches the sampler"
    assert facts["repetition_penalty and the prompt"] == "it sees the prompt's tokens"
    assert facts["frequency_penalty"] == "reaches the sampler"
    assert "equal to: chat template" in facts["the prompt"]
    assert done.stderr.count("... ") == len(serve.EXPERIMENTS)


def test_an_engine_without_a_feature_is_not_blamed(model, prompt_ids, capsys, monkeypatch):
    monkeypatch.setattr(Engine, "tokenize", lambda self, request: None)
    with serving(Engine(prompt_ids)) as url:
        status, report = ask(url, None, capsys, [name for name in serve.EXPERIMENTS if name != "tokenize"])
    assert status == 0
    assert any(name == "tokenize" and text.startswith("not decided: HTTP 404") for name, text in report["facts"])


def test_a_tie_is_no_fault(prompt_ids, capsys, monkeypatch):
    """Two tokens 0.1 apart change places from one request to the next."""

    def logits(self, ids, request):
        values = [0.0] * fake_server.VOCABULARY
        values[10 + self.asked % 2], values[11 - self.asked % 2] = 5.1, 5.0
        return values

    monkeypatch.setattr(Engine, "logits", logits)
    with serving(Engine(prompt_ids)) as url:
        status, report = ask(url, None, capsys, [name for name in serve.EXPERIMENTS if name != "greedy"])
    assert status == 0
    assert [found["name"] for found in report["findings"]] == ["greedy-differs"]
    assert "with a lead of 0.100 nats" in report["findings"][0]["seen"]


def test_where_there_is_no_server(capsys):
    status, report = ask("http://127.0.0.1:9", None, capsys)
    assert (status, [found["name"] for found in report["findings"]]) == (1, ["no-server"])
    for url, skip in (("file:///etc/passwd", None), ("http://localhost", ["nonsense"])):
        with pytest.raises(WrongUse):
            ask(url, None, capsys, skip)
