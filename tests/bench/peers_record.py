#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turn what bench_peers.py wrote into a record, tests/bench/record/<gpu>/<date>-peers.csv, a table and a plot.

    peers_record.py FILE        FILE.json of bench_peers.py
    peers_record.py RECORD.csv  the table and the plot again

The plot (SVG and PNG, beside the record) needs matplotlib.
"""

import csv
import datetime
import json
import sys
from pathlib import Path

RECORDS = Path(__file__).parent / "record"
TITLES = {"pro8": "Pro, EP8", "flash1": "Flash, EP1", "flash8": "Flash, EP8"}


def write_record(results: dict) -> Path:
    ceilings = results["ceilings"]
    gpu = results["device"].split()[1].lower()  # "NVIDIA H100 80GB HBM3"
    today = datetime.date.today()
    path = RECORDS / gpu / f"{today}-peers.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = {name: rows for name, rows in results.items() if isinstance(rows, dict) and "check" in rows}
    tokens = {name: [row for row in rows if row != "check"] for name, rows in shapes.items()}
    first = next(iter(shapes))
    names = [name for name, value in shapes[first][tokens[first][0]].items() if isinstance(value, dict)]
    with path.open("w", newline="") as file:
        file.write(f"# {results['device']}, {today}, torch {results['torch']}; CUDA graphs, median, weights from HBM\n")
        file.write(f"# read {ceilings['read_TBs']} TB/s, bf16 {ceilings['bf16_TFLOPs']} TFLOP/s in the same run\n")
        file.write("# rel_l2 against float64, the worst of the batches that were checked\n")
        table = csv.writer(file, lineterminator="\n")
        columns = [f"{name}_{what}" for what in ("us", "rel_l2") for name in names]
        table.writerow(["shape", "tokens", "floor_us", *columns])
        for shape, rows in shapes.items():
            checks = rows["check"].items()
            worst = [max(check["rel"] for what, check in checks if what.startswith(f"{name} ")) for name in names]
            for count in tokens[shape]:
                row = rows[count]
                table.writerow([shape, count, row["floor_us"], *(row[name]["us"] for name in names), *worst])
    return path


def read_record(path: Path) -> list[dict[str, str]]:
    lines = path.read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def implementations(rows: list[dict[str, str]]) -> list[str]:
    return [column.removesuffix("_us") for column in rows[0] if column.endswith("_us") and column != "floor_us"]


def print_table(rows: list[dict[str, str]]) -> None:
    """us of each, what part of the floor's speed ours has, and how much faster than the fastest peer it is."""
    names = implementations(rows)
    peers = [name for name in names if name != "ours"]
    print(f"{'shape':8}{'tokens':>7}{'floor':>9}", *(f"{name:>9}" for name in names), "  of floor  over best peer")
    for row in rows:
        ours, floor = float(row["ours_us"]), float(row["floor_us"])
        ratio = min(float(row[f"{peer}_us"]) for peer in peers) / ours if peers else float("nan")
        times = (f"{float(row[f'{name}_us']):9.1f}" for name in names)
        print(f"{row['shape']:8}{row['tokens']:>7}{floor:9.1f}", *times, f"{floor / ours:10.0%}{ratio:15.2f}")


def plot(path: Path, rows: list[dict[str, str]]) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure, panels = pyplot.subplots(
        1, len(shapes), figsize=(4.5 * len(shapes), 4), layout="constrained", squeeze=False
    )
    for panel, shape in zip(panels[0], shapes, strict=True):
        of_shape = [row for row in rows if row["shape"] == shape]
        tokens = [int(row["tokens"]) for row in of_shape]
        for name in implementations(rows):
            width = 2.2 if name == "ours" else 1.2
            panel.plot(tokens, [float(row[f"{name}_us"]) for row in of_shape], "o-", ms=3, lw=width, label=name)
        panel.plot(tokens, [float(row["floor_us"]) for row in of_shape], "k--", lw=1, label="floor")
        panel.set(xscale="log", yscale="log", title=TITLES.get(shape, shape), xlabel="tokens")
        panel.set_xscale("log", base=2)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("us a layer")
    panels[0][0].legend()
    for suffix in (".svg", ".png"):
        figure.savefig(path.with_suffix(suffix), dpi=110, metadata={"Date": None} if suffix == ".svg" else None)


def main() -> None:
    source = Path(sys.argv[1])
    path = source if source.suffix == ".csv" else write_record(json.loads(source.read_text()))
    rows = read_record(path)
    print_table(rows)
    plot(path, rows)
    print(path)


if __name__ == "__main__":
    main()
