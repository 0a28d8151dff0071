#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The NVFP4 linear on a GPU beside cuBLAS (bf16 weights) and, where vLLM can be imported, its Marlin kernel: part of
`make gpu-bench`.

Every implementation is captured in a CUDA graph of calls on weights of their own, more than L2 holds; graphs are
replayed in turn, and a row is the median of a call. Each output is checked against float64 on the dequantised weights.
The floor is the larger of the 4-bit weights and activations over read bandwidth, and of the products over the bf16 rate
of cuBLAS, both measured in this run.
"""

import argparse
import datetime
import statistics
from pathlib import Path

import torch
from gpu_timing import captured, seconds, write_table

from nvfp4_moe import Linear, LinearWeights, dequantize
from reference.layer import relative_l2

# in_features, out_features: of DeepSeek-V4-Pro's attention
SHAPES = [(7168, 16384), (7168, 2048), (2048, 7168)]
TOKENS = [1, 8, 64, 512, 4096]


def ceilings() -> tuple[float, float]:
    """Bytes a second read, bf16 operations a second."""
    bytes_ = torch.zeros(4 << 30, dtype=torch.uint8, device="cuda").view(torch.float32)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    times = seconds({"read": captured([lambda: bytes_.sum()]), "mm": captured([lambda: a @ a.t()])}, 1)
    return bytes_.numel() * 4 / statistics.median(times["read"]), 2 * 8192**3 / statistics.median(times["mm"])


def num_copies(k: int, n: int) -> int:
    """Of a weight, so that all together are three times L2."""
    return max(2, -(-(160 << 20) // (k * n * 9 // 16)))


def make_weights(k: int, n: int, seed: int) -> LinearWeights:
    generator = torch.Generator(device="cuda").manual_seed(seed)
    return LinearWeights(
        torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda", generator=generator),
        torch.randint(0x58, 0x7F, (n, k // 16), dtype=torch.uint8, device="cuda", generator=generator),
        torch.full((1,), 0.02 / (2.926 * 197), device="cuda"),
    )


def marlin(weights: LinearWeights, k: int, n: int):
    """vLLM's Marlin linear, as its ModelOpt path prepares it, or None without vLLM."""
    try:
        from vllm.model_executor.layers.quantization.utils import marlin_utils_fp4
    except ImportError:
        return None
    layer = torch.nn.Module()
    layer.output_size_per_partition, layer.input_size_per_partition, layer.params_dtype = n, k, torch.bfloat16
    for name, value in (
        ("weight", weights.weight.clone()),
        ("weight_scale", weights.block_scale.view(torch.float8_e4m3fn).clone()),
        ("weight_global_scale", weights.global_scale[0].clone()),
    ):
        setattr(layer, name, torch.nn.Parameter(value, requires_grad=False))
    marlin_utils_fp4.prepare_fp4_layer_for_marlin(layer)
    return lambda x: marlin_utils_fp4.apply_fp4_marlin_linear(
        x, layer.weight, layer.weight_scale, layer.weight_global_scale, layer.workspace, n, k
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--out", type=Path, help="write the table as CSV, too")
    args = parser.parse_args()
    read, products = ceilings()
    head = (
        f"# {torch.cuda.get_device_name()}, {datetime.date.today()}, torch {torch.__version__}; "
        f"read {read / 1e12:.3f} TB/s, bf16 {products / 1e12:.0f} TFLOP/s"
    )
    print(head)
    rows = [["in_features", "out_features", "tokens", "floor_us", "ours_us", "marlin_us", "cublas_bf16_us", "rel_l2"]]
    print(*rows[0])
    for k, n in SHAPES:
        copies = num_copies(k, n)
        weights = [make_weights(k, n, seed) for seed in range(copies)]
        dense = [
            dequantize(w.weight.cpu(), w.block_scale.cpu(), float(w.global_scale)).cuda().bfloat16() for w in weights
        ]
        ours = [Linear(in_features=k, out_features=n, mode="bf16", device="cuda").prepare(w) for w in weights]
        peers = [marlin(w, k, n) for w in weights]
        exact = dequantize(weights[0].weight.cpu(), weights[0].block_scale.cpu(), float(weights[0].global_scale))
        for tokens in map(int, args.tokens.split(",")):
            x = torch.randn(tokens, k, device="cuda").bfloat16()
            calls = {"ours": [lambda f=f: f(x) for f in ours]}
            if peers[0]:
                calls["marlin"] = [lambda f=f: f(x) for f in peers]
            calls["cublas"] = [lambda w=w: torch.nn.functional.linear(x, w) for w in dense]
            want = (x.double() @ exact.cuda().double().t()).cpu()
            errors = {name: relative_l2(of[0]().cpu(), want) for name, of in calls.items()}
            assert errors["ours"] < 5e-3, errors
            times = seconds({name: captured(of) for name, of in calls.items()}, copies)
            us = {name: 1e6 * statistics.median(of) for name, of in times.items()}
            bytes_ = k * n * 9 / 16 + 2 * tokens * (k + n)
            floor = max(bytes_ / read, 2 * tokens * k * n / products) * 1e6
            marlin_us = f"{us['marlin']:.2f}" if "marlin" in us else ""
            rows.append([k, n, tokens, f"{floor:.2f}", f"{us['ours']:.2f}", marlin_us, f"{us['cublas']:.2f}"])
            rows[-1].append(f"{errors['ours']:.2e}")
            print(*rows[-1], {name: f"{e:.1e}" for name, e in errors.items()}, flush=True)
        del weights, dense, ours, peers
    if args.out:
        write_table(args.out, head, rows)


if __name__ == "__main__":
    main()
