#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Two GPUs give the tokens of one: real vLLM on tiny models, in every way to share a model that a MoE layer notices.

    make gpu-serve-two                                    on two GPUs, all cases side by side, under two minutes
    make gpu-serve-two GPU_TWO="--only qwen3-tp2,qwen3-eplb"
    make gpu-serve-two GPU_TWO="--cpu --side 1"           the script's course without a GPU, with vLLM's CPU build

    tp2         tensor parallel, experts under expert parallel
    pp2         a stage of layers each
    dp2         attention data parallel, experts under expert parallel, tokens exchanged; one rank soon has none
    eplb        as tp2; vLLM's balancer moves experts while prompts that make a few of them hot are served
    eplb-async  the same, the moves beside the steps, in a thread and a stream of their own
    mtp         one GPU; DeepSeek-V4's layer that drafts a token, which the model then accepts or not

Tokens are greedy. They equal one GPU's by the rule of tests/vllm/agreement.py, whose arbiter is the float32 reference:
ranks add in another order, so a token may differ where that reference is undecided itself. How much one GPU differs
from itself, once a batch's prompts are served alone, has its line, too. A line a claim; the last is PASS if all hold.
Logs and reports: --work, and one .tgz under $OUT where that is set.
"""

import argparse
import json
import os
import signal
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
VLLM_TESTS = ROOT / "tests/vllm"
sys.path += [str(ROOT / "tests"), str(VLLM_TESTS)]  # behind this folder, whose serve.py is another

import agreement
from full.case import GRAPHS, PROMPTS
from full.process import Process, held_gpus, stop_all
from serve import all_logs, failure, text
from serve_full import plugins

# Of agreement.py, for these models. MARGIN is three times what rounding did to the tiny Qwen3-MoE of this folder under
# vLLM's CPU build: the margin of a token that differed was up to 0.085. Its experts weigh more than tests/vllm's,
# and where one of them changes at an earlier token, a short prompt's later logits move. How many tokens are the same is
# counted, not gated: behind the first that differs the texts are others, and the reference judges each case's own.
RULE = {"MARGIN": 0.25, "ENOUGH_DECIDED": 0.2, "MOST_SAME": 0.0}
SHARED_BY_2 = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
EPLB = {"window_size": 8, "step_interval": 8, "num_redundant_experts": 2}
MOVED_AT_ONCE = SHARED_BY_2 | {
    "enable_eplb": True,
    "eplb_config": EPLB | {"use_async": False, "communicator": "torch_nccl"},
}
MOVED_BESIDE = SHARED_BY_2 | {
    "enable_eplb": True,
    "eplb_config": EPLB | {"use_async": True, "communicator": "torch_gloo"},
}
DRAFTED = {
    "speculative_config": {"method": "mtp", "num_speculative_tokens": 1},
    "compilation_config": GRAPHS | {"cudagraph_capture_sizes": [2, 4, 8, 16]},
}
LAYOUTS = {
    "one": ({}, ["--alone"]),
    "tp2": (SHARED_BY_2, []),
    "pp2": ({"pipeline_parallel_size": 2}, []),
    "dp2": ({"enable_expert_parallel": True}, ["--ranks", "2", "--last", "4"]),
    "eplb": (MOVED_AT_ONCE, ["--rounds", "3"]),
    "eplb-async": (MOVED_BESIDE, ["--rounds", "3"]),
    "mtp": (DRAFTED, []),
}
MODELS = {
    "qwen3": {},
    "dsv4": {"kv_cache_dtype": "fp8"},
}
CASES = [
    *(f"qwen3-{layout}" for layout in LAYOUTS if layout != "mtp"),
    *(f"dsv4-{layout}" for layout in ("one", "tp2", "pp2", "dp2", "mtp")),
]
LAYERS = {"qwen3": 3, "dsv4": 4}
MAKE_S, JUDGE_S = 120, 30
"""Making models may take so long; and so much is left for the judges when the cases' time is over."""
LONGEST = 400
LOSSY_MOST = 0.5
"""Of all tokens that must be the reference's, where linears and the cache have 8 bits, as DeepSeek-V4's on a GPU."""


