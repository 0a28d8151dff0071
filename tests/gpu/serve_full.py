#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The numbers that people choose by: DeepSeek-V4 at full size in real vLLM, ours beside Marlin, on one or several GPUs.

    make gpu-serve-full GPU_FULL="--layout tp2"               all of Flash on two GPUs, about 90 s a run
    make gpu-serve-full GPU_FULL="--layout one --layers 12"   as many layers as one GPU holds

The first run on a machine compiles kernels of vLLM's own (TileLang, Triton, DeepGEMM), which takes minutes: bring their
caches along, or begin with `--once --runs "ours bf16"`.

Runs go forth and back (A B C C B A), each a process of its own, so that the moods of a host cancel. The weights are
random, valid, and the same for every backend (full/weights.py). Writes <date>-full-<size>-<layout>.csv: medians and
the spread of every round of every run; under $OUT too, with the logs. Ends with PASS if every run ended.
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
from serve import HERE, ROOT, all_logs, failure, records_of, text

# name: arguments of full.one, environment
RUNS = {
    "ours bf16": (["--backend", "ours"], {"NVFP4_MOE_MODE": "bf16"}),
    "ours fp8": (["--backend", "ours"], {"NVFP4_MOE_MODE": "fp8"}),
    "marlin": (["--backend", "marlin"], {"VLLM_DISABLED_KERNELS": "Nvfp4MoeLinearKernel"}),
}
# What vLLM's log says of itself, the largest of all ranks, by the column that has it.
LOGGED = {
    "load_gib": r"Model loading took ([\d.]+) GiB",
    "load_s": r"Model loading took [\d.]+ GiB(?: memory)? and ([\d.]+) seconds",
    "graph_s": r"Graph capturing finished in ([\d.]+) secs",
    "graph_gib": r"Graph capturing finished in [\d.]+ secs, took (-?[\d.]+) GiB",
}
ENTRY_POINTS = "[vllm.general_plugins]\nfull_random = full.weights:register\nnvfp4_moe = nvfp4_moe.plugin:register\n"


