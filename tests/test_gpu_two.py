# SPDX-License-Identifier: Apache-2.0
"""What `make gpu-serve-two` is made of, without a GPU and without vLLM."""

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import time
import types
from pathlib import Path

import pytest
import torch

GPU = Path(__file__).parent / "gpu"
sys.path.insert(0, str(GPU))
import serve_two
import tiny_qwen3
from full import case, claims, one, process, ranks, seen

MEETING = r"""
import os, sys, time
from full.ranks import Ranks
here = Ranks.begin(2, ["-c", sys.argv[1], sys.argv[1]])
time.sleep(0.5 * here.rank)
os.write(1, f"before {here.rank}\n".encode())
here.meet()
os.write(1, f"after {here.rank}\n".encode())
here.meet()
"""


def test_two_ranks_begin_and_meet():
    """The second is slow; nobody goes on before it is there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_DP_")}
    command = [sys.executable, "-c", MEETING, MEETING]
    ran = subprocess.run(
        command, env=environment | {"PYTHONPATH": str(GPU)}, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    words = ran.stdout.split("\n")
    assert sorted(words[:2]) == ["before 0", "before 1"]
    assert sorted(words[2:4]) == ["after 0", "after 1"]


def test_ranks_share_prompts_and_one_without_any_asks_for_a_token(monkeypatch):
    prompts = [{"prompt_token_ids": [n]} for n in (5, 6, 7)]
    shares = []
    for rank in ("0", "1"):
        monkeypatch.setenv("VLLM_DP_RANK", rank)
        monkeypatch.setenv("VLLM_DP_SIZE", "2")
        shares.append(ranks.Ranks())
    assert [share.share(prompts, 33) for share in shares] == [(prompts[::2], 33), (prompts[1:2], 33)]
    assert shares[1].share(prompts[:1], 33) == ([ranks.FILLER], 1)


@pytest.mark.parametrize("wanted", [True, False])
def test_what_begins_together_waits_for_the_last(wanted):
    calls = []
    core = types.SimpleNamespace(call_utility=lambda *of: calls.append(of))
    llm = types.SimpleNamespace(llm_engine=types.SimpleNamespace(engine_core=core))
    with ranks.steps_wait(llm, wanted):
        calls.append("enqueued")
    around = ([("pause_scheduler", "keep", False)], [("resume_scheduler",)]) if wanted else ([], [])
    assert calls == [*around[0], "enqueued", *around[1]]


def test_data_parallel_ranks_capture_graphs_of_their_share():
    """The largest rank's: half of an odd number is rounded up."""
    asked = argparse.Namespace(layout="dp2", sequences=[1, 7, 64], prompts=[128], model="m", load_format="full_random",
                               memory=0.9, backend="ours")  # fmt: skip
    options = one.options(asked)
    assert options["compilation_config"]["cudagraph_capture_sizes"] == [1, 4, 32]
    assert options["max_num_seqs"] == 32


def test_tokens_of_ranks_are_put_in_the_order_of_the_prompts():
    assert claims.merged([[[0], [2], [4]], [[1], [3]]]) == [[0], [1], [2], [3], [4]]


def test_places_that_changed_are_counted():
    assert claims.moved([[0, 1, 2], [0, 1, 2]], [[0, 1, 2], [2, 1, 0]]) == 2


def token(margin: float) -> dict:
    return {"margin": margin, "routing": 1.0, "deficit": 0.0}


@pytest.mark.parametrize(("margin", "good"), [(0.01, True), (1.0, False)])
def test_a_token_may_differ_only_where_the_reference_is_undecided(margin, good):
    """The other run asked for two tokens of each prompt only, and the last of them differs."""
    judged = [[token(1.0), token(1.0), token(1.0)], [token(1.0), token(margin), token(1.0)]]
    claim = claims.same_tokens("case", judged, [[1, 2, 3], [4, 5, 6]], [[1, 2], [4, 7]])
    assert claim.good is good
    assert str(claim).startswith("PASS case: 3 of 4 tokens" if good else "FAIL case: 3 of 4 tokens")


