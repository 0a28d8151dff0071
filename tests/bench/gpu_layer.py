#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""GPU speed of prepare and of the MoE layer by device, mode and skew of routing: part of `make gpu-bench`.

prepare  bytes read and written over time, beside a device-to-device copy (bytes read and written as well)
layer    one call in a CUDA graph of several, each on inputs of its own; median over rounds, and quartiles. One set of
         weights: of few tokens' experts some come from L2, unlike in the record beside peers

Skews: `uniform` (1 in 8 slots is local under EP8), `hot` (one local expert has every token, the rest is uniform),
`zipf` (the expert of rank r is chosen like 1 / r, ranks dealt at random), `local` (every slot is, so Pro takes several
chunks at 8192 tokens), `six` (every token goes to the same six local experts) and `none` (no slot is local). `rows`
are the slots routed here: at 8192 tokens the floor grows as they do. Every layer's result is checked first, on the
quantised or bf16 operands of the other family of kernels; mode fp8's, which that family lacks, against mode bf16.
"""

import argparse
import datetime
import statistics
from inspect import signature
from pathlib import Path

import torch
from gpu_timing import captured, seconds, write_table

from nvfp4_moe import Layer, LayerWeights
from reference import gates, generate
from reference.layer import relative_l2

# hidden, intermediate, experts, local experts, top_k: one of 8 expert-parallel ranks
SHAPES = {"pro8": (7168, 3072, 384, 48, 6), "flash8": (4096, 2048, 256, 32, 6)}
ONE_GPU = {"flash1": (4096, 2048, 256, 256, 6)}
"""All experts on one GPU."""
FEW_TOKENS_SKEWS = ("uniform", "none")
SKEWS = ("uniform", "hot", "zipf", "local", "six")  # at 8192 tokens


def copy_bandwidth() -> float:
    """Bytes a second of a large copy, read and written."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = captured([lambda: target.copy_(source)])
    return 2 * source.numel() / statistics.median(seconds({"copy": copy}, 1)["copy"])


