# SPDX-License-Identifier: Apache-2.0
"""Serving tests: each model is served by a process of its own, once, and its result shared by the tests that ask."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import agreement
import pytest

HERE = Path(__file__).parent
TIMEOUT_S = 600
# An overlay is another vLLM's Python before the installed one's.
PYTHONPATH = os.pathsep.join(filter(None, (os.environ.get("VLLM_OVERLAY"), str(HERE.parent))))

# `pytest` over the whole tree, in an environment without vLLM, leaves these tests to `make test-vllm`.
collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]


def pytest_terminal_summary(terminalreporter) -> None:
    """The margins that were measured, whether the tests passed or not."""
    for line in agreement.measured:
        terminalreporter.write_line(f"agreement: {line}")


def run_python(script: Path, *arguments: str, marker: str, **environment: str):
    """Run a script of this directory in a fresh process; returns the JSON after `marker` in its output."""
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH} | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    found = [line.removeprefix(marker) for line in done.stdout.splitlines() if line.startswith(marker)]
    assert found, f"{script.name} {arguments}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    assert done.returncode == 0, done.stderr[-6000:]
    result = json.loads(found[-1])
    return result | {"output": done.stdout + done.stderr} if isinstance(result, dict) else result


@cache
def _serve(model: Path, arguments: tuple[str, ...], environment: tuple[tuple[str, str], ...]) -> dict:
    print(f"[serve] {model.parent.name}/{model.name} {' '.join(arguments)} {dict(environment)}", file=sys.stderr)
    return run_python(HERE / "serve.py", str(model), *arguments, marker="SERVED ", **dict(environment))


@pytest.fixture(scope="session")
def serve():
    """serve(model, *arguments of serve.py, VARIABLE=value): tokens and what served them; one process per question."""
    return lambda model, *arguments, **environment: _serve(model, arguments, tuple(sorted(environment.items())))


@pytest.fixture(scope="session")
def serve_shared():
    """serve_shared(model, *`--only` of each rank): attention under data parallel, experts under expert parallel."""

    def rank(model: Path, number: int, ranks: tuple[str, ...], port: int) -> dict:
        own = {"VLLM_DP_RANK": str(number), "VLLM_DP_RANK_LOCAL": str(number), "VLLM_DP_SIZE": str(len(ranks))}
        all_ranks = {"VLLM_DP_MASTER_IP": "127.0.0.1", "VLLM_DP_MASTER_PORT": str(port)}
        options = ("--only", ranks[number], "--options", '{"enable_expert_parallel": true}')
        engine = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        return run_python(HERE / "serve.py", str(model), *options, marker="SERVED ", **own, **all_ranks, **engine)

    def serve_shared(model: Path, *ranks: str) -> list[dict]:
        with socket.socket() as one, ThreadPoolExecutor(len(ranks)) as pool:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            one.close()
            return list(pool.map(lambda number: rank(model, number, ranks, port), range(len(ranks))))

    return serve_shared


@pytest.fixture(scope="session")
def judge(tmp_path_factory):
    """judge(float32 model, served): see reference_logits.py; one list of judged tokens."""

    def judge(model: Path, served: dict) -> list[dict[str, float]]:
        file = tmp_path_factory.mktemp("judge") / "served.json"
        file.write_text(json.dumps({key: served[key] for key in ("prompts", "tokens")}))
        judged = run_python(HERE / "reference_logits.py", str(model), str(file), marker="JUDGED ")
        return [token for prompt in judged for token in prompt]

    return judge


@pytest.fixture(scope="session")
def ask_doctor():
    """ask_doctor(model, *arguments of the script): its reports; one process."""
    return lambda model, *arguments, script="doctor_plants.py": run_python(
        HERE / script, str(model), *arguments, marker="DOCTOR "
    )


def make_models(script: str, root: Path) -> dict[str, Path]:
    """Run a maker of this directory; returns the model directories by flavour."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), str(root)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="session")
def deepseek_v4(tmp_path_factory) -> dict[str, Path]:
    return make_models("tiny_deepseek_v4.py", tmp_path_factory.mktemp("deepseek_v4"))


@pytest.fixture(scope="session")
def qwen3_moe(tmp_path_factory) -> dict[str, Path]:
    return make_models("qwen3_moe.py", tmp_path_factory.mktemp("qwen3_moe"))


@pytest.fixture(scope="session")
def gpt_oss(tmp_path_factory) -> dict[str, Path]:
    return make_models("tiny_gpt_oss.py", tmp_path_factory.mktemp("gpt_oss"))


@pytest.fixture(scope="session")
def nemotron_h(tmp_path_factory) -> dict[str, Path]:
    return make_models("tiny_nemotron_h.py", tmp_path_factory.mktemp("nemotron_h"))