def found(experts: int, **counts) -> list[dict]:
    return [
        {
            "seen": [
                {"experts": {"Nvfp4MoeExperts": experts}} | {name.replace("_", " "): n for name, n in counts.items()}
            ]
        }
    ]


def claims_of(tmp_path, name: str, reports: list[dict], active: int) -> list[bool]:
    """Of a case that never ran."""
    ended = object.__new__(serve_two.Case)
    ended.name, ended.is_control = name, name.endswith(claims.CONTROL)
    ended.model, ended.layout = name.removesuffix(claims.CONTROL).split("-", 1)
    ended.log = tmp_path / "log"
    ended.log.write_text("ACTIVE for NVFP4 MoE on cuda\n" * active)
    return [claim.good for claim in claims.of_ranks(ended, reports, True)]


def test_every_rank_must_have_our_layers_in_graphs(tmp_path):
    graphs = {"replays": 9, "busy_steps": 10, "busy_replays": 9}
    whole = found(3, **graphs)
    assert claims_of(tmp_path, "qwen3-one", whole, 1) == [True, True]
    assert claims_of(tmp_path, "qwen3-one", whole, 0) == [False, True], "its log does not say so"
    assert claims_of(tmp_path, "qwen3-one", found(2, **graphs), 1) == [False, True], "a layer is not ours"
    assert claims_of(tmp_path, "qwen3-one", found(3), 1) == [True, False], "no graph was replayed"
    eager = found(3, **graphs | {"busy_replays": 2})
    assert claims_of(tmp_path, "qwen3-one", eager, 1) == [True, False], "most steps had none"


def test_a_control_has_none_of_our_layers(tmp_path):
    graphs = {"replays": 9, "busy_steps": 10, "busy_replays": 9}
    assert claims_of(tmp_path, "dsv4-one-control", found(0, **graphs), 0) == [True, True]
    assert claims_of(tmp_path, "dsv4-one-control", found(4, **graphs), 1) == [False, True]


def test_a_rank_must_have_had_no_token_and_padded_graphs(tmp_path):
    busy = found(3, replays=9, busy_steps=10, busy_replays=9)
    idle = found(3, replays=9, busy_steps=5, busy_replays=4, idle_steps=4, idle_replays=4)
    assert claims_of(tmp_path, "qwen3-dp2", busy + idle, 2) == [True, True, True]
    assert claims_of(tmp_path, "qwen3-dp2", busy + busy, 2) == [True, True, False]


def test_a_replay_that_was_bound_at_capture_is_counted(monkeypatch):
    """As vLLM's breakable graphs bind it, before anything is asked of the worker."""

    class Worker(seen.Seen):
        def execute_model(self, steps):
            for step in steps:
                step()

        def execute_dummy_batch(self):
            pass

    monkeypatch.setattr(seen, "_replay", lambda graph: None)
    bound, worker = torch.cuda.CUDAGraph.__new__(torch.cuda.CUDAGraph).replay, Worker()
    worker.seen_start()
    worker.execute_model([bound, bound])
    worker.execute_model([])
    worker.execute_dummy_batch()
    counts = {"replays": 2, "busy steps": 2, "busy replays": 1, "idle steps": 1, "idle replays": 0}
    assert dict(seen.COUNTS) == counts


def test_cases_bring_what_they_are_compared_with():
    wanted = ["dsv4-one", "dsv4-tp2", "dsv4-one-control", "dsv4-tp2-control"]
    assert serve_two.needed(["dsv4-tp2"], True) == wanted
    assert serve_two.needed(["dsv4-tp2"], False) == wanted[:2]
    assert serve_two.needed(["qwen3-reload"], True) == ["qwen3-one", "qwen3-reload"]


def reloaded(rounds: list, held: list) -> list[bool]:
    ended = object.__new__(serve_two.Case)
    ended.name, ended.model, ended.layout, ended.rounds = "qwen3-reload", "qwen3", "reload", lambda: rounds
    return [claim.good for claim in claims.of_reload(ended, {"held": held})]


def test_other_weights_change_tokens_and_the_first_ones_bring_them_back():
    first, other, more = [[1, 2]], [[1, 3]], claims.HELD_MORE + 1
    assert reloaded([first, other, first, first], [[5, 5], [5, 5]]) == [True, True, True]
    assert reloaded([first, first, first], [[5, 5]]) == [False, True, True]
    assert reloaded([first, other, first, other], [[5, 5]]) == [True, False, True]
    assert reloaded([first, other, first], [[5, 5], [5, 5 + more]]) == [True, True, False]


