#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A table and a plot of what peers_bench.py measured, and the documents' parts that follow from it.

    peers_record.py FILE.csv             prints the table; FILE.svg and FILE.png beside it, where matplotlib is
    peers_record.py --publish FILE.csv   keeps them as tests/bench/record/<gpu>/<date>-peers.*, and writes what follows
                                         from them into README.md and docs/measurements.md, between `<!-- peers -->`
                                         and `<!-- /peers -->`

Of Humming's forms with the same kinds of operands the faster one counts, at every point.
"""

import argparse
import csv
import re
import shutil
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "tests/bench/record"
TITLES = {"pro8": "Pro, EP8", "flash1": "Flash, EP1", "flash8": "Flash, EP8"}
# What is compared, and the forms of which the fastest counts.
COLUMNS = {
    "ours bf16": ("ours",),
    "ours fp8": ("ours_fp8",),
    "ours nvfp4": ("ours_nvfp4",),
    "Humming W4A16": ("humming_w4a16_indexed", "humming_w4a16_grouped"),
    "Humming W4A8": ("humming_w4a8_group", "humming_w4a8_row"),
    "Marlin": ("marlin",),
}
PAIRS = (("ours bf16", "Humming W4A16"), ("ours bf16", "Marlin"), ("ours fp8", "Humming W4A8"))
TABLE_TOKENS = (1, 8, 64, 256, 512, 1024, 2048, 4096, 8192)
STYLES = {
    "ours bf16": dict(color="C0", lw=2.4),
    "ours fp8": dict(color="C1", lw=2.4),
    "ours nvfp4": dict(color="C2", lw=1.2),
    "Humming W4A16": dict(color="C0", lw=1.2, ls="--", marker="s"),
    "Humming W4A8": dict(color="C1", lw=1.2, ls="--", marker="s"),
    "Marlin": dict(color="C3", lw=1.2, ls=":"),
}


class Point(NamedTuple):
    shape: str
    tokens: int
    floor: float
    floor_fp8: float
    us: dict[str, float]  # by column; without those that were not measured


class Record(NamedTuple):
    path: Path
    gpu: str
    date: str
    rates: str
    points: list[Point]

    def columns(self) -> list[str]:
        return [column for column in COLUMNS if any(column in point.us for point in self.points)]

    def shapes(self) -> list[str]:
        return list(dict.fromkeys(point.shape for point in self.points))


def read(path: Path) -> Record:
    path = path.resolve()
    lines = path.read_text().splitlines()
    # "NVIDIA H200, 2026-11-30, torch ...", and the rates of the run
    gpu, date = re.match(r"# (.+?), (\d{4}-\d\d-\d\d),", lines[0]).groups()
    rates = next(line for line in lines if line.startswith("# read "))
    points = []
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        us = {}
        for column, forms in COLUMNS.items():
            if times := [float(row[f"{form}_us"]) for form in forms if row.get(f"{form}_us")]:
                us[column] = min(times)
        point = Point(row["shape"], int(row["tokens"]), float(row["floor_us"]), float(row["floor_fp8_us"]), us)
        points.append(point)
    return Record(path, gpu.split()[1], date, rates.removeprefix("# ").partition(" in the same run")[0], points)


class Ratio(NamedTuple):
    """How many times as fast as a peer one of our modes is."""

    mode: str
    peer: str
    least: tuple[float, Point]
    most: tuple[float, Point]
    behind: int
    points: int


def ratios(record: Record) -> list[Ratio]:
    found = []
    for mode, peer in PAIRS:
        times = [(p.us[peer] / p.us[mode], p) for p in record.points if mode in p.us and peer in p.us]
        if times:
            behind = sum(ratio < 1 for ratio, _ in times)
            least, most = (of(times, key=lambda pair: pair[0]) for of in (min, max))
            found.append(Ratio(mode, peer, least, most, behind, len(times)))
    return found


def microseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value < 20 else f"{value:.0f}"


def table(record: Record) -> list[str]:
    """Markdown; bold where a peer is ahead of the mode that it is compared with."""
    columns = record.columns()
    lines = [
        f"| us | T | floor | {' | '.join(columns)} |",
        "|" + "---|" * (len(columns) + 3),
    ]
    for shape in record.shapes():
        title = TITLES[shape]
        for point in record.points:
            if point.shape != shape or point.tokens not in TABLE_TOKENS:
                continue
            ahead = {peer for mode, peer in PAIRS if point.us.get(peer, 9e9) < point.us.get(mode, 0)}
            cells = [microseconds(point.us.get(column)) for column in columns]
            cells = [f"**{cell}**" if column in ahead else cell for column, cell in zip(columns, cells)]
            lines.append(f"| {title} | {point.tokens} | {microseconds(point.floor)} | {' | '.join(cells)} |")
            title = ""
    return [line.replace("|  |", "| |") for line in lines]


def place(point: Point) -> str:
    return f"{TITLES[point.shape]}, {point.tokens} token{'s' if point.tokens > 1 else ''}"


def summary(record: Record) -> list[str]:
    lines = [
        "| times as fast as a peer | least | where | most | where | points behind |",
        "|---|---|---|---|---|---|",
    ]
    for ratio in ratios(record):
        (least, at), (most, most_at) = ratio.least, ratio.most
        behind = f"{ratio.behind} of {ratio.points}"
        names = f"{ratio.mode} over {ratio.peer}"
        lines.append(f"| {names} | {least:.2f} | {place(at)} | {most:.2f} | {place(most_at)} | {behind} |")
    return lines


def floor_shares(record: Record) -> list[str]:
    """Per cent of the floor's speed: of mode bf16, and of mode fp8 by its own floor."""
    tokens = [count for count in TABLE_TOKENS if any(point.tokens == count for point in record.points)]
    lines = [
        f"| per cent of the floor's speed, T = | {' | '.join(map(str, tokens))} |",
        "|" + "---|" * (len(tokens) + 1),
    ]
    at = {(point.shape, point.tokens): point for point in record.points}
    for shape in record.shapes():
        for mode in ("ours bf16", "ours fp8"):
            cells = []
            for count in tokens:
                point = at.get((shape, count))
                us = point and point.us.get(mode)
                floor = point and (point.floor_fp8 if "fp8" in mode else point.floor)
                cells.append(f"{100 * floor / us:.0f}" if us else "")
            lines.append(f"| {TITLES[shape]}, {mode.removeprefix('ours ')} | {' | '.join(cells)} |")
    return lines