def plugins(folder: Path) -> Path:
    """A distribution whose entry points every process of vLLM finds: the load format, and ours as its wheel has it."""
    info = folder / "nvfp4_moe_full-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nvfp4-moe-full\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def ended(command: list[str], environment: dict[str, str], log: Path, limit_s: float) -> str | None:
    """Run it into the log; why it failed, if it did. Its ranks are processes of their own, and hold a GPU's memory."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit_s)
            return f"exit status {status}" if status else None
        except subprocess.TimeoutExpired:
            return f"stopped after {limit_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(name: str, arguments, turn: int, deadline: float) -> dict | None:
    """One process: its report, or None after the end of its log was shown."""
    options, environment = RUNS[name]
    stem = f"{turn}-{name.replace(' ', '-')}"
    report, log = arguments.work / f"{stem}.json", arguments.work / f"{stem}.log"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "full.one", str(arguments.work / "model"), "--out", str(report), *options]
    command += ["--layout", arguments.layout, "--sequences", arguments.sequences, "--prompts", arguments.prompts]
    command += ["--rounds", str(arguments.rounds), "--memory", str(arguments.memory)]
    if turn < len(arguments.runs):  # once each
        command += ["--profile", arguments.profile]
    limit_s = min(arguments.run_s, deadline - time.monotonic())
    if limit_s < 60:
        print(f"  {stem}: not run, the time is over", flush=True)
        return None
    start = time.monotonic()
    reason = ended(command, os.environ | environment, log, limit_s)
    if reason or not report.exists():
        print(failure(stem, reason or "there is no report", log), flush=True)
        return None
    said = text(log)
    found = json.loads(report.read_text())
    logged = {key: [float(value) for value in re.findall(pattern, said)] for key, pattern in LOGGED.items()}
    found["logged"] = {key: max(values) for key, values in logged.items() if values}
    found["active"] = "ACTIVE for NVFP4 MoE on cuda" in said
    medians = "  ".join(f"{n}: {ms:.2f}" for n, ms in found["medians"]["step_ms"].items())
    first = "  ".join(f"{n}: {ms:.0f}" for n, ms in found["medians"]["first_token_ms"].items())
    print(f"  {stem} ({time.monotonic() - start:.0f} s): step ms {medians}; first token ms {first}", flush=True)
    return found


def rows(name: str, reports: list[dict]) -> list[list]:
    """Lines of the record: quantity, size, median, smallest, largest, samples."""
    found = []
    for kind in ("step_ms", "first_token_ms"):
        for size in reports[0][kind]:
            values = [value for report in reports for value in report[kind][size]]
            line = [statistics.median(values), min(values), max(values)]
            found.append([name, kind, size, *(f"{value:.3f}" for value in line), len(values)])
            if kind == "step_ms":
                per_s = [int(size) / value * 1e3 for value in (line[0], line[2], line[1])]
                found.append([name, "tokens_per_s", size, *(f"{value:.1f}" for value in per_s), len(values)])
    single = {
        "start_s": [report["start_s"] for report in reports],
        "kv_blocks": [report["kv_blocks"] for report in reports],
        "peak_gib": [max(rank["used"] for rank in report["memory"]) for report in reports],
        **{key: [report["logged"][key] for report in reports if key in report["logged"]] for key in LOGGED},
    }
    for kind, values in single.items():
        if values:
            line = [statistics.median(values), min(values), max(values)]
            found.append([name, kind, "", *(f"{value:.2f}" for value in line), len(values)])
    for size, profile in reports[0]["profile"].items():
        parts = sorted(profile["parts"].items(), key=lambda item: -item[1])
        found += [[name, f"kernels_us {part}", size, f"{us:.1f}", "", "", 1] for part, us in parts]
    return found


def write_record(path: Path, reports: dict[str, list[dict]], arguments) -> None:
    """The table, with the device and the command's numbers on top."""
    first = next(iter(reports.values()))[0]
    layers = model.config(arguments.size, arguments.layers)["num_hidden_layers"]
    with path.open("w", newline="") as file:
        file.write(f"# {first['device']}, {datetime.date.today()}, vLLM {first['vllm']}, layout {arguments.layout}\n")
        file.write(
            f"# DeepSeek-V4 {arguments.size}, {layers} layers at full size, random weights, FULL_DECODE_ONLY, greedy\n"
        )
        file.write("# step_ms N: a decoding step of N sequences; first_token_ms N: a prompt of N tokens alone\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["run", "quantity", "size", "median", "smallest", "largest", "samples"])
        for name, found in reports.items():
            table.writerows(rows(name, found))


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=model.SIZES, default="flash")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--layout", choices=one.LAYOUTS, default="tp2")
    parser.add_argument("--runs", type=lambda names: names.split(","), default=list(RUNS))
    parser.add_argument("--once", action="store_true", help="forth, but not back")
    parser.add_argument("--sequences", default="1,8,64,256")
    parser.add_argument("--prompts", default="128,512,2048,8000")
    parser.add_argument("--profile", default="1,8,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=float, default=0.9)
    parser.add_argument("--plugins", default="", help="modules, with commas between, that every process imports")
    parser.add_argument("--run-s", type=float, default=420, help="seconds that one run may take")
    parser.add_argument("--total-s", type=float, default=570, help="seconds for all runs")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu-serve-full")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.runs if name not in RUNS]
    if unknown:
        parser.error(f"--runs has {unknown}; it must be of {', '.join(RUNS)}, with commas between.")
    deadline = time.monotonic() + arguments.total_s
    arguments.work.mkdir(parents=True, exist_ok=True)
    model.write(arguments.work / "model", arguments.size, arguments.layers)
    path = [str(ROOT / "vllm_plugin"), str(HERE), str(plugins(arguments.work / "plugins"))]
    os.environ["PYTHONPATH"] = os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])
    os.environ["FULL_PLUGINS"] = arguments.plugins
    order = arguments.runs if arguments.once else arguments.runs + arguments.runs[::-1]
    reports: dict[str, list[dict]] = {}
    failed = []
    for turn, name in enumerate(order):
        report = run(name, arguments, turn, deadline)
        if report is None:
            failed.append(name)
            continue
        if name.startswith("ours") and not report["active"]:
            failed.append(f"{name}: the log does not say that the MoE is ACTIVE")
        reports.setdefault(name, []).append(report)
    if reports:
        folder = records_of(next(iter(reports.values()))[0]["device"])
        folder.mkdir(parents=True, exist_ok=True)
        record = folder / f"{datetime.date.today()}-full-{arguments.size}-{arguments.layout}.csv"
        write_record(record, reports, arguments)
        print(f"{record.relative_to(ROOT)}:\n{record.read_text()}")
        if os.environ.get("OUT"):
            out = Path(os.environ["OUT"])
            shutil.copy(record, out / record.name)
            (out / "full.json").write_text(json.dumps(reports))
    if os.environ.get("OUT"):
        (Path(os.environ["OUT"]) / "full.log").write_text(all_logs(arguments.work))
    print("\n".join([*failed, "gpu-serve-full: " + ("FAIL" if failed else "PASS")]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