def test_the_float32_twin_has_the_weights_that_nvfp4_means():
    """A block of 16 equal values, which NVFP4 keeps exactly."""
    weight = torch.full((2, 32), 3.0)
    tensors = tiny_qwen3.quantised("linear", weight, 3.0) | {"norm.weight": torch.ones(4).bfloat16()}
    twin = tiny_qwen3.decoded(tensors)
    assert set(twin) == {"linear.weight", "norm.weight"}
    torch.testing.assert_close(twin["linear.weight"], weight, rtol=1e-6, atol=0)
    assert twin["norm.weight"].dtype == torch.float32


def test_prompts_fit_the_ranks_and_the_models():
    """The first rank has more than the second; ids are of both vocabularies."""
    assert len(case.PROMPTS[::2]) > len(case.PROMPTS[1::2]) > 0
    assert min(map(min, case.PROMPTS)) >= 0
    assert max(map(max, case.PROMPTS + case.FORCED_PROMPTS + case.TEXTS)) < tiny_qwen3.VOCAB
    assert max(map(len, case.FORCED_PROMPTS)) + case.FORCED_TOKENS <= case.COMMON["max_model_len"]


STOPPED = r"""
import os, sys, time
import serve_two
from full.process import Process

class Sleeping(serve_two.Case):
    "A case that says something, and never ends."
    def __init__(self, name, arguments):
        self.name, self.model, self.layout, self.reports, self.fault = name, "qwen3", "one", [], ""
        self.log, self.began, self.limit_s = arguments.work / f"{name}.log", time.monotonic(), 600
        program = "import time; print('far', flush=True); time.sleep(600)"
        self.process = Process([sys.executable, "-c", program], dict(os.environ), self.log)
        (arguments.work / f"{name}.pid").write_text(str(self.process.process.pid))

serve_two.Case, serve_two.Runs.make_models = Sleeping, lambda self, names: []
sys.exit(serve_two.main())
"""


def stopped(tmp_path, *more: str) -> subprocess.Popen:
    """serve_two with two cases that never end, once both have begun."""
    command = [sys.executable, "-c", STOPPED, "--only", "qwen3-one,qwen3-tp2", "--work", str(tmp_path), *more]
    begun = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(GPU), "OUT": str(tmp_path)},
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    limit = time.monotonic() + 60
    while len([log for log in tmp_path.glob("*.log") if "far" in log.read_text()]) < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    return begun


def is_left(tmp_path) -> bool:
    return any(process.is_alive(int(file.read_text())) for file in tmp_path.glob("*.pid"))


def test_when_the_time_is_over_every_case_says_how_far_it_came(tmp_path):
    output, _ = stopped(tmp_path, "--total-s", str(serve_two.JUDGE_S + 8)).communicate(timeout=60)
    assert not is_left(tmp_path)
    assert output.count("at: far") >= 2
    assert output.rstrip().endswith("gpu-serve-two: FAIL")
    with tarfile.open(tmp_path / "serve-two.tgz") as archive:
        assert "all.txt" in archive.getnames()


def test_ended_from_outside_no_process_stays_and_logs_come_back(tmp_path):
    begun = stopped(tmp_path)
    assert is_left(tmp_path)
    begun.send_signal(signal.SIGTERM)
    output, _ = begun.communicate(timeout=30)
    assert begun.returncode == 1
    assert not is_left(tmp_path)
    assert "qwen3-tp2: far" in output
    assert (tmp_path / "serve-two.tgz").exists()


def test_held_gpus_are_named(monkeypatch):
    answers = {"memory.used": ["0", "3000"], "compute-apps": ["77, python, 2900"]}
    monkeypatch.setattr(process, "smi", lambda query: next(answers[name] for name in answers if name in query))
    assert "3000 MiB in use, by 77, python, 2900" in process.held_gpus(0)
    answers["memory.used"] = ["0", "900"]
    assert process.held_gpus(0) == ""
