#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""This build's layer beside another build's, at the points of the table beside peers, each in processes of its own.

    python tests/bench/gpu_ab.py --against FOLDER [--rounds 4] [--shapes pro8] [--tokens 1,64] [--out FILE.csv]

FOLDER has another build's package `nvfp4_moe`. Two builds cannot share a process, and one build's processes differ by
10 % where all experts are here (where memory lies decides). So each round runs ours, theirs, theirs, ours, and a point
is compared by the median over a build's processes; their lowest and highest stand beside it. Graphs of several calls,
each on inputs of its own. Fails where ours is slower by more than --slack and the ranges do not overlap.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
from pathlib import Path

TOKENS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
SHAPES = ("pro8", "flash1", "flash8")


def measure(package: str, modes: list[str], shapes: list[str], tokens_of: list[int]) -> dict[str, float]:
    """Median microseconds by point, of the package in this folder."""
    import gpu_layer
    import gpu_timing
    import torch

    gpu_layer.SHAPES.update(gpu_layer.ONE_GPU)
    gpu_timing.ROUNDS = 31
    times = {}
    for shape in shapes:
        weights = gpu_layer.make_weights(shape)
        for mode in modes:
            layer = gpu_layer.make_layer(shape, "cuda", mode).prepare(weights)
            assert Path(sys.modules["nvfp4_moe"].__file__).is_relative_to(package), sys.modules["nvfp4_moe"].__file__
            for tokens in tokens_of:
                batches = gpu_layer.make_batches(shape, tokens, "uniform", torch.Generator().manual_seed(tokens))
                workspace = torch.empty(layer.workspace_size(tokens), dtype=torch.uint8, device="cuda")
                graph = gpu_timing.captured([lambda b=b, w=workspace, run=layer: run(*b, workspace=w) for b in batches])
                median = statistics.median(gpu_timing.seconds({0: graph}, len(batches))[0])
                times[f"{shape},{mode},{tokens}"] = 1e6 * median
            del layer
    return times


def run(package: Path, args: argparse.Namespace) -> dict[str, float]:
    points = ["--modes", args.modes, "--shapes", args.shapes, "--tokens", args.tokens]
    command = [sys.executable, __file__, "--child", str(package), *points]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="a folder with the other build's package nvfp4_moe")
    parser.add_argument("--modes", default="bf16,nvfp4,fp8")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--rounds", type=int, default=4, help="of four processes")
    parser.add_argument("--slack", type=float, default=0.01)
    parser.add_argument("--out", type=Path, help="write the table as CSV, too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        import gpu_timing  # noqa: F401  (puts this tree's package on the path; the one asked for goes before it)

        sys.path.insert(0, args.child)
        tokens = [int(it) for it in args.tokens.split(",")]
        print(json.dumps(measure(args.child, args.modes.split(","), args.shapes.split(","), tokens)))
        return
    ours, theirs = Path(__file__).parents[2] / "vllm_plugin", args.against.resolve()
    times = {ours: [], theirs: []}
    for package in [ours, theirs, theirs, ours] * args.rounds:
        times[package].append(run(package, args))
    lines, slow = ["shape,mode,tokens,ours,ours_low,ours_high,theirs,theirs_low,theirs_high,ratio"], []
    for point in times[ours][0]:
        us = {package: [of[point] for of in times[package]] for package in times}
        middle = {package: statistics.median(of) for package, of in us.items()}
        ratio = middle[ours] / middle[theirs]
        cells = [f"{t:.2f}" for p in (ours, theirs) for t in (middle[p], min(us[p]), max(us[p]))]
        lines.append(",".join([point, *cells, f"{ratio:.4f}"]))
        if ratio > 1 + args.slack and min(us[ours]) > max(us[theirs]):
            slow.append(lines[-1])
    print("\n".join(lines))
    if args.out:
        import torch

        head = f"# {torch.cuda.get_device_name()}, {datetime.date.today()}, us, median over processes, lowest, highest"
        args.out.write_text("\n".join([head, *lines]) + "\n")
    print("slower:\n" + "\n".join(slow) if slow else f"no point is slower by more than {args.slack:.0%}")
    sys.exit(bool(slow))


if __name__ == "__main__":
    main()
