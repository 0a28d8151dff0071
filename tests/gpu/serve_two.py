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
    reload      as tp2; other weights while it serves (`reload_weights`), the first ones again, sleep and wake-up
    mtp         one GPU; DeepSeek-V4's layer that drafts a token, which the model then accepts or not

Tokens are greedy. Qwen3-MoE's equal one GPU's by the rule of tests/vllm/agreement.py, whose arbiter is the float32
reference: ranks add in another order, so a token may differ where that reference is undecided itself. How much one GPU
differs from itself, once a batch's prompts are served alone, has its line, too. DeepSeek-V4 on a GPU computes in 8
bits, so its judge has a control, `dsv4-tp2-control` and so on: the same with vLLM's own experts (full/control.py).
A line a claim; the last is PASS if all hold. Logs and reports: --work, and one .tgz under $OUT where that is set.
"""

import argparse
import json
import os
import signal
import sys
import tarfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
VLLM_TESTS = ROOT / "tests/vllm"
sys.path += [str(ROOT / "tests"), str(VLLM_TESTS)]  # behind this folder, whose serve.py is another

from full import claims, control
from full.case import FORCED_PROMPTS, PROMPTS, TEXTS
from full.claims import CONTROL, LOSSY, Claim, is_forced, merged
from full.options import OF_TINY, decode_graphs
from full.process import Process, held_gpus, stop_all
from serve import WITHOUT_OURS, all_logs, failure, text
from serve_full import plugins

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
    "compilation_config": decode_graphs([2, 4, 8, 16]),
}
LAYOUTS = {
    "one": ({}, ["--alone"]),
    "tp2": (SHARED_BY_2, []),
    "pp2": ({"pipeline_parallel_size": 2}, []),
    "dp2": ({"enable_expert_parallel": True}, ["--ranks", "2", "--last", "4"]),
    "eplb": (MOVED_AT_ONCE, ["--rounds", "3"]),
    "eplb-async": (MOVED_BESIDE, ["--rounds", "3"]),
    "reload": (SHARED_BY_2, ["--reload"]),
    "mtp": (DRAFTED, []),
}
CASES = [
    *(f"qwen3-{layout}" for layout in LAYOUTS if layout != "mtp"),
    *LOSSY,
    *(name + CONTROL for name in LOSSY),
]
MAKE_S, JUDGE_S = 120, 30
"""Making models may take so long; and so much is left for the judges when the cases' time is over."""


class Case:
    """A process of full.case, and what it found."""

    def __init__(self, name: str, arguments):
        self.name, self.is_control = name, name.endswith(CONTROL)
        self.model, self.layout = name.removesuffix(CONTROL).split("-", 1)
        options, more = LAYOUTS[self.layout]
        options = options if arguments.cpu else OF_TINY[self.model] | options
        options = options | {"moe_backend": "marlin"} if self.is_control else options
        if self.layout == "reload":
            more = [*more, str(arguments.work / f"{self.model}-other")]
            options = options if arguments.cpu else options | {"enable_sleep_mode": True}
        if is_forced(name):
            more = [*more, "--forced"]
        self.report, self.log = (arguments.work / f"{name}.{kind}" for kind in ("json", "log"))
        self.reports = [self.report, *([self.report.with_suffix(".rank1")] if self.layout == "dp2" else [])]
        for stale in self.reports:
            stale.unlink(missing_ok=True)
        folder = arguments.work / (f"{self.model}-mtp" if self.layout == "mtp" else self.model)
        command = [sys.executable, "-m", "full.case", str(folder), "--out", str(self.report), *more]
        command += ["--options", json.dumps(options), *(["--cpu"] if arguments.cpu else [])]
        environment = {"NVFP4_MOE_TEST_EPLB": "1"} if arguments.cpu and "eplb" in self.layout else {}
        environment |= WITHOUT_OURS if self.is_control else {}
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

    def said(self) -> control.Said:
        """What it thinks of the forced texts, in their order."""
        rounds = zip(*(report["forced"] for report in self.found()), strict=True)
        said = [steps for ranks in rounds for steps in merged(list(ranks))]
        return [[{int(id): value for id, value in step.items()} for step in steps] for steps in said]

    def model_of(self, number: int) -> str:
        """Whose weights a round has."""
        return f"{self.model}-other" if self.layout == "reload" and number == 1 else self.model

    def rounds(self) -> list[list[list[int]]]:
        """Every round's tokens, in the order of the prompts."""
        return [merged(list(ranks)) for ranks in zip(*(report["rounds"] for report in self.found()), strict=True)]


def last_line(log: Path) -> str:
    """How far a process came."""
    return (text(log).rstrip() or "nothing").splitlines()[-1][:200]


def reference(model: Path, prompts: list[list[int]], tokens: list[list[int]], log: Path, *logits: Path) -> Process:
    """The float32 reference on tokens behind prompts, each behind those before it: a process beside the others."""
    served = log.with_suffix(".served")
    served.write_text(json.dumps({"prompts": prompts, "tokens": tokens}))
    command = [sys.executable, str(VLLM_TESTS / "reference_logits.py"), str(model), str(served), *map(str, logits)]
    return Process(command, os.environ | {"CUDA_VISIBLE_DEVICES": ""}, log)