@dataclass
class Claim:
    """One line of the answer."""

    good: bool
    text: str

    def __str__(self):
        shown = self.text if len(self.text) <= LONGEST else f"{self.text[:LONGEST]} ..."
        return f"{'PASS' if self.good else 'FAIL'} {shown}"


class Case:
    """A process of full.case, and what it found."""

    def __init__(self, name: str, arguments):
        self.name, (self.model, self.layout) = name, name.split("-", 1)
        options, more = LAYOUTS[self.layout]
        options = options if arguments.cpu else MODELS[self.model] | options
        self.report, self.log = (arguments.work / f"{name}.{kind}" for kind in ("json", "log"))
        self.reports = [self.report, *([self.report.with_suffix(".rank1")] if self.layout == "dp2" else [])]
        for stale in self.reports:
            stale.unlink(missing_ok=True)
        folder = arguments.work / (name if self.layout == "mtp" else self.model)
        command = [sys.executable, "-m", "full.case", str(folder), "--out", str(self.report), *more]
        command += ["--options", json.dumps(options), *(["--cpu"] if arguments.cpu else [])]
        environment = {"NVFP4_MOE_TEST_EPLB": "1"} if arguments.cpu and "eplb" in self.layout else {}
        self.began, self.limit_s = time.monotonic(), arguments.case_s
        self.process, self.fault = Process(command, os.environ | environment, self.log), ""

    def is_done(self, deadline: float) -> bool:
        """Has it ended, by itself or because its time or everybody's is over?"""
        status, seconds = self.process.process.poll(), time.monotonic() - self.began
        if status is None and seconds < self.limit_s and time.monotonic() < deadline:
            return False
        if status is None:
            self.fault = f"stopped after {seconds:.0f} s, at: {last_line(self.log)}"
        elif status:
            self.fault = f"exit status {status}"
        elif not all(report.exists() for report in self.reports):
            self.fault = "a rank left no report"
        self.process.stop()
        return True

    def found(self) -> list[dict]:
        """The reports of its data-parallel ranks."""
        return [json.loads(text(report)) for report in self.reports]

    def rounds(self) -> list[list[list[int]]]:
        """Every round's tokens, in the order of the prompts."""
        return [merged(list(ranks)) for ranks in zip(*(report["rounds"] for report in self.found()), strict=True)]


def last_line(log: Path) -> str:
    """How far a process came."""
    return (text(log).rstrip() or "nothing").splitlines()[-1][:200]