def claims(record: Record) -> list[str]:
    names = {
        "Humming W4A16": "Humming 0.1.20's W4A16",
        "Humming W4A8": "Humming 0.1.20's W4A8, which vLLM 0.33 runs for MXFP4 experts on Hopper",
        "Marlin": "vLLM 0.26's Marlin",
    }
    lines = []
    for ratio in ratios(record):
        mode, least, most = ratio.mode.removeprefix("ours "), ratio.least[0], ratio.most[0]
        lines.append(f"- Mode {mode} is {least:.2f} to {most:.2f} times as fast as {names[ratio.peer]}.")
        if ratio.behind:
            lines[-1] += f" Behind at {ratio.behind} of {ratio.points} points, most on {place(ratio.least[1])}."
    return lines


def readme_part(record: Record) -> list[str]:
    name = record.path.relative_to(ROOT)
    picture = f"![us a layer over tokens, on an {record.gpu}, beside peers]({name.with_suffix('.svg')})"
    source = f"One {record.gpu}, {record.date} ([record]({name})); `make gpu-bench-peers` measures it again."
    return [f"Over all batch sizes, on an {record.gpu}:", "", *claims(record), "", picture, "", source]


def measurements_part(record: Record) -> list[str]:
    name = Path("..") / record.path.relative_to(ROOT)
    machine = f"One {record.gpu}, {record.date} ([record]({name})): {record.rates}."
    picture = f"![time over tokens on an {record.gpu}]({name.with_suffix('.svg')})"
    tables = (part(record) for part in (table, summary, floor_shares))
    return [machine, "", picture, "", *(line for part in tables for line in (*part, ""))]


