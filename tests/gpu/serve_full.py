#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The numbers that people choose by: DeepSeek-V4 at full size in real vLLM, ours beside Marlin, on one or several GPUs.

    make gpu-serve-full GPU_FULL="--layout tp2"               all of Flash on two GPUs, about 90 s a run
    make gpu-serve-full GPU_FULL="--layout one --layers 12"   as many layers as one GPU holds

Humming has to be asked for, by `--runs`, and brought along: `make peers-fetch` (full/humming_experts.py).

The first run on a machine compiles kernels of vLLM's own (TileLang, Triton, DeepGEMM), which takes minutes: make their
caches on a machine without a GPU (absent/absent.py) and bring them along, or begin with `--once --runs "ours bf16"`.

Runs go forth and back (A B C C B A), each a process of its own, so that the moods of a host cancel. All import at once,
and take the GPU in turn (full/ahead.py); a run's seconds count from its turn. With `--after FILE` the first turn waits
for that file, so that another command's runs import meanwhile. The weights are random, valid, and the same for every
backend (full/weights.py). Writes <date>-full-<size>-<layout>.csv: medians and the spread of all rounds of all runs;
under $OUT too, with the reports, the logs and the kernels that were compiled. Ends with PASS if every run ended.

Several commands make one record: `--reports` with the full.json of each.
"""

import argparse
import contextlib
import csv
import datetime
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from full import model, one
from full.process import InTurn, held_gpus, stop_all
from serve import HERE, ROOT, WITHOUT_OURS, all_logs, failure, records_of, text

# The most that a layer may be apart from float64: with bf16 activations, with 8-bit ones.
BF16, EIGHT_BITS = (["--most-error", most] for most in ("0.01", "0.06"))
# name: arguments of full.one, environment
RUNS = {
    "ours bf16": (["--backend", "ours", *BF16], {"NVFP4_MOE_MODE": "bf16"}),
    "ours fp8": (["--backend", "ours", *EIGHT_BITS], {"NVFP4_MOE_MODE": "fp8"}),
    "marlin": (["--backend", "marlin", *BF16], WITHOUT_OURS),
    "humming w4a16": (["--backend", "humming", *BF16], {"FULL_HUMMING": "w4a16"}),
    "humming w4a8": (["--backend", "humming", *EIGHT_BITS], {"FULL_HUMMING": "w4a8"}),
}
# Of a GPU's memory. Where ranks talk, buffers of their own come on top of what vLLM measures.
MEMORY, MEMORY_OF_RANKS = {"one": 0.9}, 0.8
# What vLLM's log says of itself, the largest of all ranks, by the column that has it.
LOGGED = {
    "load_gib": r"Model loading took ([\d.]+) GiB",
    "load_s": r"Model loading took [\d.]+ GiB(?: memory)? and ([\d.]+) seconds",
    "graph_s": r"Graph capturing finished in ([\d.]+) secs",
    "graph_gib": r"Graph capturing finished in [\d.]+ secs, took (-?[\d.]+) GiB",
    "activation_gib": r"([\d.]+) GiB for peak activation",
    "kv_gib": r"Available KV cache memory: ([\d.]+) GiB",
    "engine_start_s": r"init engine \(profile, create kv cache, warmup model\) took ([\d.]+) s",
}
ENTRY_POINTS = (
    "[vllm.general_plugins]\nfull_humming = full.humming_experts:register\nfull_random = full.weights:register\n"
    "nvfp4_moe = nvfp4_moe.plugin:register\n"
)


def plugins(folder: Path) -> Path:
    """A distribution whose entry points every process of vLLM finds: the load format, and ours as its wheel has it."""
    info = folder / "nvfp4_moe_full-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nvfp4-moe-full\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


class Run:
    """One process of vLLM, and what it found."""

    def __init__(self, name: str, arguments, index: int):
        self.name, self.stem = name, f"{index}-{name.replace(' ', '-')}"
        self.report, self.log = (arguments.work / f"{self.stem}.{kind}" for kind in ("json", "log"))
        self.report.unlink(missing_ok=True)
        options, environment = RUNS[name]
        command = [sys.executable, "-m", "full.one", str(arguments.work / "model"), "--out", str(self.report), *options]
        command += ["--layout", arguments.layout, "--sequences", arguments.sequences, "--prompts", arguments.prompts]
        memory = arguments.memory or MEMORY.get(arguments.layout, MEMORY_OF_RANKS)
        command += ["--rounds", str(arguments.rounds), "--memory", str(memory)]
        if index < len(arguments.runs) and name in arguments.profiled:  # once each
            command += ["--profile", arguments.profile, "--host", arguments.host]
        self.process = InTurn(command, os.environ | environment, self.log)

    def found(self) -> dict | None:
        """What it has measured, however far it came, and what its log says of it."""
        if not self.report.exists():
            return None
        said, found = text(self.log), json.loads(self.report.read_text())
        logged = {key: [float(value) for value in re.findall(pattern, said)] for key, pattern in LOGGED.items()}
        found["logged"] = {key: max(values) for key, values in logged.items() if values}
        found |= {"name": self.name, "active": "ACTIVE for NVFP4 MoE on cuda" in said}
        self.report.write_text(json.dumps(found, indent=1))
        return found


def summary(found: dict) -> str:
    """One line of one run."""
    medians = found["medians"]
    steps = "  ".join(f"{n}: {ms:.2f}" for n, ms in medians.get("step_ms", {}).items())
    first = "  ".join(f"{n}: {ms:.0f}" for n, ms in medians.get("first_token_ms", {}).items())
    return f"start {found['start_s']:.0f} s; step ms {steps}; first token ms {first}; host us {found.get('host_us')}"


def bring_back(arguments) -> None:
    """What a lent machine keeps of every finished run, under $OUT: reports, logs, and the engine's compiled kernels."""
    if not os.environ.get("OUT"):
        return
    out = Path(os.environ["OUT"])
    (out / "full.log").write_text(all_logs(arguments.work))
    reports = {report.stem: json.loads(text(report)) for report in sorted(arguments.work.glob("*.json"))}
    (out / "full.json").write_text(json.dumps(reports))
    if arguments.caches:
        with contextlib.suppress(subprocess.TimeoutExpired):
            caches = Path(arguments.caches)
            subprocess.run(
                ["tar", "cJf", str(out / "caches.tar.xz"), f"--newer-mtime=@{arguments.began}", caches.name],
                cwd=caches.parent,
                timeout=30,
            )