def make_weights(shape: str) -> LayerWeights:
    hidden, inter, _, local, _ = SHAPES[shape]
    generator = torch.Generator(device="cuda").manual_seed(0)

    def codes(*shape, low=0, high=256):
        return torch.randint(low, high, shape, dtype=torch.uint8, device="cuda", generator=generator)

    def scales(*shape):
        """Powers of two from 2^-4 to 2^3, equal in pairs as casts of MXFP4 have them: which every mode takes."""
        return (codes(*shape[:-1], shape[-1] // 2, low=3, high=11) << 3).repeat_interleave(2, dim=-1)

    return LayerWeights(
        codes(local, 2 * inter, hidden // 2),
        scales(local, 2 * inter, hidden // 16),
        torch.full((local, 2), hidden**-0.5 / 15, device="cuda"),
        codes(local, hidden, inter // 2),
        scales(local, hidden, inter // 16),
        torch.full((local,), inter**-0.5 / 15, device="cuda"),
    )


def expert_map(shape: str) -> torch.Tensor | None:
    """Global to local expert: the first are local. None where all are."""
    _, _, experts, local, _ = SHAPES[shape]
    if local == experts:
        return None
    ids = torch.arange(experts, dtype=torch.int32, device="cuda")
    return torch.where(ids < local, ids, -1)


def prepare_rate(layer: Layer, weights: LayerWeights) -> float:
    """Bytes a second, read and written, of the best of five; prepare waits for the stream, so this has its overhead."""
    num_bytes = 2 * sum(t.numel() for t in (weights.w13, weights.w13_block_scale, weights.w2, weights.w2_block_scale))
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        layer.prepare(weights)
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return num_bytes / best


def route(skew: str, num_tokens: int, experts: int, local: int, top_k: int, generator) -> torch.Tensor:
    if skew == "six":
        return torch.arange(top_k, dtype=torch.int32).expand(num_tokens, top_k).contiguous()
    if skew == "none":
        return local + generate.random_ids(num_tokens, experts - local, top_k, generator)
    if skew == "zipf":
        ranks = torch.randperm(experts, generator=generator).int()
        return ranks[generate.zipf_ids(num_tokens, experts, top_k, generator)]
    if skew == "hot":  # a token may meet the hot expert twice, which is allowed
        ids = generate.random_ids(num_tokens, experts, top_k, generator)
        ids[:, 0] = 0
        return ids
    return generate.random_ids(num_tokens, local if skew == "local" else experts, top_k, generator)


def make_layer(shape: str, device: str, mode: str, **options) -> Layer:
    hidden, inter, experts, local, top_k = SHAPES[shape]
    if mode == "fp8" and "fp8_max_error" not in options and "scale_block_size" in signature(Layer).parameters:
        options = {"scale_block_size": 32} | options  # which an older build that is measured beside this one lacks
    return Layer(
        hidden_size=hidden, intermediate_size=inter, num_experts=experts, num_local_experts=local, top_k=top_k,
        mode=mode, scale_policy="dynamic", swiglu_limit=10.0, device=device, **options,
    )  # fmt: skip


def make_batches(shape: str, num_tokens: int, skew: str, generator) -> list[tuple]:
    """x, ids and weights for each call of a graph."""
    hidden, _, experts, local, top_k = SHAPES[shape]
    return [
        (
            generate.tokens(num_tokens, hidden, generator).cuda(),
            route(skew, num_tokens, experts, local, top_k, generator).cuda(),
            generate.random_topk_weights(num_tokens, top_k, generator).cuda(),
        )
        for _ in range(8 if num_tokens <= 64 else 2)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="pro8,flash8")
    parser.add_argument("--tokens", default="1,64,512,8192")
    parser.add_argument("--devices", default="cuda,cuda-portable")
    parser.add_argument("--out", type=Path, help="write the tables as CSV, too")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    bandwidth = copy_bandwidth()
    gpu = torch.cuda.get_device_name()
    head = f"# {gpu}, {datetime.date.today()}, torch {torch.__version__}; copy {bandwidth / 1e12:.3f} TB/s"
    print(head)
    rows = [["what", "shape", "device", "mode", "skew", "tokens", "median", "quartile1", "quartile3", "unit", "rows"]]
    for shape in args.shapes.split(","):
        local = SHAPES[shape][3]
        weights = make_weights(shape)
        layers = {}
        for device in args.devices.split(","):
            for mode in ("bf16", "nvfp4", "fp8") if device == "cuda" else ("bf16", "nvfp4"):
                layers[device, mode] = layer = make_layer(shape, device, mode).prepare(weights)
            layer = layers[device, "bf16"]
            rate = prepare_rate(layer, weights)
            rows.append(["prepare", shape, device, "", "", "", f"{rate / 1e9:.0f}", "", "", "GB/s", ""])
            print(*rows[-1], f"= {rate / bandwidth:.0%} of a copy")
        for num_tokens in map(int, args.tokens.split(",")):
            workspace = torch.empty(
                max(layer.workspace_size(num_tokens) for layer in layers.values()), dtype=torch.uint8, device="cuda"
            )
            for skew in SKEWS if num_tokens == 8192 else FEW_TOKENS_SKEWS:
                # One generator for the others, whose draws are those of older records.
                draws = torch.Generator().manual_seed(1) if skew == "none" else generator
                batches = make_batches(shape, num_tokens, skew, draws)
                out = torch.empty_like(batches[0][0])
                for mode in ("bf16", "nvfp4"):
                    results = [
                        layer(*batches[0], workspace=workspace).cpu() for (_, of), layer in layers.items() if of == mode
                    ]
                    apart = max((relative_l2(result, results[0].double()) for result in results[1:]), default=0.0)
                    # In mode nvfp4 a last bit of h may move a code: see reference/gates.py.
                    assert apart < (5e-3 if mode == "bf16" else 2e-2), (shape, num_tokens, skew, mode, apart)
                if ("cuda", "fp8") in layers:
                    exact, fp8 = (layers["cuda", mode](*batches[0], workspace=workspace) for mode in ("bf16", "fp8"))
                    loss = relative_l2(fp8.cpu(), exact.cpu().double())
                    assert loss < gates.REL_L2_FP8, (shape, num_tokens, skew, "fp8", loss)
                for (device, mode), layer in layers.items():
                    if device != "cuda" and num_tokens == 8192 and skew != "uniform":
                        continue  # an oracle: its speed there is nobody's question
                    graph = captured(
                        [lambda b=batch, run=layer: run(*b, workspace=workspace, out=out) for batch in batches]
                    )
                    us = [1e6 * t for t in seconds({"layer": graph}, len(batches))["layer"]]
                    quartiles = [f"{q:.2f}" for q in statistics.quantiles(us)]
                    row = ["layer", shape, device, mode, skew, num_tokens, quartiles[1], quartiles[0], quartiles[2]]
                    routed = statistics.mean(int((ids < local).sum()) for _, ids, _ in batches)
                    rows.append([*row, "us", f"{routed:.0f}"])
                    print(*rows[-1], flush=True)
    if args.out:
        write_table(args.out, head, rows)


if __name__ == "__main__":
    main()
