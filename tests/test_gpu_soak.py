# SPDX-License-Identifier: Apache-2.0
"""`make gpu-soak` finds what it looks for, on a toy server that needs no GPU."""

import argparse
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
import soak

from fake_server import Engine, serving

LIMITS = {"gpu_mib": 64, "host_mib": 64}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A toy model needs milliseconds a token."""
    monkeypatch.setattr(soak, "LENGTHS", (1, 5))
    monkeypatch.setattr(soak, "ANSWERS", (1, 3))


def run(engine: Engine, tmp_path) -> int:
    with serving(engine) as url:
        arguments = argparse.Namespace(vocabulary=100, seconds=1, clients=3, work=tmp_path, grow_gpu=64, grow_host=64)
        server = soak.Server(url)
        assert server.is_ready()
        return soak.soak_it(server, arguments)


def test_a_server_that_stays_the_same_passes(tmp_path, capsys):
    assert run(Engine([]), tmp_path) == 0
    assert "gpu-soak: PASS" in capsys.readouterr().out


def test_other_tokens_at_the_end_are_found(tmp_path, capsys):
    class Forgets(Engine):
        def choose(self, logits, request):
            return super().choose(logits, request) if self.asked <= soak.ALONE else 7

    assert run(Forgets([]), tmp_path) == 1
    assert "tokens of prompt 0 are" in capsys.readouterr().out


def test_a_failed_request_is_found(tmp_path, capsys):
    class Breaks(Engine):
        def complete(self, request):
            return super().complete(request) if self.asked != soak.ALONE + 3 else self.broken()

        def broken(self):
            self.asked += 1
            return RuntimeError("out of memory")

    assert run(Breaks([]), tmp_path) == 1
    assert "a request failed: HTTPError" in capsys.readouterr().out


def test_growth_is_that_of_the_last_third():
    """Early growth is a server that has not met every size of batch yet."""
    early = [{"gpu_mib": value, "host_mib": None} for value in (1, 90, 100, 100, 100, 100)]
    late = [{"gpu_mib": value, "host_mib": None} for value in (100, 100, 100, 100, 150, 190)]
    idle = soak.Soak(soak.Server(""), 100)
    idle.requests = 1
    assert soak.faults(idle, [], [], early, LIMITS) == []
    assert soak.faults(idle, [], [], late, LIMITS) == ["gpu_mib grew by 90; it must be at most 64"]
    idle.requests = 0
    assert soak.faults(idle, [], [], early, LIMITS) == ["no request ended"]


def test_it_goes_on_by_itself_and_says_how_it_went(tmp_path, capsys):
    with serving(Engine([])) as url:
        soak.begin(tmp_path, ["--url", url, "--seconds", "1", "--clients", "2", "--vocabulary", "100",
                              "--work", str(tmp_path)])  # fmt: skip
        assert soak.look(tmp_path, 0) == soak.RUNNING
        assert soak.look(tmp_path, 60) == 0
    assert "gpu-soak: PASS" in capsys.readouterr().out


def test_one_that_ended_without_a_verdict_failed(tmp_path, capsys):
    soak.begin(tmp_path, ["--url", "http://127.0.0.1:1", "--work", str(tmp_path)])
    assert soak.look(tmp_path, 60) == 1
    assert "ended without PASS" in capsys.readouterr().out


def test_memory_of_others_on_a_gpu_is_not_counted(monkeypatch):
    """Where nvidia-smi tells processes apart; else all of it is."""
    mine = os.getpgid(0)
    answers = {"apps": [f"{os.getpid()}, 700", "1, 90000", "[N/A], [N/A]"], "gpu": ["91000", "5"]}
    monkeypatch.setattr(soak, "smi", lambda query: answers["apps" if "apps" in query else "gpu"])
    assert soak.gpu_mib(mine) == 700
    answers["apps"] = []
    assert soak.gpu_mib(mine) == 91005
    answers["gpu"] = []
    assert soak.gpu_mib(mine) is None


def test_a_tiny_models_server_takes_a_small_part_and_graphs_for_its_clients():
    asked = argparse.Namespace(clients=6, port=1, max_model_len=1024, cpu=False, model=None, tiny="dsv4", memory=0.5,
                               serve="--seed 1")  # fmt: skip
    command = soak.command_of(Path("m"), asked)
    assert command[command.index("--max-num-seqs") + 1] == "8"
    assert '"cudagraph_capture_sizes": [1, 2, 4, 8]' in command[command.index("--compilation-config") + 1]
    assert {"--kv-cache-memory-bytes", "fp8", "--seed"} <= set(command)
    asked.model = Path("m")
    assert "--kv-cache-memory-bytes" not in soak.command_of(Path("m"), asked)
