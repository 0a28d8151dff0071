# SPDX-License-Identifier: Apache-2.0
"""`doctor command`: serve commands that are right for their model, and each with one thing wrong."""

import json
import shlex
from argparse import Namespace

import pytest

import doctor_models
from nvfp4_moe.doctor import canonical, command
from nvfp4_moe.doctor.command_line import parse
from nvfp4_moe.doctor.finding import WrongUse

FLAGS = """--tokenizer-mode deepseek_v4 --reasoning-parser deepseek_v4 --enable-auto-tool-choice
    --tool-call-parser deepseek_v4 --compilation-config '{"cudagraph_mode": "FULL_DECODE_ONLY"}'"""
GOOD = f"vllm serve model {FLAGS}"


@pytest.fixture(autouse=True)
def model(tmp_path, monkeypatch):
    path = doctor_models.flash(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(canonical, "vllm_contract", lambda _: "official")
    return path


def found(text: str, **given) -> list[tuple[str, bool]]:
    arguments = {"words": ["--", *shlex.split(text)], "model_dir": None} | given
    return [(finding.name, finding.is_fault) for finding in command.check(Namespace(**arguments)).findings]


def test_the_right_command_has_no_finding():
    assert found(GOOD) == []
    assert found(f"{GOOD} -tp 2") == []
    assert found(f"env NVFP4_MOE_MODE=bf16 {GOOD} --tensor_parallel_size=8 --enable-expert-parallel") == []
    assert found(GOOD.replace("serve model", "serve hub/name"), model_dir="model") == []


# (what is wrong, the command, the finding, is it a fault)
PLANTS = [
    ("thoughts are not parsed", GOOD.replace("--reasoning-parser deepseek_v4", ""), "flag-missing", True),
    ("another model's parser", GOOD.replace("parser deepseek_v4", "parser hermes"), "flag-wrong", True),
    ("another tokenizer mode", GOOD.replace("mode deepseek_v4", "mode hf"), "flag-wrong", True),
    ("vLLM chooses the tokenizer mode", GOOD.replace("--tokenizer-mode deepseek_v4", ""), "flag-missing", False),
    ("the model's ends are dropped", f"{GOOD} --generation-config vllm", "ends-dropped", True),
    ("a setting is misspelt", f"NVFP4_MOE_MDOE=bf16 {GOOD}", "setting-unknown", True),
    ("a setting has no such value", f"NVFP4_MOE_MODE=fp4 {GOOD}", "setting-wrong", True),
    ("a rank's part is no block", f"{GOOD} -tp 4", "layer-refused", True),
    ("heads are not divisible", f"{GOOD} -tp 3 -ep", "heads-not-divisible", True),
    (
        "calibrating under graphs",
        f"NVFP4_MOE_MODE=nvfp4 NVFP4_MOE_SCALES=calibrated {GOOD}",
        "calibration-refused",
        True,
    ),
    ("another CUDA-graph mode", GOOD.replace("FULL_DECODE_ONLY", "PIECEWISE"), "graphs-not-tested", False),
    (
        "the same, dotted",
        f"vllm serve model {FLAGS.split('--comp')[0]} -cc.cudagraph_mode PIECEWISE",
        "graphs-not-tested",
        False,
    ),
    ("no graphs", f"{GOOD} --enforce-eager", "no-graphs", False),
    ("another backend", f"{GOOD} --moe-backend marlin", "left-to-vllm", False),
    ("another type", f"{GOOD} --dtype float16", "left-to-vllm", False),
    ("the plugin is off", f"NVFP4_MOE_DISABLE=1 {GOOD}", "left-to-vllm", False),
]


@pytest.mark.parametrize(
    ("text", "name", "is_fault"), [plant[1:] for plant in PLANTS], ids=[plant[0] for plant in PLANTS]
)
def test_a_planted_fault_is_found_by_name(text, name, is_fault):
    assert set(found(text)) == {(name, is_fault)}


def test_another_contract_in_vllm_is_said(monkeypatch):
    monkeypatch.setattr(canonical, "vllm_contract", lambda _: "preview")
    assert found(GOOD) == [("other-contract-in-vllm", False)]


def test_a_small_model_with_a_tokenizer_of_its_own_needs_no_flags(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 64}))
    assert found(f"vllm serve model {FLAGS[FLAGS.index('--comp') :]}") == []


STRANGE = [
    {"model_type": ["deepseek_v4"]},
    {"vocab_size": "129280"},
    {"num_attention_heads": {"a": 1}},
    {"eos_token_id": [[0]], "text_config": []},
]


@pytest.mark.parametrize("config", STRANGE)
def test_a_strange_config_is_no_crash(model, config):
    before = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(before | config))
    assert not {name for name, _ in found(GOOD)} - {"ends-dropped", "weights-not-read"}


def test_a_config_that_is_no_json_is_a_finding(model):
    (model / "config.json").write_text("[" * 100_000)
    assert found(GOOD) == [("unreadable-file", True)]


@pytest.mark.parametrize(
    "text",
    ["", "rm -rf model", "vllm bench model", "vllm serve", "vllm serve elsewhere", f"{GOOD} -tp two", f"{GOOD} -cc ["],
)
def test_what_is_no_serve_command_is_wrong_use(text):
    with pytest.raises(WrongUse):
        found(text)


def test_words_are_read_as_vllm_reads_them():
    serve = parse([f"A=1 B= vllm serve --enforce-eager {GOOD[11:]} -O3 --no-enable-prefix-caching --seed -1"])
    assert (serve.model, serve.environment) == ("model", {"A": "1", "B": ""})
    assert serve.flags["optimization-level"] == "3"
    assert serve.has("enforce-eager")
    assert not serve.has("enable-prefix-caching")
    assert serve.of_json("compilation-config", "cudagraph_mode") == "FULL_DECODE_ONLY"
