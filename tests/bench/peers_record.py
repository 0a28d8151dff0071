#!/usr/bin/env python3
"""Turn what bench_peers.py wrote into a record, tests/bench/record/<gpu>/<date>-peers.csv: `peers_record.py FILE`."""

import csv
import datetime
import json
import sys
from pathlib import Path

RECORDS = Path(__file__).parent / "record"


def main() -> None:
    results = json.loads(Path(sys.argv[1]).read_text())
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
    print(path)


if __name__ == "__main__":
    main()
