#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The MoE layer on a GPU beside Humming 0.1.20 and Marlin, all in one process: `make gpu-bench-peers`.

    peers_bench.py [--shapes pro8,flash1,flash8] [--tokens 1,2,...] [--forms ours,humming_w4a8_row,...] [--out FILE.csv]

Every form gets the same layers (tests/bench/peers_data.py) and the same tokens. A graph holds several calls, each on
inputs and, under EP, every second on weights of its own, so that weights come from HBM. Graphs are replayed in turn, in
alternating order; a time is the median of a call over the rounds. Rows of every graph's first result are held to
float64; a form that fails has no time there, and the exit code is 1.

ours, ours_fp8, ours_nvfp4                       this library, by mode
humming_w4a16_indexed, humming_w4a16_grouped     Humming with bf16 activations, by GEMM type
humming_w4a8_group, humming_w4a8_row             Humming with e4m3 activations: a scale for 128 values, or for a row
marlin                                           vLLM 0.26's

A peer that cannot be imported is left out, with a line that says why. FILE.csv grows as points come. Kernels that
Humming compiled here go to cubins.tar.xz beside it, for the next machine: `peers_fetch.py --cubins`.
"""

import argparse
import contextlib
import csv
import datetime
import lzma
import statistics
import sys
import tarfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from gpu_layer import expert_map, make_layer
from gpu_moe import marlin
from gpu_timing import captured
from peers_data import SHAPES, Weights, errors, exact, floors, make_batches, make_weights, sampled_rows

MODES = {"ours": "bf16", "ours_fp8": "fp8", "ours_nvfp4": "nvfp4"}
HUMMING = ("humming_w4a16_indexed", "humming_w4a16_grouped", "humming_w4a8_group", "humming_w4a8_row")
FORMS = (*MODES, *HUMMING, "marlin")
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
COLUMNS = ("us", "p10", "p90", "rel", "worst")
ROUNDS, WARM_UP = 30, 3
WORST_ROW = 2.5  # times the limit
START = time.time()


def log(*words) -> None:
    print(f"[{time.time() - START:6.1f}]", *words, flush=True)


def limit(form: str) -> float:
    """Of the relative L2 error to float64: of bf16's rounding, of e4m3's of x and h, of e2m1's."""
    return 0.3 if "nvfp4" in form else 8e-2 if "fp8" in form or "w4a8" in form else 1e-2


def median_seconds(call) -> float:
    times = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[2:])