def merged(ranks: list[list[list[int]]]) -> list[list[int]]:
    """Tokens in the order of the prompts, which ranks took in turn."""
    return [ranks[n % len(ranks)][n // len(ranks)] for n in range(sum(map(len, ranks)))]


def moved(before: list[list[int]], after: list[list[int]]) -> int:
    """Places that have another expert."""
    return sum(a != b for row, other in zip(before, after, strict=True) for a, b in zip(row, other, strict=True))


def ruled(rule, *arguments) -> Claim:
    """What agreement.py says, and why."""
    try:
        rule(*arguments)
    except AssertionError as broken:
        return Claim(False, f"{agreement.measured[-1]} {str(broken)[:300]}".rstrip())
    return Claim(True, agreement.measured[-1])


def same_tokens(label: str, judged: list[list[dict]], mine: list[list[int]], others: list[list[int]]) -> Claim:
    """The rule between one GPU and several; where others ask for fewer tokens, on those."""
    lengths = [len(tokens) for tokens in others]
    mine = [tokens[:length] for tokens, length in zip(mine, lengths, strict=True)]
    flat = [token for tokens, length in zip(judged, lengths, strict=True) for token in tokens[:length]]
    return ruled(agreement.check_same, label, flat, mine, others)


def claims_of_ranks(case: Case, found: list[dict], on_gpu: bool) -> list[Claim]:
    """That ours served on every rank, in CUDA graphs."""
    ranks = [rank for report in found for rank in report["seen"]]
    ours = [seen["experts"].get("Nvfp4MoeExperts", 0) for seen in ranks]
    wanted = LAYERS[case.model] * (1 if case.layout == "pp2" else len(ranks)) + (case.layout == "mtp")
    only = all(set(seen["experts"]) <= {"Nvfp4MoeExperts"} for seen in ranks)
    active = text(case.log).count("ACTIVE for NVFP4 MoE")
    good = only and all(ours) and sum(ours) == wanted and active == len(ranks)
    claims = [Claim(good, f"{case.name}: layers of ours by rank {ours}, ACTIVE in {active} logs")]
    if on_gpu:
        replays = [seen.get("replays", 0) for seen in ranks]
        claims.append(Claim(all(replays), f"{case.name}: replays of CUDA graphs by rank {replays}"))
    if case.layout == "dp2":
        idle = ranks[-1].get("idle steps", 0)
        replayed = ranks[-1].get("idle replays", 0)
        good = idle > 0 and (replayed > 0 or not on_gpu)
        claims.append(
            Claim(good, f"{case.name}: steps in which a rank had no token {idle}, {replayed} of them in padded graphs")
        )
    return claims


def claims_of_moves(case: Case, report: dict) -> list[Claim]:
    """That experts changed places while tokens were made."""
    places = report["places"]
    moves = [moved(*pair) for pair in zip(places, places[1:])]
    of = sum(map(len, places[0]))
    return [Claim(sum(count > 0 for count in moves) >= 2, f"{case.name}: places of {of} with another expert {moves}")]


def claims(case: Case, judged: dict[str, list[list[dict]]], is_lossy: bool, on_gpu: bool) -> list[Claim]:
    """All of a case that ran: its tokens beside the reference's, and beside those of one GPU."""
    found, one = case.found(), f"{case.model}-one"
    made = claims_of_ranks(case, found, on_gpu)
    if case.layout.startswith("eplb"):
        made += claims_of_moves(case, found[0])
    flat = [token for tokens in judged[case.name] for token in tokens]
    lossy, exact = (agreement.check_lossy, case.name, flat, LOSSY_MOST), (agreement.check, case.name, flat)
    made.append(ruled(*(lossy if is_lossy else exact)))
    rounds = case.rounds()
    first = rounds[0] if case.name == one else json.loads(text(case.report.with_name(f"{one}.json")))["rounds"][0]
    for number, tokens in enumerate(rounds[case.name == one :]):
        label = case.name + (f", round {number + 1}" if len(rounds) > 2 else "")
        what = "alone, as in the batch" if case.name == one else "as one GPU"
        made.append(same_tokens(f"{label}: {what}", judged[one][: len(PROMPTS)], first, tokens))
    return made


def judge(case: Case, work: Path) -> Process:
    """The float32 reference on a case's tokens, each behind those that were served: a process beside the others."""
    rounds, served = case.rounds(), work / f"{case.name}-served.json"
    prompts = PROMPTS * len(rounds)
    served.write_text(json.dumps({"prompts": prompts, "tokens": [tokens for made in rounds for tokens in made]}))
    script, model = VLLM_TESTS / "reference_logits.py", work / f"{case.model}-float32"
    command = [sys.executable, str(script), str(model), str(served)]
    return Process(command, os.environ | {"CUDA_VISIBLE_DEVICES": ""}, work / f"{case.name}-judge.log")


def judged_tokens(name: str, process: Process, work: Path, limit_s: float) -> list[list[dict]] | None:
    """What it printed."""
    fault, log = process.wait(max(1.0, limit_s)), work / f"{name}-judge.log"
    lines = [line for line in text(log).splitlines() if line.startswith("JUDGED ")]
    if fault or not lines:
        print(failure(f"{name}-judge", fault or "it judged nothing", log))
        return None
    return json.loads(lines[-1].removeprefix("JUDGED "))


class Runs:
    """All processes, within one budget of time. Whatever happens, none stays, and logs and reports come back."""

    def __init__(self, arguments):
        self.arguments, self.work = arguments, arguments.work
        self.deadline = time.monotonic() + arguments.total_s
        self.begun: list[Process] = []
        self.cases: dict[str, Case] = {}
        self.judges: dict[str, Process] = {}

    def __enter__(self):
        return self

    def __exit__(self, kind, *_) -> None:
        for name, case in self.cases.items() if kind else ():
            print(f"  {name}: {case.fault or last_line(case.log)}", flush=True)
        stop_all(self.begun)
        bring_back(self.work)

    def make_models(self, names: set[str]) -> list[str]:
        """Below the work folder, by their names, with their float32 twins; what failed."""
        makers = {}
        for name in names:
            command = [sys.executable, str(HERE / f"tiny_{name}.py"), str(self.work / name)]
            command += [str(self.work / f"{name}-float32"), *([str(self.work / "dsv4-mtp")] if name == "dsv4" else [])]
            makers[name] = Process(command, dict(os.environ), self.work / f"{name}-make.log")
            self.begun.append(makers[name])
        faults = {name: maker.wait(MAKE_S) for name, maker in makers.items()}
        return [failure(f"{name}-make", why, self.work / f"{name}-make.log") for name, why in faults.items() if why]

    def run(self, names: list[str]) -> None:
        """Every case, as many at once as wanted; and a judge for each once it has served."""
        waiting, running = list(names), []
        while waiting or running:
            while waiting and len(running) < self.arguments.side:
                running.append(Case(waiting.pop(0), self.arguments))
                self.cases[running[-1].name] = running[-1]
                self.begun.append(running[-1].process)
            for case in [case for case in running if case.is_done(self.deadline - JUDGE_S)]:
                running.remove(case)
                seconds = time.monotonic() - case.began
                print(f"  {case.name}: {case.fault or 'ended'} after {seconds:.0f} s", flush=True)
                if not case.fault:
                    self.judges[case.name] = judge(case, self.work)
                    self.begun.append(self.judges[case.name])
            time.sleep(0.2)

    def claims(self, names: list[str]) -> list[Claim]:
        """Of every case that was asked for, in their order."""
        judged = {
            name: judged_tokens(name, process, self.work, self.deadline - time.monotonic())
            for name, process in self.judges.items()
        }
        made = []
        for name in names:
            case = self.cases[name]
            fault = case.fault or ("" if judged.get(name) else "no tokens were judged")
            if fault or not judged.get(f"{case.model}-one"):
                print(failure(name, fault, case.log) if fault else "")
                made.append(Claim(False, f"{name}: {fault or 'one GPU has no tokens to compare with'}"))
            else:
                on_gpu = not self.arguments.cpu
                made += claims(case, judged, case.model == "dsv4" and on_gpu, on_gpu)
        return made


def bring_back(work: Path) -> None:
    """Logs and reports, where a lent machine takes what it brings back."""
    (work / "all.txt").write_text(all_logs(work))
    if os.environ.get("OUT"):
        with tarfile.open(Path(os.environ["OUT"]) / "serve-two.tgz", "w:gz") as archive:
            for file in [work / "all.txt", *work.glob("*.json"), *work.glob("*.rank1")]:
                archive.add(file, file.name)


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda names: names.split(","), default=CASES, help=", ".join(CASES))
    parser.add_argument("--cpu", action="store_true", help="without a GPU, with vLLM's CPU build")
    parser.add_argument("--side", type=int, default=len(CASES), help="cases at once")
    parser.add_argument("--case-s", type=float, default=150, help="seconds that a case may take")
    parser.add_argument(
        "--total-s", type=float, default=300, help="seconds for all; the last half minute is the judges'"
    )
    parser.add_argument("--plugins", default="", help="modules, with commas between, that every process imports")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu-serve-two")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.only if name not in CASES]
    if unknown:
        parser.error(f"--only has {unknown}; it must be of {', '.join(CASES)}, with commas between.")
    vars(agreement).update(RULE)
    arguments.work.mkdir(parents=True, exist_ok=True)
    models = {name.split("-")[0] for name in arguments.only}
    names = sorted({*arguments.only, *(f"{model}-one" for model in models)}, key=CASES.index)
    path = [str(ROOT / "vllm_plugin"), str(HERE), str(ROOT / "tests"), str(plugins(arguments.work / "plugins"))]
    path += [str(VLLM_TESTS / "shims")] if arguments.cpu else []
    os.environ["PYTHONPATH"] = os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])
    os.environ["FULL_PLUGINS"] = arguments.plugins
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("gpu-serve-two: ended from outside"))
    with Runs(arguments) as runs:
        faults = [*filter(None, [held_gpus()]), *runs.make_models(models)]
        if not faults:
            runs.run(names)
        made = [Claim(False, fault) for fault in faults] or runs.claims(names)
    good = bool(made) and all(claim.good for claim in made)
    print("\n".join([*map(str, made), "gpu-serve-two: " + ("PASS" if good else "FAIL")]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
