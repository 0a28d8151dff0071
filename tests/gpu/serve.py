# SPDX-License-Identifier: Apache-2.0
"""Serve tiny NVFP4 models with real vLLM on a GPU: our MoE in CUDA graphs, ours eager, and Marlin on the same files.

    make gpu-serve GPU_PY=PYTHON        on a machine with a GPU, with the vLLM that PYTHON has (serve_one.py)
    make gpu-serve BUNDLE=.peers        with a bundle that makes vLLM importable, serves and makes models by itself

Every run is a process of its own under `cudagraph_mode: FULL_DECODE_ONLY` (the eager one aside), greedy. A run that
fails prints the end of its log and the others go on. The last line is PASS if, for each model,

- our experts served, the log says so, and Marlin's served where the user asked for them;
- graphs were captured, by vLLM's own log and by counting, and every decoding step of the generation replayed one;
- every logit was finite;
- a prompt served alone gave the same tokens with graphs and without;
- ours and Marlin agree on the first token of more than half of the prompts, and on the prompt served alone at least on
  that. Later tokens are counted, not gated: both round to bf16, in another order, and a random model amplifies it.

Writes <date>-serve.csv under --out; logs and reports under --work, and one file of each under $OUT where that is set.
"""

import argparse
import csv
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OURS, MARLIN = "Nvfp4MoeExperts", "MarlinExperts"
# The environment in which linears are vLLM's own, too, where its own experts are asked for.
WITHOUT_OURS = {"VLLM_DISABLED_KERNELS": "Nvfp4MoeLinearKernel"}
# name: options of serve_one.py, environment, experts that must serve
RUNS = {
    "ours": ([], {}, OURS),
    "marlin": (["--moe-backend", "marlin"], WITHOUT_OURS, MARLIN),
    "ours-eager": (["--eager"], {}, OURS),
}
# model: more plugins, seconds for one run. vLLM starts DeepSeek-V4 in up to 60 s, Qwen3-MoE in 10, and imports in 20.
BUNDLE_MODELS = {"dsv4": (["dsv4_triton_compressor"], 170), "qwen3": ([], 90)}
BUNDLE_S = 430
# An installed vLLM may first compile kernels of its own, and has nobody who waits for the machine.
OWN_MODELS = {"qwen3": ([], 900)}
OWN_S = 3000
TAIL_LINES = 40
SIZES = (1, 2, 4, 8)
COLUMNS = ("model", "run", "experts", "graphs_captured", "graph_replays")
COLUMNS += ("step_ms_1", "step_ms_8", "tokens_per_s_1", "tokens_per_s_8", "first_tokens_as_marlin", "tokens_as_marlin")