def rows(name: str, reports: list[dict]) -> list[list]:
    """Lines of the record: quantity, size, median, smallest, largest, samples."""
    found = []
    for kind in ("step_ms", "first_token_ms"):
        for size in sorted({size for report in reports for size in report.get(kind, {})}, key=int):
            values = [value for report in reports for value in report.get(kind, {}).get(size, [])]
            line = [statistics.median(values), min(values), max(values)]
            found.append([name, kind, size, *(f"{value:.3f}" for value in line), len(values)])
            if kind == "step_ms":
                per_s = [int(size) / value * 1e3 for value in (line[0], line[2], line[1])]
                found.append([name, "tokens_per_s", size, *(f"{value:.1f}" for value in per_s), len(values)])
    single = {
        "start_s": [report["start_s"] for report in reports],
        "kv_blocks": [report["kv_blocks"] for report in reports],
        "used_gib": [max(rank["used"] for rank in report["memory"]) for report in reports if "memory" in report],
        **{key: [report["logged"][key] for report in reports if key in report["logged"]] for key in LOGGED},
    }
    for kind, values in single.items():
        if values:
            line = [statistics.median(values), min(values), max(values)]
            found.append([name, kind, "", *(f"{value:.2f}" for value in line), len(values)])
    apart = max(reports, key=lambda report: len(report.get("profile", {})))  # the one that was taken apart
    for size, us in apart.get("host_us", {}).items():
        found += [[name, f"host_us {what}", size, f"{value:.1f}", "", "", ""] for what, value in us.items()]
    for size, profile in apart.get("profile", {}).items():
        parts = sorted(profile["parts"].items(), key=lambda item: -item[1])
        found += [[name, f"kernels_us {part}", size, f"{us:.1f}", "", "", 1] for part, us in parts]
        found.append([name, "kernels_us any", size, f"{profile['busy']['any']:.1f}", "", "", 1])
        found.append([name, "kernels", size, f"{profile['launches']['all']:.1f}", "", "", 1])
    return found


def record_of(arguments) -> int:
    """The record alone, of reports that are there."""
    reports: dict[str, list[dict]] = {}
    for file in arguments.reports:
        for report in json.loads(text(file)).values():
            reports.setdefault(report["name"], []).append(report)
    write_record(reports, arguments)
    return 0