def measured_rates() -> dict[str, float]:
    """Bytes a second of reading 4 GiB, operations a second of large products in bf16 and e4m3."""
    size = 8192
    source = torch.randint(0, 255, (4 << 30,), dtype=torch.uint8, device="cuda").view(torch.float32)
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    a8, b8, one = a.to(torch.float8_e4m3fn), a.t().contiguous().to(torch.float8_e4m3fn), torch.ones((), device="cuda")
    fp8 = partial(torch._scaled_mm, a8, b8.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    return {
        "read": 4 * source.numel() / median_seconds(lambda: torch.sum(source)),
        "bf16": 2 * size**3 / median_seconds(lambda: a @ a.t()),
        "fp8": 2 * size**3 / median_seconds(fp8),
    }


def ours(form: str, shape: str, weights: list[Weights], tokens: list[int]) -> list:
    layers = [make_layer(shape, "cuda", MODES[form]).prepare(of.layer) for of in weights]
    workspace = torch.empty(layers[0].workspace_size(max(tokens)), dtype=torch.uint8, device="cuda")
    return [partial(layer, expert_map=expert_map(shape), workspace=workspace) for layer in layers]


def layers_of(form: str, shape: str, weights: list[Weights], tokens: list[int]) -> list | None:
    """One for each set of weights, called with x, topk_ids and topk_weights; None where Marlin cannot be imported."""
    if form in MODES:
        return ours(form, shape, weights, tokens)
    if form in HUMMING:
        from peers_humming import Humming

        return [Humming(form, shape, of, tokens) for of in weights]
    layers = [marlin(of.layer, shape) for of in weights]
    return None if None in layers else layers


def built(forms: list[str], shape: str, weights: list[Weights], tokens: list[int]) -> dict[str, list]:
    layers = {}
    for form in forms:
        try:
            layers[form] = layers_of(form, shape, weights, tokens)
        except Exception:  # a peer's; the others go on
            log(f"{shape} {form} could not be made:")
            traceback.print_exc()
    layers = {form: of for form, of in layers.items() if of is not None}
    log(shape, "prepared:", *layers, f"{torch.cuda.memory_allocated() / 1e9:.0f} GB")
    return layers


def warm_up(layers: dict[str, list], shape: str, tokens: list[int]) -> None:
    """Compile what is not compiled yet, many at a time: compilers are processes of their own."""
    if peers := [layer for form in layers if form in HUMMING for layer in layers[form]]:
        from peers_humming import compile_all

        compile_all(peers)
        log(shape, "GEMMs of Humming compiled or found")
    largest = make_batches(shape, max(tokens))[0]

    def first_call(form: str) -> None:
        with contextlib.suppress(Exception):  # whoever cannot be called says so at every size
            layers[form][0](*largest)

    with ThreadPoolExecutor(max(1, len(layers))) as pool:
        list(pool.map(first_call, layers))
    torch.cuda.synchronize()
    log(shape, "first calls done")


def graph_of(layers: list, batches: list[tuple]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A graph of one call a batch, and its first result, which a replay wrote over NaN."""
    results = [torch.empty(0)] * len(batches)

    def call(index: int) -> None:
        results[index] = layers[index % len(layers)](*batches[index])

    graph = captured([partial(call, index) for index in range(len(batches))])
    for result in results:
        result.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    return graph, results[0]


def interleaved(graphs: dict[str, torch.cuda.CUDAGraph], calls: int) -> dict[str, list[float]]:
    """us of a call of each graph, ascending. The host waits once a round, so that launches hide behind graphs."""
    times, order = {name: [] for name in graphs}, list(graphs)
    for index in range(WARM_UP + ROUNDS):
        events = {name: [torch.cuda.Event(enable_timing=True) for _ in range(2)] for name in order}
        for name in order:
            events[name][0].record()
            graphs[name].replay()
            events[name][1].record()
        torch.cuda.synchronize()
        if index >= WARM_UP:
            for name, (start, end) in events.items():
                times[name].append(1e3 * start.elapsed_time(end) / calls)
        order.reverse()
    return {name: sorted(of) for name, of in times.items()}


def point(shape: str, num_tokens: int, layers: dict[str, list], weights: Weights, rates) -> dict[str, object]:
    """One row of the record: check every form, time those that are right."""
    batches = make_batches(shape, num_tokens)
    x, ids, topk_weights = batches[0]
    rows = sampled_rows(shape, ids)
    wanted = exact(shape, weights.layer, x[rows], ids[rows], topk_weights[rows])
    floor, floor_fp8 = floors(shape, batches, rates)
    row = {"shape": shape, "tokens": num_tokens, "floor_us": f"{floor:.2f}", "floor_fp8_us": f"{floor_fp8:.2f}"}
    graphs = {}
    for form, of in layers.items():
        try:
            graph, out = graph_of(of, batches)
        except Exception:
            log(f"{shape} {num_tokens} {form} failed:")
            traceback.print_exc()
            continue
        rel, worst = errors(out[rows], wanted)
        row |= {f"{form}_rel": f"{rel:.2e}", f"{form}_worst": f"{worst:.2e}"}
        if rel < limit(form) and worst < WORST_ROW * limit(form):
            graphs[form] = graph
        else:
            log(f"{shape} {num_tokens} {form} is WRONG: {rel:.2e}, worst row {worst:.2e}")
    for form, us in interleaved(graphs, len(batches)).items():
        tenth = len(us) // 10
        values = {"us": statistics.median(us), "p10": us[tenth], "p90": us[-1 - tenth]}
        row |= {f"{form}_{column}": f"{value:.2f}" for column, value in values.items()}
    return row


def write(path: Path, head: list[str], forms: list[str], rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["shape", "tokens", "floor_us", "floor_fp8_us"]
    columns += [f"{form}_{column}" for form in forms for column in COLUMNS]
    with path.open("w", newline="") as file:
        file.writelines(f"# {line}\n" for line in head)
        table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def header(rates: dict[str, float]) -> list[str]:
    numbers = f"read {rates['read'] / 1e12:.2f} TB/s, bf16 {rates['bf16'] / 1e12:.0f}, fp8 {rates['fp8'] / 1e12:.0f}"
    return [
        f"{torch.cuda.get_device_name()}, {datetime.date.today()}, torch {torch.__version__}; CUDA graphs, interleaved",
        f"{numbers} TFLOP/s in the same run; floor by bf16's rate, floor_fp8 by fp8's",
        "Block scales are powers of two, equal in pairs: the same layer in NVFP4 and in MXFP4",
        "us: median; rel, worst: error to float64, of the sampled rows and of the worst of them",
    ]


def list_of(choices, kind=str):
    def parsed(text: str) -> list:
        values = [kind(word) for word in text.split(",")]
        if choices and (unknown := [value for value in values if value not in choices]):
            raise argparse.ArgumentTypeError(f"{unknown[0]} is not one of {', '.join(map(str, choices))}")
        return values

    return parsed


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=list_of(SHAPES), default=["pro8", "flash1", "flash8"])
    parser.add_argument("--tokens", type=list_of(None, int), default=list(TOKENS))
    parser.add_argument("--forms", type=list_of(FORMS), default=list(FORMS))
    parser.add_argument("--humming", type=Path, default=Path(".peers/humming20"), help="folder of peers_fetch.py")
    parser.add_argument("--seconds", type=float, default=540, help="no new point after these")
    parser.add_argument("--out", type=Path, default=Path("build/peers.csv"))
    return parser.parse_args()


def install_humming(folder: Path, forms: list[str]) -> list[str]:
    """The forms that can be had."""
    if not set(forms) & set(HUMMING):
        return forms
    try:
        sys.path.insert(0, str(folder.resolve()))
        import peers_humming

        peers_humming.install()
    except Exception as error:
        log(f"no Humming beside it: {error!r}; tests/bench/peers_fetch.py brings it to {folder}")
        return [form for form in forms if form not in HUMMING]
    return forms


def save_cubins(folder: Path, before: set[Path], out: Path) -> None:
    made = set(folder.glob("*.cubin")) - before
    log(len(before), "compiled kernels of Humming came along,", len(made), "were compiled here")
    if made:
        with lzma.open(out, "wb", preset=1) as file, tarfile.open(fileobj=file, mode="w") as archive:
            for path in sorted(before | made):
                archive.add(path, path.name)


def main() -> None:
    args = parse_args()
    forms = install_humming(args.humming, args.forms)
    cubins = args.humming / "cubins"
    before = set(cubins.glob("*.cubin"))
    rates = measured_rates()
    torch.cuda.empty_cache()
    head = header(rates)
    print(*head[:2], sep="\n")
    rows = []
    for shape in args.shapes:
        local, experts = SHAPES[shape][3], SHAPES[shape][2]
        weights = [make_weights(shape, 11 + index) for index in range(1 if local == experts else 2)]
        layers = built(forms, shape, weights, args.tokens)
        warm_up(layers, shape, args.tokens)
        for num_tokens in args.tokens:
            if time.time() - START > args.seconds:
                log(f"{args.seconds:.0f} s are over before {shape} {num_tokens}")
                break
            rows.append(point(shape, num_tokens, layers, weights[0], rates))
            write(args.out, head, args.forms, rows)
            us = (f"{form} {rows[-1].get(f'{form}_us', '-')}" for form in args.forms)
            log(shape, num_tokens, "floor", rows[-1]["floor_us"], "|", *us)
        del layers, weights
        torch.cuda.empty_cache()
    save_cubins(cubins, before, args.out.with_name("cubins.tar.xz"))
    missing = [form for form in args.forms if any(f"{form}_us" not in row for row in rows)]
    log(f"without {', '.join(missing)} at some point" if missing else "every form was right at every point", args.out)
    sys.exit(bool(missing) or len(rows) < len(args.shapes) * len(args.tokens))


if __name__ == "__main__":
    main()