DOCUMENTS = {"README.md": readme_part, "docs/measurements.md": measurements_part}
BEGIN, END = "<!-- peers -->\n", "<!-- /peers -->\n"


def written(text: str, part: list[str]) -> str:
    """The document with what stands between the marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"the document has no {BEGIN.strip()} ... {END.strip()}"
    return before + BEGIN + "\n".join(part).rstrip("\n") + "\n" + END + after


def publish(record: Record) -> None:
    target = RECORDS / record.gpu.lower() / f"{record.date}-peers.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".csv", ".svg", ".png"):
        source = record.path.with_suffix(suffix)
        if source.exists() and source.resolve() != target.with_suffix(suffix).resolve():
            shutil.copyfile(source, target.with_suffix(suffix))
    assert target.with_suffix(".svg").exists(), f"{record.path} has no plot; run this where matplotlib is installed"
    write_documents(record._replace(path=target))


def write_documents(record: Record) -> None:
    for name, part in DOCUMENTS.items():
        path = ROOT / name
        path.write_text(written(path.read_text(), part(record)))


def draw_times(panel, points: list[Point], columns: list[str]) -> None:
    tokens = [point.tokens for point in points]
    for column in columns:
        measured = [point for point in points if column in point.us]
        style = {"marker": "o", "ms": 3, **STYLES[column]}
        panel.plot([p.tokens for p in measured], [p.us[column] for p in measured], label=column, **style)
    panel.plot(tokens, [point.floor for point in points], "k-", lw=0.8, label="floor")
    panel.plot(tokens, [point.floor_fp8 for point in points], "k:", lw=0.8, label="floor, fp8")
    panel.set(yscale="log")
    panel.grid(alpha=0.3)


def draw_ratios(panel, points: list[Point]) -> None:
    for mode, peer in PAIRS:
        measured = [point for point in points if mode in point.us and peer in point.us]
        ratio = [point.us[peer] / point.us[mode] for point in measured]
        style = {"marker": "o", "ms": 3, **STYLES[peer]}
        panel.plot([point.tokens for point in measured], ratio, label=f"{mode} over {peer}", **style)
    panel.axhline(1, color="k", lw=0.8)
    panel.set_ylim(bottom=0.5)
    panel.grid(alpha=0.3)


def plot(record: Record) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "peers"  # the same record, the same file
    shapes = record.shapes()
    options = dict(layout="constrained", sharex=True, squeeze=False, height_ratios=(3, 2))
    figure, panels = pyplot.subplots(2, len(shapes), figsize=(4.8 * len(shapes), 6.6), **options)
    for (times, ahead), shape in zip(panels.T, shapes, strict=True):
        points = [point for point in record.points if point.shape == shape]
        draw_times(times, points, record.columns())
        draw_ratios(ahead, points)
        times.set(title=TITLES[shape])
        ahead.set(xlabel="tokens")
        ahead.set_xscale("log", base=2)
    for panel, label in zip(panels[:, 0], ("us a layer", "times as fast as the peer")):
        panel.set_ylabel(label)
        panel.legend(fontsize=8)
    for suffix in (".svg", ".png"):
        metadata = {"Date": None} if suffix == ".svg" else None
        figure.savefig(record.path.with_suffix(suffix), dpi=110, metadata=metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--publish", action="store_true")
    args = parser.parse_args()
    record = read(args.file)
    print(*table(record), "", *summary(record), "", *floor_shares(record), sep="\n")
    plot(record)
    if args.publish:
        publish(record)


if __name__ == "__main__":
    main()