class Runs:
    """The processes: one after another, within one budget of time."""

    def __init__(self, bundle: Path | None, work: Path):
        self.work, self.models = work, BUNDLE_MODELS if bundle else OWN_MODELS
        self.total_s = BUNDLE_S if bundle else OWN_S
        self.server = bundle / "serve_smoke.py" if bundle else HERE / "serve_one.py"
        self.maker = [bundle / "make_tiny_checkpoint.py", work] if bundle else [HERE / "tiny_qwen3.py", work / "qwen3"]
        self.deadline = time.monotonic() + self.total_s
        self.failed: list[str] = []

    def make_models(self) -> bool:
        """Write them below the work folder, by their names."""
        return self.command("make-models", [sys.executable, *map(str, self.maker)], 120, {})

    def command(self, name: str, command: list[str], limit_s: float, environment: dict[str, str]) -> bool:
        """Run it into work/<name>.log; False, with the end of the log on the screen, if it fails."""
        log = self.work / f"{name}.log"
        limit_s = min(limit_s, self.deadline - time.monotonic())
        if limit_s < 10:
            self.failed.append(f"{name}: not run, {self.total_s} s are over")
            return False
        with log.open("w") as stream:
            try:
                status = subprocess.run(
                    command, env=os.environ | environment, stdout=stream, stderr=subprocess.STDOUT, timeout=limit_s
                ).returncode
                reason = f"exit status {status}" if status else None
            except subprocess.TimeoutExpired:
                reason = f"stopped after {limit_s:.0f} s"
        if reason:
            self.failed.append(f"{name}: {reason}")
            print(failure(name, reason, log), flush=True)
        return reason is None

    def serve(self, model: Path, run: str) -> dict | None:
        """One run: its report, with seconds a decoding step; None if it failed."""
        plugins, limit_s = self.models[model.name]
        options, environment, _ = RUNS[run]
        name = f"{model.name}-{run}"
        report, times = self.work / f"{name}.json", self.work / f"{name}-times.json"
        for stale in (report, times):
            stale.unlink(missing_ok=True)
        command = [sys.executable, str(self.server), str(model), "--out", str(report), *options]
        for plugin in ("serve_with_plugin", "time_decoding", *plugins):
            command += ["--plugin", plugin]
        if not self.command(name, command, limit_s, {"NVFP4_MOE_DECODE_TIMES": str(times)} | environment):
            return None
        result = json.loads(text(report))
        result["log"] = text(self.work / f"{name}.log")
        timing = json.loads(text(times))
        result["step_s"] = {int(n): statistics.median(seconds) for n, seconds in timing["seconds"].items()}
        # A batch, a prompt alone (whose first tokens come from the prompt) and the timing.
        result["decoding_steps"] = timing["steps"] + sum(len(r[0]) - 1 for r in result["tokens"].values())
        return result


def text(file: Path) -> str:
    return file.read_text(errors="replace")


def failure(name: str, reason: str, log: Path) -> str:
    """What is said of a run that failed: why, and the end of its log."""
    tail = "\n".join(text(log).splitlines()[-TAIL_LINES:])
    return f"  {name}: FAILED, {reason}; the end of {log}:\n{tail}"


def records_of(device: str) -> Path:
    """The folder of a GPU's records: `h100` of "NVIDIA H100 80GB HBM3"."""
    return ROOT / "tests/bench/record" / device.split()[1].lower()


def all_logs(work: Path) -> str:
    """Every log of a work folder, one after another under its name."""
    return "".join(f"==== {log.name}\n{text(log)}\n" for log in sorted(work.glob("*.log")))


def experts(report: dict) -> str:
    """What vLLM built for the MoE layers; a text if looking failed."""
    built = report["built"]
    return ", ".join(built["moe"]) if isinstance(built, dict) else built


def run_failures(run: str, report: dict) -> list[str]:
    """What is wrong with one run."""
    wanted = RUNS[run][2]
    kinds = report["built"]["moe"] if isinstance(report["built"], dict) else {}
    log, graphs = report["log"], report["graphs"]
    checks = {
        f"experts are {experts(report)}, not {wanted}": bool(kinds) and all(wanted in kind for kind in kinds),
        "a logit is not finite": report["logits"]["all_finite"],
    }
    if wanted == OURS:
        checks["the log does not say that the MoE is ACTIVE"] = "ACTIVE for NVFP4 MoE on cuda" in log
    if report["eager"]:
        checks["graphs in an eager run"] = graphs["captured"] == 0 == graphs["replays_in_generation"]
    else:
        checks["no 'Graph capturing finished' in the log"] = bool(re.search(r"[Gg]raph capturing finished", log))
        checks[f"{graphs['captured']} graphs captured, not {len(SIZES)}"] = graphs["captured"] >= len(SIZES)
        replays, steps = graphs["replays_in_generation"], report["decoding_steps"]
        checks[f"{replays} replays in {steps} decoding steps"] = replays >= steps
    return [f"{run}: {text}" for text, good in checks.items() if not good]


def same_as(report: dict, marlin: dict) -> tuple[int, int, int]:
    """(prompts of the batch with an equal first token, tokens equal before each prompt's first difference, tokens)."""
    pairs = list(zip(report["tokens"]["batch"], marlin["tokens"]["batch"], strict=True))
    same = [next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a)) for a, b in pairs]
    return sum(n > 0 for n in same), sum(same), sum(len(a) for a, _ in pairs)


