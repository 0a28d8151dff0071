#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load a checkpoint from disk with real vLLM and our plugin: seconds, bytes a second beside the disk's, and memory.

    make gpu-load                                a layer of DeepSeek-V4-Flash, 6 GB, written below build/, deleted again
    make gpu-load GPU_LOAD="--gigabytes 40"      as many layers as 40 GB hold

Writes the checkpoint (full/checkpoint.py), reads a file for the disk's rate, then loads all with cold files (the
page cache has been told to forget them) and with warm ones. PASS if, each time, the most that the GPU held is not above
the finished model and one layer's experts. Writes <date>-load.csv to the GPU's records, and under $OUT.
"""

import argparse
import csv
import datetime
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from full import checkpoint, model
from full.process import InTurn
from serve import HERE, ROOT, failure, records_of, text
from serve_full import plugins

CHUNK = 16 << 20
SPARE = 1.1
"""Of a disk, beside the checkpoint; and of a layer, what allocations are rounded up by."""


def files_of(folder: Path) -> list[Path]:
    """The checkpoint's files with tensors."""
    return sorted(folder.glob("*.safetensors"))


def forget(folder: Path) -> None:
    """Tell the page cache that nobody needs these files."""
    for file in files_of(folder):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read(file: Path) -> int:
    """Its bytes, all read."""
    buffer, total = bytearray(CHUNK), 0
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            total += count
    return total


def disk_rate(folder: Path) -> float:
    """Bytes a second of the largest file, cold, by one reader, as vLLM has one; the file is cold again afterwards."""
    file = max(files_of(folder), key=lambda file: file.stat().st_size)
    forget(folder)
    start = time.perf_counter()
    rate = read(file) / (time.perf_counter() - start)
    forget(folder)
    return rate


class Loading:
    """One process of vLLM, which ends when the model is loaded."""

    def __init__(self, name: str, folder: Path, arguments):
        self.name, self.log = name, arguments.work / f"{name}.log"
        self.report = self.log.with_suffix(".json")
        self.report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "full.one", str(folder), "--out", os.devnull, "--load-format", "auto"]
        command += ["--layout", "one", "--sequences", "1", "--prompts", "128", "--memory", str(arguments.memory)]
        wanted = ",".join(filter(None, ["full.load_watch", arguments.plugins]))
        environment = {"FULL_LOAD": str(self.report), "FULL_PLUGINS": wanted}
        self.process = InTurn(command, os.environ | environment, self.log)

    def found(self, limit_s: float) -> dict | None:
        """What full/load_watch.py found, and what vLLM's log says; None after a failure was shown."""
        reason = self.process.take_turn(limit_s)
        if not self.report.exists():
            print(failure(self.name, reason or "there is no report", self.log), flush=True)
            return None
        found = json.loads(self.report.read_text())
        said = text(self.log)
        found["progress"] = said.count("Loading safetensors checkpoint shards")
        found["active"] = "ACTIVE for NVFP4 MoE on cuda" in said
        return found


def wrong(name: str, found: dict) -> list[str]:
    """What is against the promise."""
    most = found["finished"] + SPARE * found["largest_layer"]
    checks = {
        f"{name}: peak is {found['peak']} bytes; it must be at most {most:.0f}, the model and one layer": found["peak"]
        <= most,
        f"{name}: the log shows no progress": found["progress"] > 0,
        f"{name}: no layer has experts": found["largest_layer"] > 0,
        f"{name}: the log does not say that the MoE is ACTIVE": found["active"],
    }
    return [sentence for sentence, good in checks.items() if not good]


def write_record(size: int, rates: dict[str, float], loads: dict[str, dict], layers: int) -> None:
    """One line a quantity: to the GPU's records, the screen, and $OUT."""
    device = next(iter(loads.values()))["device"]
    folder = records_of(device)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.date.today()}-load.csv"
    with path.open("w", newline="") as file:
        file.write(
            f"# {device}, {datetime.date.today()}: a checkpoint of {layers} layers of DeepSeek-V4, {size} bytes\n"
        )
        file.write(
            "# one reader: the largest file; seconds as for all. cold, warm: load_model, the page cache empty, full\n"
        )
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["what", "seconds", "gb_per_s", "peak_gib", "finished_gib", "layer_gib"])
        for name, rate in rates.items():
            table.writerow([name, f"{size / rate:.2f}", f"{rate / 1e9:.2f}", "", "", ""])
        for name, found in loads.items():
            memory = (found[key] / 2**30 for key in ("peak", "finished", "largest_layer"))
            line = [found["seconds"], size / found["seconds"] / 1e9, *memory]
            table.writerow([f"load, {name}", *(f"{value:.2f}" for value in line)])
    print(path.read_text(), flush=True)
    if os.environ.get("OUT"):
        shutil.copy(path, Path(os.environ["OUT"]) / path.name)


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=model.SIZES, default="flash")
    parser.add_argument("--gigabytes", type=float, default=6, help="of the checkpoint, at most; default 6, one layer")
    parser.add_argument("--folder", type=Path, help="where the checkpoint goes; default: the work folder")
    parser.add_argument("--keep", action="store_true", help="the checkpoint, for another run")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="writers")
    parser.add_argument(
        "--memory", type=float, default=0.9, help="the part of a GPU that must be free when vLLM starts"
    )
    parser.add_argument("--run-s", type=float, default=240, help="seconds that one loading may take")
    parser.add_argument("--plugins", default="", help="modules, with commas between, that every process imports")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu-load")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    folder = (arguments.folder or arguments.work) / "checkpoint"
    config = checkpoint.of_size(arguments.size, arguments.gigabytes)
    needed, free = checkpoint.bytes_of(config) * SPARE, shutil.disk_usage(folder.parent).free
    if free < needed:
        parser.error(f"{folder.parent} has {free / 1e9:.1f} GB free; it must have {needed / 1e9:.1f}. Take --folder.")
    path = [str(ROOT / "vllm_plugin"), str(HERE), str(plugins(arguments.work / "plugins"))]
    os.environ["PYTHONPATH"] = os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("gpu-load: ended from outside"))
    try:
        return measure(folder, config, arguments)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, config: dict, arguments) -> int:
    """Write, read, load; 1 if something is wrong."""
    checkpoint.write_config(folder, config)
    runs = [Loading(name, folder, arguments) for name in ("cold", "warm")]  # import while the checkpoint is written
    try:
        return measure_in_turn(runs, folder, config, arguments)
    finally:
        for run in runs:
            run.process.stop()


def measure_in_turn(runs: list[Loading], folder: Path, config: dict, arguments) -> int:
    """Write and read the files, then one loading after the other."""
    start = time.perf_counter()
    size = checkpoint.write(folder, config, arguments.workers)
    rates = {f"disk, {arguments.workers} writers": size / (time.perf_counter() - start)}
    print(f"written: {size / 1e9:.1f} GB in {time.perf_counter() - start:.1f} s", flush=True)
    rates["disk, one reader"] = disk_rate(folder)
    print(f"disk: {rates['disk, one reader'] / 1e9:.2f} GB/s of one reader", flush=True)
    loads, faults = {}, []
    for run in runs:
        found = run.found(arguments.run_s)
        if found is None:
            faults.append(f"{run.name}: did not load")
            continue
        loads[run.name] = found
        faults += wrong(run.name, found)
        print(f"{run.name}: {found}", flush=True)
        write_record(size, rates, loads, config["num_hidden_layers"])  # now: the next one may outlast our time
    print("\n".join([*faults, "gpu-load: " + ("FAIL" if faults else "PASS")]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
