# SPDX-License-Identifier: Apache-2.0
"""The doctor beside vLLM: `doctor env` says what vLLM then does, `doctor layers` and `doctor norm` find what is ill."""

import importlib.util
import subprocess
import sys

import pytest
import tiny_deepseek_v4
from plants import PLANTS

from nvfp4_moe.doctor import canonical, contracts

DEEPSEEK_LAYERS = len(tiny_deepseek_v4.COMPRESS_RATIOS)


def doctor(model, *arguments: str) -> tuple[int, str]:
    """(exit status, report)."""
    command = [sys.executable, "-m", "nvfp4_moe", "doctor", "env", *map(str, (model, *arguments))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def served(report: str) -> dict[str, tuple[int, str]]:
    """Modules with stars for numbers -> (how many, backend)."""
    lines = [line.split(maxsplit=3) for line in report.splitlines() if " x " in line]
    return {name: (int(count), rest.split(":")[0].split()[-1]) for count, _, name, rest in lines}


@pytest.mark.parametrize("flavour", tiny_deepseek_v4.NVFP4_FLAVOURS)
def test_deepseek_v4(deepseek_v4, flavour):
    status, report = doctor(deepseek_v4[flavour])
    assert status == 0
    assert "plugin     active" in report
    assert "device     cpu: usable" in report
    backends = served(report)
    ours = {name: count for name, (count, backend) in backends.items() if backend == "nvfp4_moe"}
    assert ours == {"layers.*.ffn.experts": DEEPSEEK_LAYERS}
    assert backends["layers.*.attn.wo_a"] == (DEEPSEEK_LAYERS, "vllm")


def test_the_users_backend_wins(deepseek_v4):
    status, report = doctor(deepseek_v4["mixed"], "--moe-backend", "marlin")
    assert status == 0
    assert served(report)["layers.*.ffn.experts"] == (DEEPSEEK_LAYERS, "vllm")


@pytest.fixture(scope="module")
def asked(ask_doctor, deepseek_v4):
    """The doctor's reports on one served model, healthy and with each fault; one process."""
    return ask_doctor(deepseek_v4["mixed"])


@pytest.fixture(scope="module")
def asked_of_another_flavour(ask_doctor, deepseek_v4):
    return ask_doctor(deepseek_v4["compressed-tensors"], "no plant")


def test_the_contract_that_is_read_is_what_vllms_encoder_does():
    """The file that the doctor searches, run here: high is another prompt in each contract."""
    file = canonical.vllm_encoder("official")
    spec = importlib.util.spec_from_file_location("encoder", file)
    encoder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(encoder)
    messages = [{"role": "user", "content": "Hello"}]
    for effort in ("high", "max"):
        said = encoder.encode_messages(messages, "thinking", reasoning_effort=effort)
        assert said == contracts.encode(messages, canonical.vllm_contract("official"), effort)


def test_a_healthy_model_has_no_finding(asked, asked_of_another_flavour):
    for reports in (asked["healthy"], asked_of_another_flavour["healthy"]):
        assert [report["findings"] for report in reports.values()] == [[], [], []]
        facts = dict(reports["layers"]["facts"])
        for layer in range(DEEPSEEK_LAYERS):
            assert "cosine 0.9999" in facts[f"layer {layer} rms/amax"]


@pytest.mark.parametrize("plant", PLANTS, ids=[plant.name for plant in PLANTS])
def test_a_planted_fault_is_found_by_name(asked, plant):
    report = asked["planted"][plant.name]
    if plant.finding is None:
        assert report["findings"] == []
        assert any(plant.words in text for _, text in report["facts"])
        return
    (found,) = [each for each in report["findings"] if each["name"] == plant.finding]
    assert plant.words in found["seen"] + found["means"], found


def test_afterwards_the_model_is_as_before_and_watching_costs_little(asked):
    assert asked["mended"]
    plain, watched = asked["seconds"]
    assert watched < 2 * plain, (plain, watched)


def test_two_ranks_with_expert_parallel_are_healthy_and_the_ill_one_is_named(ask_doctor, deepseek_v4):
    said = ask_doctor(deepseek_v4["mixed"], script="doctor_parallel.py")
    assert [said[command]["findings"] for command in ("layers", "attention")] == [[], []]
    facts = said["layers"]["facts"]
    assert ["mode of the experts", "bf16, 2 ranks"] in facts
    assert [text.split(":")[0] for name, text in facts if name == "counters"] == ["rank 0", "rank 1"]
    found = {finding["name"]: finding for finding in said["planted"]["findings"]}["first-not-finite"]
    assert "on rank 1 in the prompt at layer 2 in the MoE output" in found["seen"]
    assert "expert 32 alone produces it" in found["means"]
