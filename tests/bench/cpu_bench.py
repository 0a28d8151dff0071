#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""CPU speed of the MoE layer beside torch on the same machine, in one process: `make bench`.

DeepSeek-V4 Flash's shape, 32 local experts: once as one of 8 expert-parallel ranks (32 of 256 experts, the product's
case), once with every slot local (32 of 32). torch runs each touched expert by F.linear on weights that were
dequantised beforehand to bf16 and to float32. Every contender's result is checked. Contenders take turns in bursts of
calls, each call with a routing of its own, so that weights come from memory and not from a cache; the table shows
medians.

Columns: time, spread (interquartile, of ours), GB/s of NVFP4 bytes of the experts touched, its part of the read
bandwidth measured in the same run, and torch's times.
"""

import argparse
import csv
import datetime
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "vllm_plugin")]

import torch
from torch.nn.functional import linear, silu

import nvfp4_moe
import runner
from reference import generate
from reference.layer import Swiglu, relative_l2

HIDDEN, INTERMEDIATE, LOCAL, TOP_K, LIMIT = 4096, 2048, 32, 6, 10.0
EXPERT_BYTES = 0.5625 * 3 * HIDDEN * INTERMEDIATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1,8,64,512")
    parser.add_argument("--repeats", type=int, default=5, help="bursts of each contender")
    parser.add_argument("--out", type=Path, help="write the table as CSV, too")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    weights = generate.random_code_weights(LOCAL, HIDDEN, INTERMEDIATE, generator)
    peers = {"torch bf16": dequantized(weights, torch.bfloat16), "torch f32": dequantized(weights, torch.float32)}
    bandwidth = read_bandwidth()
    cpu = cpu_name()
    print(f"{cpu}, {torch.get_num_threads()} threads, {nvfp4_moe.cpu_isa()}, torch {torch.__version__}")
    print(f"read bandwidth before {bandwidth:.2f} GB/s")
    rows = []
    for num_experts in (256, 32):
        layer = runner.make_layer(weights, num_experts=num_experts, top_k=TOP_K, swiglu=Swiglu(LIMIT))
        for tokens in map(int, args.tokens.split(",")):
            repeats = args.repeats if tokens < 512 else max(1, args.repeats // 5)
            rows.append(measure(layer, peers, num_experts, tokens, repeats, generator))
    bandwidth = max(bandwidth, read_bandwidth())
    print(f"read bandwidth, best of before and after {bandwidth:.2f} GB/s")
    for row in rows:
        row["bandwidth_percent"] = 100 * row["GB_per_s"] / bandwidth
    print_table(rows)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        fields = {"date": datetime.date.today().isoformat(), "cpu": cpu, "read_GB_per_s": round(bandwidth, 2)}
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*fields, *rows[0]])
            writer.writeheader()
            rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
            writer.writerows({**fields, **row} for row in rounded)


def dequantized(weights: generate.Weights, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts as torch wants them: w13 [L, 2I, H] and w2 [L, H, I]."""
    w13 = torch.empty(LOCAL, 2 * INTERMEDIATE, HIDDEN, dtype=dtype)
    w2 = torch.empty(LOCAL, HIDDEN, INTERMEDIATE, dtype=dtype)
    for e in range(LOCAL):
        for half in range(2):
            part = slice(half * INTERMEDIATE, (half + 1) * INTERMEDIATE)
            scale = float(weights.w13_global_scale[e, half])
            w13[e, part] = nvfp4_moe.dequantize(weights.w13[e, part], weights.w13_block_scale[e, part], scale)
        w2[e] = nvfp4_moe.dequantize(weights.w2[e], weights.w2_block_scale[e], float(weights.w2_global_scale[e]))
    return w13, w2


