# SPDX-License-Identifier: Apache-2.0
"""What the GPU benchmarks share: graphs of calls, their times, and tables written as CSV."""

import csv
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "vllm_plugin")]

import torch

ROUNDS = 15


def captured(calls) -> torch.cuda.CUDAGraph:
    """A graph of calls, each made once before."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def seconds(graphs: dict, calls: int) -> dict[object, list[float]]:
    """Seconds of a call of each graph, of each round, ascending. Graphs are replayed in turn."""
    times = {name: [] for name in graphs}
    for _ in range(ROUNDS + 2):
        for name, graph in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end) / 1e3 / calls)
    return {name: sorted(of[2:]) for name, of in times.items()}


def write_table(path: Path, head: str, rows: list[list]) -> None:
    with path.open("w", newline="") as file:
        file.write(head + "\n")
        csv.writer(file, lineterminator="\n").writerows(rows)
