# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001
"""`doctor prompt`: DeepSeek-V4's encodings byte for byte, and every way to get a prompt wrong, by name."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

import doctor_tokenizers
from nvfp4_moe.doctor import canonical, contracts, prompt
from nvfp4_moe.doctor.contracts import ASSISTANT, BOS, END_THINK, EOS, THINK, USER, encode
from nvfp4_moe.doctor.directory import Directory
from nvfp4_moe.doctor.finding import WrongUse
from nvfp4_moe.doctor.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo", "reasoning_content": "hm"},
    {"role": "user", "content": "Bye"},
]
TOOL = [{"role": "user", "content": "a"}, {"role": "tool", "content": "42"}, {"role": "user", "content": "b"}]
BUDGET = "<｜System｜>Reasoning Effort: {} (range 1-100, the higher the value, the more thorough the reasoning)\n\n"

# Out of DeepSeek's own encoder, deepseek-recipe 0.2.0 (official, v41), and vLLM 0.26's (preview).
GOLDEN = [
    (HELLO, "official", None, f"{BOS}{USER}Hello{ASSISTANT}{END_THINK}"),
    (HELLO, "official", "low", f"{BOS}{USER}Hello{ASSISTANT}{THINK}"),
    (HELLO, "preview", "high", f"{BOS}{USER}Hello{ASSISTANT}{THINK}"),
    (HELLO, "v41", None, f"{BOS}{USER}Hello{ASSISTANT}{END_THINK}"),
    (HELLO, "v41", "low", f"{BOS}{BUDGET.format(50)}{USER}Hello{ASSISTANT}{THINK}"),
    (HELLO, "v41", "max", f"{BOS}{BUDGET.format(100)}{USER}Hello{ASSISTANT}{THINK}"),
    (CHAT, "official", None, f"{BOS}Be brief.{USER}Hi{ASSISTANT}{END_THINK}Yo{EOS}{USER}Bye{ASSISTANT}{END_THINK}"),
    (
        CHAT,
        "v41",
        None,
        f"{BOS}<｜System｜>Be brief.{USER}Hi{ASSISTANT}{END_THINK}Yo{EOS}{USER}Bye{ASSISTANT}{END_THINK}",
    ),
    (
        CHAT,
        "v41",
        "high",
        f"{BOS}{BUDGET.format(75)}Be brief.{USER}Hi{ASSISTANT}{END_THINK}Yo{EOS}{USER}Bye{ASSISTANT}{THINK}",
    ),
    (TOOL, "official", None, f"{BOS}{USER}a\n\n<tool_result>42</tool_result>\n\nb{ASSISTANT}{END_THINK}"),
]
# Characters of the prompt for "Hello", as measured of vLLM 0.26, 0.33 and deepseek-recipe.
LENGTHS = {("preview", "high"): 54, ("preview", "max"): 530, ("official", "high"): 530, ("official", "max"): 580}


@pytest.mark.parametrize(("messages", "contract", "effort", "text"), GOLDEN)
def test_the_encodings_are_deepseeks(messages, contract, effort, text):
    assert encode(messages, contract, effort) == text


def test_the_efforts_prefixes_are_deepseeks():
    assert {key: len(encode(HELLO, *key)) for key in LENGTHS} == LENGTHS
    assert encode(HELLO, "official", "high") == encode(HELLO, "preview", "max")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [*HELLO, {"role": "assistant", "content": "x"}],
        [{"role": "user", "content": "a"}, {"role": "system", "content": "late"}, *HELLO],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [{}]}, *HELLO],
    ],
)
def test_what_is_not_written_here_is_refused(messages):
    with pytest.raises(ValueError, match=r"must be the user's|only chats are compared|only plain text"):
        encode(messages, "official")


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch):
    """The environment's vLLM may have another contract, which is a note."""
    monkeypatch.setattr(canonical, "vllm_contract", lambda _: None)


def ask(directory: Path, **given):
    """(exit status, report)."""
    defaults = {"messages": None, "user": None, "ids": None, "text": None, "trust": False, "json": True}
    report = prompt.check(Namespace(model=str(directory), **defaults | given))
    return report.status, report


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory):
    return doctor_tokenizers.deepseek(tmp_path_factory.mktemp("m") / "deepseek")


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    return doctor_tokenizers.chatml(tmp_path_factory.mktemp("m") / "chatml")


def ids_of(directory: Path, text: str) -> list[int]:
    return Tokenizer(Directory(str(directory))).encode(text)