def torch_layer(peer: tuple[torch.Tensor, torch.Tensor], x, topk_ids, topk_weights) -> torch.Tensor:
    w13, w2 = peer
    x = x.to(w13.dtype)
    out = torch.zeros_like(x)
    for e in topk_ids[topk_ids < LOCAL].unique().tolist():
        token, k = (topk_ids == e).nonzero(as_tuple=True)
        gate, up = linear(x[token], w13[e]).chunk(2, dim=-1)
        h = silu(gate.clamp(max=LIMIT)) * up.clamp(-LIMIT, LIMIT)
        out.index_add_(0, token, linear(h, w2[e]) * topk_weights[token, k, None].to(out.dtype))
    return out.to(torch.bfloat16)


def routed(tokens: int, num_experts: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Hidden rows, ids and weights of random tokens, with one local expert at least."""
    x = torch.randn(tokens, HIDDEN, generator=generator).bfloat16()
    while True:
        topk_weights, topk_ids = torch.rand(tokens, num_experts, generator=generator).topk(TOP_K)
        if (topk_ids < LOCAL).any():
            return x, topk_ids, topk_weights


def measure(layer, peers: dict, num_experts: int, tokens: int, repeats: int, generator: torch.Generator) -> dict:
    contenders = {"ours": layer}
    for name, peer in peers.items():
        contenders[name] = lambda *args, peer=peer: torch_layer(peer, *args)
    times = {name: [] for name in contenders}
    touched = []
    for _ in range(repeats):
        # A burst of calls for each contender, as decoding makes them. The first fifth is not counted: it finds threads
        # asleep, and cores that have to be given back and sped up.
        warm_up = 5 if tokens <= 8 else 1
        calls = [routed(tokens, num_experts, generator) for _ in range(5 * warm_up)]
        results = {}
        for name, contender in contenders.items():
            time.sleep(0.02)  # OpenMP's threads spin for a while after each call, on cores that the next one needs
            for i, call in enumerate(calls):
                start = time.perf_counter()
                results[name] = contender(*call)
                if i >= warm_up:
                    times[name].append(time.perf_counter() - start)
        error = relative_l2(results["ours"], results["torch f32"].double())
        if not error < 1e-2:
            sys.exit(f"T = {tokens}: rel-L2 to torch f32 is {error:.1e}; it must be below 1e-2. Nothing was timed.")
        touched += [len(ids[ids < LOCAL].unique()) for _, ids, _ in calls[warm_up:]]
    # Routings differ in the experts they touch: bandwidth is that of each run, then the median.
    ours = times["ours"]
    low, median, high = statistics.quantiles(ours, n=4)
    return {
        "experts": f"{LOCAL} of {num_experts}",
        "tokens": tokens,
        "touched": statistics.median(touched),
        "ours_ms": median * 1e3,
        "spread_percent": 100 * (high - low) / median,
        "GB_per_s": statistics.median(n * EXPERT_BYTES / t / 1e9 for n, t in zip(touched, ours, strict=True)),
        "torch_bf16_ms": statistics.median(times["torch bf16"]) * 1e3,
        "torch_f32_ms": statistics.median(times["torch f32"]) * 1e3,
    }


def read_bandwidth() -> float:
    """GB/s of summing 1 GiB, the best of eight."""
    buffer = torch.ones(1 << 28)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        buffer.sum()
        best = min(best, time.perf_counter() - start)
    return buffer.nbytes / best / 1e9


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def print_table(rows: list[dict]) -> None:
    print("experts     T  touched    ours ms  spread   GB/s  of read   torch bf16 ms   torch f32 ms", end="")
    print("  faster than both by")
    for r in rows:
        best_peer = min(r["torch_bf16_ms"], r["torch_f32_ms"])
        print(
            f"{r['experts']:9} {r['tokens']:4} {r['touched']:8.0f} {r['ours_ms']:10.2f} {r['spread_percent']:6.0f}% "
            f"{r['GB_per_s']:6.2f} {r['bandwidth_percent']:7.0f}% {r['torch_bf16_ms']:14.1f} {r['torch_f32_ms']:14.1f} "
            f"{best_peer / r['ours_ms']:12.1f}x"
        )


if __name__ == "__main__":
    main()