def write_record(reports: dict[str, list[dict]], arguments) -> None:
    """The table, with the device and the command's numbers on top: to the GPU's records, the screen, and $OUT."""
    first = next(iter(reports.values()))[0]
    layers = model.config(arguments.size, arguments.layers)["num_hidden_layers"]
    folder = records_of(first["device"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.date.today()}-full-{arguments.size}-{arguments.layout}.csv"
    with path.open("w", newline="") as file:
        file.write(f"# {first['device']}, {datetime.date.today()}, vLLM {first['vllm']}, layout {arguments.layout}\n")
        file.write(
            f"# DeepSeek-V4 {arguments.size}, {layers} layers at full size, random weights, FULL_DECODE_ONLY, greedy\n"
        )
        file.write("# step_ms N: a decoding step of N sequences; first_token_ms N: a prompt of N tokens alone\n")
        file.write(
            "# host_us N: medians of a layer's host time in a prompt of N tokens, eager; experts: the backend's own\n"
        )
        file.write(
            "# kernels_us N: of a step of N sequences, by the profiler; overlapping ones share time; any: all of it\n"
        )
        file.write(
            "# used_gib holds the KV cache, which takes what is left; activation_gib: the most above the weights\n"
        )
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["run", "quantity", "size", "median", "smallest", "largest", "samples"])
        for name, found in reports.items():
            table.writerows(rows(name, found))
    print(f"{path.relative_to(ROOT)}:\n{path.read_text()}")
    if os.environ.get("OUT"):
        shutil.copy(path, Path(os.environ["OUT"]) / path.name)


def take_turns(runs: list[Run], arguments, deadline: float) -> tuple[dict[str, list[dict]], list[str]]:
    """Every run's report by its name, and what failed."""
    reports: dict[str, list[dict]] = {}
    failed = []
    while arguments.after and not arguments.after.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    for run in runs:
        skipped = run.process.imported(max(0.0, deadline - time.monotonic()))
        limit_s = min(arguments.run_s, deadline - time.monotonic())
        start = time.monotonic()
        skipped = "the time is over" if limit_s < 20 else skipped or held_gpus()
        if skipped:
            run.process.stop()
            failed.append(f"{run.stem}: not run, {skipped}")
            print(f"  {failed[-1]}", flush=True)
            continue
        reason, found = run.process.take_turn(limit_s), run.found()
        if reason or not found:
            failed.append(run.stem)
            print(failure(run.stem, reason or "there is no report", run.log), flush=True)
        if found:
            print(f"  {run.stem} ({time.monotonic() - start:.0f} s): {summary(found)}", flush=True)
            reports.setdefault(run.name, []).append(found)
            if run.name.startswith("ours") and not found["active"]:
                failed.append(f"{run.stem}: the log does not say that the MoE is ACTIVE")
        bring_back(arguments)
    return reports, failed


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=model.SIZES, default="flash")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--layout", choices=one.LAYOUTS, default="tp2")
    parser.add_argument(
        "--runs", type=lambda names: names.split(","), default=[run for run in RUNS if "humm" not in run]
    )
    parser.add_argument("--once", action="store_true", help="forth, but not back")
    parser.add_argument("--sequences", default="1,8,64,256")
    parser.add_argument("--prompts", default="128,512,2048,8000")
    parser.add_argument("--profile", default="1,8,64", help="numbers of sequences whose step is taken apart")
    parser.add_argument("--profiled", type=lambda names: names.split(","), default=list(RUNS), help="only these runs")
    parser.add_argument("--host", default="128,512,2048", help="lengths of prompts whose layers' host time is taken")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=float, help="the part of a GPU that vLLM takes; default: MEMORY's")
    parser.add_argument("--plugins", default="", help="modules, with commas between, that every process imports")
    parser.add_argument("--run-s", type=float, default=420, help="seconds that one run may take")
    parser.add_argument("--total-s", type=float, default=570, help="seconds for all runs")
    parser.add_argument("--after", type=Path, help="a file; the first run waits until it is there")
    parser.add_argument("--caches", help="folder of kernels that the engine compiles; what is new in it goes to $OUT")
    parser.add_argument(
        "--reports", type=Path, nargs="+", help="only the record, from the full.json of several commands"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu-serve-full")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.runs if name not in RUNS]
    if unknown:
        parser.error(f"--runs has {unknown}; it must be of {', '.join(RUNS)}, with commas between.")
    if arguments.reports:
        return record_of(arguments)
    deadline, arguments.began = time.monotonic() + arguments.total_s, int(time.time())
    arguments.work.mkdir(parents=True, exist_ok=True)
    model.write(arguments.work / "model", arguments.size, arguments.layers)
    path = [str(ROOT / "vllm_plugin"), str(HERE), str(plugins(arguments.work / "plugins"))]
    os.environ["PYTHONPATH"] = os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])
    os.environ["FULL_PLUGINS"] = arguments.plugins
    order = arguments.runs if arguments.once else arguments.runs + arguments.runs[::-1]
    runs = [Run(name, arguments, index) for index, name in enumerate(order)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("gpu-serve-full: ended from outside"))
    try:
        reports, failed = take_turns(runs, arguments, deadline)
    finally:
        stop_all([run.process for run in runs])
    if reports:
        write_record(reports, arguments)
    print("\n".join([*failed, "gpu-serve-full: " + ("FAIL" if failed else "PASS")]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