def as_text(directory: Path, text: str) -> list[int]:
    """As an encoder that knows no special tokens would."""
    tokenizer = Tokenizer(Directory(str(directory)))._tokenizer
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text, add_special_tokens=False).ids


CHATML_HELLO = "<|bos|><|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
PLANTED = [
    ("the thinking marker is missing", "deepseek", f"{BOS}{USER}Hello{ASSISTANT}", "no-thinking-marker"),
    ("the generation prompt is missing", "deepseek", f"{BOS}{USER}Hello", "no-generation-prompt"),
    ("BOS is doubled", "deepseek", f"{BOS}{BOS}{USER}Hello{ASSISTANT}{THINK}", "bos-doubled"),
    ("BOS is missing", "deepseek", f"{USER}Hello{ASSISTANT}{THINK}", "bos-missing"),
    ("a newline behind the marker", "deepseek", f"{BOS}{USER}\nHello{ASSISTANT}{END_THINK}", "whitespace"),
    ("another role marker", "deepseek", f"{BOS}{ASSISTANT}Hello{ASSISTANT}{END_THINK}", "role-marker"),
    ("another question", "deepseek", f"{BOS}{USER}Help{ASSISTANT}{END_THINK}", "text-differs"),
    (
        "the assistant's turn is missing",
        "chatml",
        CHATML_HELLO.removesuffix("<|im_start|>assistant\n"),
        "no-generation-prompt",
    ),
    ("a newline is missing", "chatml", CHATML_HELLO.replace("user\n", "user"), "whitespace"),
]


@pytest.mark.parametrize(("name", "model", "text", "finding"), PLANTED, ids=[name for name, *_ in PLANTED])
def test_a_planted_fault_is_found_by_name(request, name, model, text, finding):
    directory = request.getfixturevalue(model)
    status, report = ask(directory, user="Hello", ids=str(ids_of(directory, text)))
    assert [found.name for found in report.faults] == [finding]
    assert status == 1


@pytest.mark.parametrize("split", [USER, BOS, THINK])
def test_a_marker_that_was_encoded_as_text(deepseek, split):
    whole = f"{BOS}{USER}Hello{ASSISTANT}{THINK}"
    before, _, after = whole.partition(split)
    ids = ids_of(deepseek, before) + as_text(deepseek, split) + ids_of(deepseek, after)
    _, report = ask(deepseek, user="Hello", ids=str(ids))
    assert [found.name for found in report.faults] == ["special-as-text"]
    assert split in report.faults[0].seen


@pytest.mark.parametrize("text", [f"{BOS}{USER}Hello{ASSISTANT}{THINK}", f"{BOS}{USER}Hello{ASSISTANT}{END_THINK}"])
def test_a_right_prompt_is_named(deepseek, text):
    status, report = ask(deepseek, user="Hello", ids=str(ids_of(deepseek, text)))
    assert (status, report.findings) == (0, [])
    assert any(name == "the prompt" and "equal to: encoding official" in said for name, said in report.facts)


def test_text_is_encoded_as_completions_do(tmp_path, capsys):
    model = doctor_tokenizers.chatml(tmp_path / "m", adds_bos=True)
    _, report = ask(model, user="Hello", text=CHATML_HELLO)
    assert {found.name for found in report.findings} == {"bos-doubled", "bos-by-both"}
    assert (
        prompt.run(Namespace(model=str(model), messages=None, user=None, ids=None, text=None, trust=False, json=False))
        == 0
    )
    assert "the template writes <|bos|>, and the tokenizer adds 1 more" in capsys.readouterr().out


def test_healthy_directories_have_no_fault(deepseek, chatml, tmp_path):
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    )
    template += (
        f"{USER}{{{{ m.content }}}}{ASSISTANT}{{% if not loop.last or not thinking %}}{END_THINK}{{% else %}}{THINK}"
    )
    template += f"{{% endif %}}{{% else %}}{{{{ m.content }}}}{EOS}{{% endif %}}{{% endfor %}}"
    both = doctor_tokenizers.deepseek(tmp_path / "both", chat_template=template)
    for directory in (deepseek, chatml, both, doctor_tokenizers.deepseek(tmp_path / "bare", None)):
        status, report = ask(directory)
        assert (status, report.faults) == (0, []), report.faults