def comparisons(reports: dict[str, dict]) -> list[str]:
    """What is wrong between the runs of one model."""
    found = []
    alone = {run: report["tokens"]["first_alone"][0] for run, report in reports.items()}
    if {"ours", "ours-eager"} <= alone.keys() and alone["ours"] != alone["ours-eager"]:
        found.append(f"graphs and eager differ: {alone['ours']} and {alone['ours-eager']}")
    if {"ours", "marlin"} <= alone.keys():
        first, _, _ = same_as(reports["ours"], reports["marlin"])
        num_prompts = len(reports["ours"]["tokens"]["batch"])
        if 2 * first <= num_prompts:
            found.append(f"only {first} of {num_prompts} first tokens are Marlin's")
        if alone["ours"][0] != alone["marlin"][0]:
            found.append(f"the first token alone is {alone['ours'][0]}, Marlin's {alone['marlin'][0]}")
    return found


def row(model: str, run: str, report: dict, marlin: dict | None) -> list:
    """One line of the record."""
    step, graphs = report["step_s"], report["graphs"]
    first, same, total = same_as(report, marlin) if marlin else ("", "", "")
    return [
        *(model, run, experts(report), graphs["captured"], graphs["replays_in_generation"]),
        *(f"{step[n] * 1e3:.3f}" for n in (1, 8)),
        *(f"{n / step[n]:.1f}" for n in (1, 8)),
        *((f"{first} of 8", f"{same} of {total}") if marlin else ("", "")),
    ]


def write_record(path: Path, reports: dict[str, dict[str, dict]]) -> None:
    one = next(report for runs in reports.values() for report in runs.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.write(f"# {one['device']}, {datetime.date.today()}, vLLM {one['vllm']}, torch {one['torch']}\n")
        file.write("# tiny models, FULL_DECODE_ONLY, greedy; medians of 5 rounds.\n")
        file.write("# step_ms_N: one decoding step of N prompts, scheduler included; launches cost more than weights\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for model, runs in reports.items():
            table.writerows(row(model, run, report, runs.get("marlin")) for run, report in runs.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="folder of a serve_smoke.py and a make_tiny_checkpoint.py")
    parser.add_argument(
        "--out", type=Path, help="where the record goes; default: tests/bench/record/ of the GPU's name"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu-serve", help="models, logs and reports")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    bundle = str(arguments.bundle or "")
    path = [str(ROOT / "vllm_plugin"), str(HERE), bundle, os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    runs, reports = Runs(arguments.bundle, arguments.work), {}
    for model in runs.models if runs.make_models() else ():
        print(f"{model}:", flush=True)
        served = {}
        for run in RUNS:
            report = runs.serve(arguments.work / model, run)
            if report is None:
                continue
            served[run] = report
            runs.failed += [f"{model} {failure}" for failure in run_failures(run, report)]
            print("  " + "  ".join(map(str, row(model, run, report, served.get("marlin"))[1:])), flush=True)
        runs.failed += [f"{model}: {failure}" for failure in comparisons(served)]
        if served:
            reports[model] = served
    if reports:
        device = next(report for runs in reports.values() for report in runs.values())["device"]
        record = (arguments.out or records_of(device)) / f"{datetime.date.today()}-serve.csv"
        write_record(record, reports)
        print(f"{record}:\n{text(record)}")
        bring_back(arguments.work, record, reports)
    print("\n".join([*runs.failed, "gpu-serve: " + ("FAIL" if runs.failed else "PASS")]))
    return 1 if runs.failed else 0


def bring_back(work: Path, record: Path, reports: dict) -> None:
    """Three files under $OUT, where a lent machine takes what it brings back, and only a few files."""
    if not os.environ.get("OUT"):
        return
    out = Path(os.environ["OUT"])
    if record.parent.resolve() != out.resolve():
        shutil.copy(record, out / record.name)
    (out / "serve.json").write_text(json.dumps(reports, indent=1))
    (out / "serve.log").write_text(all_logs(work))


if __name__ == "__main__":
    sys.exit(main())
