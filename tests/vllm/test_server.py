# SPDX-License-Identifier: Apache-2.0
"""The OpenAI-compatible server with the plugin, asked by OpenAI's own client."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import APIConnectionError, OpenAI
from serve import ENVIRONMENT

START_S = 600
QUESTIONS = ["france", "the quick brown fox", "the capital of france is", "dog dog dog lazy"]


@pytest.fixture(scope="module")
def client(deepseek_v4, tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(deepseek_v4["mixed"])]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    command += ["--worker-extension-cls", "nvfp4_moe.plugin.worker.Counters"]
    command += ["--max-model-len", "512", "--max-num-seqs", "8", "--enforce-eager", "--no-enable-prefix-caching"]
    with log.open("w") as stream:
        server = subprocess.Popen(
            command,
            env=ENVIRONMENT | os.environ | {"OMP_NUM_THREADS": "1", "VLLM_SERVER_DEV_MODE": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:
            client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=300)
            wait_until_ready(client, server, log)
            client.log = log
            yield client
        finally:
            server.terminate()
            server.wait(60)


def wait_until_ready(client, server, log) -> None:
    for _ in range(START_S):
        try:
            client.models.list()
            return
        except APIConnectionError:
            assert server.poll() is None, log.read_text()[-6000:]
            time.sleep(1)
    raise AssertionError(f"no answer after {START_S} s:\n{log.read_text()[-6000:]}")


def ask(client, question: str) -> tuple[str, int]:
    """(answer, number of chunks) of one streamed chat completion."""
    stream = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=8,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    return "".join(pieces), len(pieces)


def test_a_chat_completion_streams(client):
    answer, num_chunks = ask(client, QUESTIONS[0])
    assert answer
    assert num_chunks > 4


def test_concurrent_requests_get_the_answers_they_get_alone(client):
    alone = [ask(client, question)[0] for question in QUESTIONS]
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        together = [answer for answer, _ in pool.map(lambda question: ask(client, question), QUESTIONS)]
    assert together == alone
    assert len(set(alone)) == len(QUESTIONS)  # answers that read alike would not show a mix-up


def test_the_server_says_that_the_plugin_is_active(client):
    assert client.log.read_text().count("ACTIVE for NVFP4 MoE") == 1


def test_the_counters_of_its_worker_can_be_read(client):
    url = str(client.base_url).removesuffix("/v1/")
    command = [sys.executable, "-m", "nvfp4_moe", "doctor", "counters", url, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (worker,) = json.loads(done.stdout)["workers"]
    assert worker["device"] == "cpu"
    assert worker["nonfinite_values"] == 0


def test_the_doctor_finds_nothing_and_sees_penalties_reach_the_sampler(client, deepseek_v4):
    """A random model never ends an answer; what takes more than seconds is asked of tests/fake_server.py."""
    url = str(client.base_url).removesuffix("/v1/")
    command = [sys.executable, "-m", "nvfp4_moe", "doctor", "serve", url, "--model-dir", str(deepseek_v4["mixed"])]
    for experiment in ("finish", "batch", "long-prompt", "prefix-cache"):
        command += ["--skip", experiment]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300)
    report = json.loads(done.stdout)
    assert (done.returncode, report["findings"]) == (0, [])
    facts = dict(report["facts"])
    assert facts["repetition_penalty"] == "1.5 reaches the sampler"
    assert facts["repetition_penalty and the prompt"] == "it sees the prompt's tokens"
    assert facts["frequency_penalty"] == facts["presence_penalty"] == "reaches the sampler"
    assert "equal to: encoding" in facts["the prompt"]  # which vLLM has instead of the directory's chat template