def test_a_template_that_is_not_the_models(tmp_path):
    wrong = "{{ bos_token }}{% for m in messages %}" + f"{USER} {{{{ m.content }}}}{{% endfor %}}{ASSISTANT}{END_THINK}"
    _, report = ask(doctor_tokenizers.deepseek(tmp_path / "m", chat_template=wrong))
    assert [found.name for found in report.faults] == ["template-is-not-the-encoding"]
    assert "at character" in report.faults[0].seen
    dropped = doctor_tokenizers.chatml(tmp_path / "d", chat_template="{{ messages[0].role }}")
    assert [found.name for found in ask(dropped)[1].faults] == ["template-drops-text"]


def test_markers_that_the_tokenizer_lacks(tmp_path):
    doctor_tokenizers.write(tmp_path, doctor_tokenizers.DEEPSEEK[:3], {"model_type": "deepseek_v4", "vocab_size": 258})
    _, report = ask(tmp_path)
    assert {found.name for found in report.faults} == {"special-token-missing", "id-outside-vocabulary"}


def test_another_models_tokenizer_is_a_note(tmp_path):
    config = {"model_type": "deepseek_v4"}
    model = doctor_tokenizers.write(tmp_path, ["<bos>", "<eos>"], config, chat_template="{{ messages[0].content }}")
    status, report = ask(model)
    assert (status, [found.name for found in report.findings]) == (0, ["foreign-tokenizer"])


@pytest.mark.parametrize("contract", ["preview", "official", "v41"])
def test_the_contract_is_read_and_not_run(tmp_path, contract):
    directory = Directory(str(doctor_tokenizers.deepseek(tmp_path / "m", contract)))
    assert canonical.contract_of(directory) == contract


def test_another_contract_in_the_vllm_that_is_installed(deepseek, monkeypatch):
    monkeypatch.setattr(canonical, "vllm_contract", lambda _: "preview")
    status, report = ask(deepseek)
    assert status == 0
    assert [found.name for found in report.findings] == ["other-contract-in-vllm"]
    assert "'Reasoning Effort: Absolute maximum" in report.findings[0].seen


def test_code_of_a_checkpoint_runs_with_trust_alone(tmp_path):
    model = doctor_tokenizers.deepseek(tmp_path / "m")
    ran = tmp_path / "ran"
    (model / "encoding/encoding_dsv4.py").write_text(
        f"open({str(ran)!r}, 'w')  # REASONING_EFFORT_PROMPTS\n"
        "def encode_messages(messages, thinking_mode, reasoning_effort):\n"
        "    return 'strange' + messages[0]['content']\n"
    )
    assert ask(model)[0] == 0
    assert not ran.exists()
    _, report = ask(model, trust=True)
    assert ran.exists()
    assert [found.name for found in report.findings] == ["encoder-unknown"]


HOSTILE_TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}",
    "{{ raise_exception('no') }}",
    "{% if",
]


@pytest.mark.parametrize("template", HOSTILE_TEMPLATES)
def test_a_hostile_template_harms_nobody(tmp_path, template, monkeypatch):
    monkeypatch.setattr(canonical, "CHILD_SECONDS", 3)
    variants = canonical.by_template(
        template, Tokenizer(Directory(str(doctor_tokenizers.chatml(tmp_path / "m")))), HELLO
    )
    assert isinstance(variants, str)
    assert "subclasses" not in variants or "unsafe" in variants


@pytest.mark.parametrize("text", ["{", "[]", '{"version": "1.0"}', '{"model": {"type": "BPE"}}'])
def test_a_hostile_tokenizer_gets_a_sentence(tmp_path, text):
    doctor_tokenizers.chatml(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    status, report = ask(tmp_path)
    assert status == 1
    assert report.faults[0].seen.startswith("tokenizer.json is refused")


def test_wrong_use(chatml, tmp_path):
    (tmp_path / "messages.json").write_text('"text"')
    for given in (
        {"ids": "1,2"},
        {"messages": str(tmp_path / "messages.json")},
        {"messages": "none"},
        {"ids": "none", "user": "a"},
    ):
        with pytest.raises(WrongUse):
            ask(chatml, **given)
    (tmp_path / "messages.json").write_text(json.dumps({"messages": HELLO}))
    assert ask(chatml, messages=str(tmp_path / "messages.json"))[0] == 0
    assert contracts.SPECIAL[ASSISTANT] == 128804


def test_a_conversation_with_tools_is_a_note(tmp_path, chatml):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [{}]}, *HELLO]
    (tmp_path / "m.json").write_text(json.dumps(messages))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    model = doctor_tokenizers.deepseek(tmp_path / "m", chat_template=template)
    _, report = ask(model, messages=str(tmp_path / "m.json"))
    assert "encoding-not-compared" in {found.name for found in report.findings if not found.is_fault}