def judges(case: Case, work: Path) -> dict[str, Process]:
    """Of a case's rounds; one for each model whose weights it had."""
    found = {}
    for model in dict.fromkeys(case.model_of(number) for number in range(len(case.rounds()))):
        rounds = [tokens for number, tokens in enumerate(case.rounds()) if case.model_of(number) == model]
        name = case.name if model == case.model else f"{case.name}-other"
        flat = [tokens for made in rounds for tokens in made]
        log = work / f"{name}-judge.log"
        found[name] = reference(work / f"{model}-float32", PROMPTS * len(rounds), flat, log)
    return found


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
            more = ["dsv4-mtp"] if name == "dsv4" else [f"{name}-other", f"{name}-other-float32"]
            command += [str(self.work / folder) for folder in (f"{name}-float32", *more)]
            makers[name] = Process(command, dict(os.environ), self.work / f"{name}-make.log")
            self.begun.append(makers[name])
        faults = {name: maker.wait(MAKE_S) for name, maker in makers.items()}
        return [failure(f"{name}-make", why, self.work / f"{name}-make.log") for name, why in faults.items() if why]

    def run(self, names: list[str]) -> None:
        """Every case, as many at once as wanted; and judges for each once it has served."""
        waiting, running = list(names), []
        if any(map(is_forced, names)):
            model, log, logits = (self.work / f"dsv4-{end}" for end in ("float32", "texts-judge.log", "texts.npy"))
            logits.unlink(missing_ok=True)
            self.judge({"dsv4-texts": reference(model, FORCED_PROMPTS, TEXTS, log, logits)})
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
                    self.judge(judges(case, self.work))
            time.sleep(0.2)

    def judge(self, begun: dict[str, Process]) -> None:
        """They have begun."""
        self.judges |= begun
        self.begun += begun.values()

    def claims(self, names: list[str]) -> list[Claim]:
        """Of every case that was asked for, in their order."""
        judged = {
            name: tokens
            for name, process in self.judges.items()
            if (tokens := judged_tokens(name, process, self.work, self.deadline - time.monotonic()))
        }
        made, on_gpu = [], not self.arguments.cpu
        for name in names:
            case = self.cases[name]
            fault = case.fault or ("" if name in judged else "no tokens were judged")
            if fault or f"{case.model}-one" not in judged:
                print(failure(name, fault, case.log) if fault else "")
                made.append(Claim(False, f"{name}: {fault or 'one GPU has no tokens to compare with'}"))
                continue
            made += claims.of(case, judged, on_gpu)
            if case.layout == "reload":
                other = [token for tokens in judged.get(f"{name}-other", []) for token in tokens]
                made.append(claims.against(f"{name}, other weights", other) if other
                            else Claim(False, f"{name}: other weights' tokens were not judged"))  # fmt: skip
        return made + (claims.beside_control(self.cases, judged, self.work) if on_gpu else [])


def needed(only: list[str], on_gpu: bool) -> list[str]:
    """With what they are compared with, in order: one GPU; and for those that lose bits, controls."""
    names = {*only, *(f"{name.split('-')[0]}-one" for name in only)}
    names |= {name + CONTROL for name in names if on_gpu and name in LOSSY}
    return sorted(names, key=CASES.index)


def bring_back(work: Path) -> None:
    """Logs and reports, where a lent machine takes what it brings back."""
    (work / "all.txt").write_text(all_logs(work))
    if os.environ.get("OUT"):
        with tarfile.open(Path(os.environ["OUT"]) / "serve-two.tgz", "w:gz") as archive:
            for file in [work / "all.txt", *work.glob("*.json"), *work.glob("*.rank1"), *work.glob("*.npy")]:
                archive.add(file, file.name)


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda names: names.split(","), help=", ".join(CASES))
    parser.add_argument("--cpu", action="store_true", help="without a GPU, with vLLM's CPU build")
    parser.add_argument("--side", type=int, default=len(CASES), help="cases at once")
    parser.add_argument("--case-s", type=float, default=150, help="seconds that a case may take")
    parser.add_argument(
        "--total-s", type=float, default=300, help="seconds for all; the last half minute is the judges'"
    )
    parser.add_argument("--plugins", default="", help="modules, with commas between, that every process imports")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu-serve-two")
    arguments = parser.parse_args()
    arguments.only = arguments.only or [name for name in CASES if not arguments.cpu or CONTROL not in name]
    unknown = [name for name in arguments.only if name not in CASES]
    if unknown:
        parser.error(f"--only has {unknown}; it must be of {', '.join(CASES)}, with commas between.")
    arguments.work.mkdir(parents=True, exist_ok=True)
    models = {name.split("-")[0] for name in arguments.only}
    names = needed(arguments.only, not arguments.cpu)
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
