# SPDX-License-Identifier: Apache-2.0
"""`doctor stop`: every file that names an end, and what a bad answer did behind its own."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

import doctor_tokenizers
from nvfp4_moe.doctor import stop
from nvfp4_moe.doctor.directory import Directory
from nvfp4_moe.doctor.loops import Loop, repetition, tail_loop
from nvfp4_moe.doctor.tokenizer import Tokenizer

BOS, IM_END, IM_START, THINK, END_THINK = 256, 257, 258, 259, 260


def ask(directory: Path, capsys, output_ids: str | None = None) -> tuple[int, dict]:
    capsys.readouterr()
    status = stop.run(Namespace(model=str(directory), output_ids=output_ids, json=True))
    return status, json.loads(capsys.readouterr().out)


def model(directory: Path, generation: object = IM_END, config: object = IM_END, **options) -> Path:
    """A healthy one, but for what is given."""
    doctor_tokenizers.chatml(directory, **options)
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": generation, "temperature": 0.6}))
    whole = json.loads((directory / "config.json").read_text()) | {"eos_token_id": config}
    (directory / "config.json").write_text(json.dumps(whole))
    return directory


def faults(report: dict) -> set[str]:
    return {finding["name"] for finding in report["findings"] if finding["is_fault"]}


def test_healthy_models_have_no_finding(tmp_path, capsys):
    status, report = ask(model(tmp_path / "one"), capsys)
    assert (status, report["findings"]) == (0, [])
    assert ["stop set to use", "[257]"] in report["facts"]
    assert ["sampling", "temperature 0.6"] in report["facts"]
    deepseek = doctor_tokenizers.deepseek(tmp_path / "two")
    (deepseek / "generation_config.json").write_text('{"eos_token_id": 257}')
    assert ask(deepseek, capsys)[0] == 0


PLANTED = [
    ("end of turn is not in the stop set", {"generation": BOS, "eos_token": "<|bos|>"}, "end-not-in-stop-set"),
    ("no file names an end", {"generation": None, "config": None, "eos_token": None}, "no-end"),
    ("an end that is no token", {"eos_token": "<|im_endd|>"}, "eos-is-no-token"),
    ("an end outside the vocabulary", {"generation": [IM_END, 5000]}, "end-outside-vocabulary"),
    ("</think> is an end", {"generation": [IM_END, END_THINK]}, "thinking-marker-is-an-end"),
]


@pytest.mark.parametrize(("name", "given", "finding"), PLANTED, ids=[name for name, *_ in PLANTED])
def test_a_planted_fault_is_found_by_name(tmp_path, capsys, name, given, finding):
    status, report = ask(model(tmp_path, **given), capsys)
    assert status == 1
    assert finding in faults(report)


def test_the_missing_end_is_named_with_what_to_send(tmp_path, capsys):
    _, report = ask(model(tmp_path, generation=BOS, eos_token="<|bos|>"), capsys)
    (found,) = [each for each in report["findings"] if each["is_fault"]]
    assert "turns end with 257 '<|im_end|>'" in found["seen"]
    assert "Add [257] to eos_token_id" in found["do"]
    assert ["stop set to use", "[256, 257]"] in report["facts"]


def test_an_answer_that_passes_its_end(tmp_path, capsys):
    directory = model(tmp_path, generation=BOS, eos_token="<|bos|>")
    text = Tokenizer(Directory(str(directory))).encode("Paris.")
    ids = [*text, IM_END, *[10, 11] * 20]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    _, report = ask(directory, capsys, str(tmp_path / "ids.json"))
    (found,) = [each for each in report["findings"] if each["name"] == "output-passes-its-end"]
    assert found["seen"].startswith(f"token {len(text)} of {len(ids)} is 257 '<|im_end|>', an end; 40 tokens follow.")
    assert "outside the stop set [256]" in found["seen"]


def test_an_answer_that_only_loops_is_not_blamed_on_the_stop_set(tmp_path, capsys):
    _, report = ask(model(tmp_path), capsys, "1,2,3,70,71,70,71,70,71,70,71")
    assert faults(report) == {"output-loops"}
    assert "from token 3 of 11 on only" in report["findings"][0]["seen"]
    assert ask(model(tmp_path), capsys, "1,2,3,4,5,6,7,8,9")[0] == 0
    assert ask(model(tmp_path), capsys, f"1,2,3,{IM_END}")[0] == 0  # it ended, as it should


def test_loops():
    assert tail_loop([1, 2, 3] + [4] * 8) == Loop(3, 1, 8)
    assert tail_loop([9, 1, 2, 3, 1, 2, 3, 1, 2, 3]) == Loop(1, 3, 9)
    assert tail_loop([1, 2] * 3) is None  # six are no proof
    assert tail_loop(list(range(100))) is None
    assert repetition(list(range(100))) == 0
    assert repetition([1] * 100) > 0.98
