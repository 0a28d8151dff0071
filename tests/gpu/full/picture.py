#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a record of serve_full.py, as SVG and PNG beside it; needs matplotlib.

    python3 tests/gpu/full/picture.py tests/bench/record/h200/<date>-full-flash-one.csv

One, with `-tokens` behind its name, has tokens a second of every run. The other shows where a decoding step goes. A bar
is a step of one run and number of sequences: its kernels by part, and on top `no kernel`, the time in which the GPU
waited for the host or for the next kernel of its graph: the step by the clock, less the time in which any kernel ran.
Kernels that ran at the same time share it (step.py). Where a record has sums, parts are scaled to that time.
"""

import csv
import sys
from pathlib import Path

# From the bottom; a record has other parts only if step.py got new ones.
WAITING = "waiting for a rank"
ORDER = ("experts", "router", "attention", "linears", "connections", "communication", WAITING, "rest", "no kernel")
OURS, OTHERS = "#1b9e77", "#999999"
# Side by side is what computes alike: activations of 16 bits, then of 8. Other runs follow.
ALIKE = ("ours bf16", "humming w4a16", "marlin", "ours fp8", "humming w4a8")
COLOURS = ("#1b9e77", "#66c2a5", "#7570b3", "#a6a5d0", "#e6ab02", "#d95f02", "#f2b48c", "#bbbbbb", "#eeeeee")


def read(record: Path) -> list[dict[str, str]]:
    """The record's lines, without its comments."""
    return list(csv.DictReader(line for line in record.read_text().splitlines() if not line.startswith("#")))


def steps(lines: list[dict[str, str]]) -> dict[tuple[str, str], dict[str, float]]:
    """Microseconds by part of every (run, number of sequences) that was profiled."""
    values = {(line["run"], line["quantity"], line["size"]): float(line["median"]) for line in lines}
    found: dict[tuple[str, str], dict[str, float]] = {}
    for (run, quantity, size), us in values.items():
        part = quantity.removeprefix("kernels_us ")
        if part not in (quantity, "any"):
            found.setdefault((run, size), {})[part] = us
    for (run, size), parts in found.items():
        busy, total = values[run, "kernels_us any", size], sum(parts.values())
        parts.update({part: us * busy / total for part, us in parts.items()})
        parts["no kernel"] = max(0.0, values[run, "step_ms", size] * 1e3 - busy)
    return found


def speeds(lines: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """Tokens a second of each number of sequences, by run."""
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        if line["quantity"] == "tokens_per_s":
            found.setdefault(line["size"], {})[line["run"]] = float(line["median"])
    return found


def draw_speeds(record: Path, pyplot) -> list[Path]:
    """Tokens a second, a panel for each number of sequences."""
    found = speeds(read(record))
    width = 0.4 + 0.65 * max(map(len, found.values()))
    figure, axes = pyplot.subplots(1, len(found), figsize=(width * len(found), 3), squeeze=False, layout="constrained")
    for axis, (size, by_run) in zip(axes[0], sorted(found.items(), key=lambda item: int(item[0])), strict=True):
        runs = [run for run in ALIKE if run in by_run] + sorted(set(by_run) - set(ALIKE))
        colours = [OURS if run.startswith("ours") else OTHERS for run in runs]
        names = [run.replace(" ", "\n") for run in runs]
        bars = axis.bar(names, [by_run[run] for run in runs], 0.7, color=colours)
        axis.bar_label(bars, fmt="{:.0f}", fontsize=9)
        axis.set_title(f"{size} sequence" + ("s" if size != "1" else ""))
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("tokens a second")
    return save(figure, record.with_name(f"{record.stem}-tokens"))


def save(figure, stem: Path) -> list[Path]:
    """Both files."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths


def draw(record: Path) -> list[Path]:
    """The pictures, or nothing where matplotlib is missing."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no picture: matplotlib is not installed")
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return draw_speeds(record, pyplot) + draw_steps(record, pyplot)


def draw_steps(record: Path, pyplot) -> list[Path]:
    """Where a step goes, a panel for each number of sequences; nothing where no step was taken apart."""
    found = steps(read(record))
    if not found:
        return []
    sizes = sorted({size for _, size in found}, key=int)
    figure, axes = pyplot.subplots(1, len(sizes), figsize=(3.2 * len(sizes), 4), squeeze=False, layout="constrained")
    for axis, size in zip(axes[0], sizes, strict=True):
        runs = [run for run, other in found if other == size]
        bottom = [0.0] * len(runs)
        for part, colour in zip(ORDER, COLOURS, strict=True):
            heights = [found[run, size].get(part, 0.0) / 1e3 for run in runs]
            if any(heights):
                axis.bar(runs, heights, 0.7, bottom, label=part, color=colour, edgecolor="#888888", linewidth=0.4)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axis.set_title(f"{size} sequence" + ("s" if size != "1" else ""))
        axis.tick_params(axis="x", rotation=20)
    axes[0][0].set_ylabel("ms of a decoding step")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False)
    return save(figure, record.with_suffix(""))


if __name__ == "__main__":
    for picture in draw(Path(sys.argv[1])):
        print(picture)
