#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The MoE layer on a GPU beside vLLM's Marlin, where vLLM can be imported; sooner done than `make gpu-bench-peers`.

Both are captured in a CUDA graph of several calls, each on inputs and every second on weights of its own; graphs are
replayed in turn, and a row is the median of a call. Each result is checked first against the portable kernels, which
share no GEMM with either. Marlin's entry is that of vLLM 0.26; where a vLLM has it elsewhere, its column is empty.
"""

import argparse
import datetime
import statistics
from pathlib import Path

import torch
from gpu_layer import SHAPES, expert_map, make_batches, make_layer, make_weights
from gpu_timing import captured, seconds, write_table

from nvfp4_moe import LayerWeights
from reference.layer import relative_l2

WEIGHT_SETS = 2
LIMIT = 10.0
MOST_APART = 1e-2  # of bf16 results by other orders of sums


def marlin(weights: LayerWeights, shape: str):
    """vLLM's Marlin layer as its ModelOpt path prepares it, or None; prints why."""
    try:
        from vllm.model_executor.layers.fused_moe.experts.marlin_moe import fused_marlin_moe
        from vllm.model_executor.layers.quantization.utils.marlin_utils_fp4 import prepare_nvfp4_moe_layer_for_marlin
        from vllm.scalar_type import scalar_types
    except ImportError as error:
        print(f"# no Marlin beside it: {error}")
        return None
    hidden, inter, experts, local, _ = SHAPES[shape]
    layer = torch.nn.Module()
    layer.num_experts, layer.hidden_size, layer.intermediate_size_per_partition = local, hidden, inter
    layer.params_dtype = torch.bfloat16
    w13, s13, g13, w2, s2, g2 = prepare_nvfp4_moe_layer_for_marlin(
        layer,
        weights.w13,
        weights.w13_block_scale.view(torch.float8_e4m3fn),
        weights.w13_global_scale[:, 0].contiguous(),
        weights.w2,
        weights.w2_block_scale.view(torch.float8_e4m3fn),
        weights.w2_global_scale,
        True,
    )
    local_ids = expert_map(shape)
    return lambda x, ids, topk_weights: fused_marlin_moe(
        x, w13, w2, None, None, s13, s2, topk_weights, ids, scalar_types.float4_e2m1f.id, global_num_experts=experts,
        expert_map=local_ids, global_scale1=g13, global_scale2=g2, clamp_limit=LIMIT,
    )  # fmt: skip


def measured(shape: str, num_tokens: int, layers: dict[str, list], generator) -> list:
    """One row: check, capture, time. `layers` has those of each weight set; `portable`, the oracle, is not timed."""
    batches = make_batches(shape, num_tokens, "uniform", generator)
    size = max(layers[name][0].workspace_size(num_tokens) for name in ("ours", "portable"))
    memory = {"workspace": torch.empty(size, dtype=torch.uint8, device="cuda"), "out": torch.empty_like(batches[0][0])}

    def result(name: str, index: int) -> torch.Tensor:
        layer = layers[name][index % len(layers[name])]
        return layer(*batches[index], **({} if name == "marlin" else memory))

    results = {name: result(name, 0).cpu() for name in layers}
    apart = {name: relative_l2(got, results["portable"].double()) for name, got in results.items()}
    assert max(apart.values()) < MOST_APART, (shape, num_tokens, apart)
    graphs = {
        name: captured([lambda name=name, i=i: result(name, i) for i in range(len(batches))])
        for name in layers
        if name != "portable"
    }
    us = {name: 1e6 * statistics.median(of) for name, of in seconds(graphs, len(batches)).items()}
    columns = [f"{us[name]:.2f}" if name in us else "" for name in ("ours", "marlin")]
    ratio = f"{us['marlin'] / us['ours']:.2f}" if "marlin" in us else ""
    return [shape, num_tokens, *columns, ratio, f"{apart['ours']:.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="pro8,flash8")
    parser.add_argument("--tokens", default="1,8,64,512,4096")
    parser.add_argument("--out", type=Path, help="write the table as CSV, too")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    head = f"# {torch.cuda.get_device_name()}, {datetime.date.today()}, torch {torch.__version__}; mode bf16"
    print(head)
    rows = [["shape", "tokens", "ours_us", "marlin_us", "marlin_over_ours", "rel_l2"]]
    print(*rows[0])
    for shape in args.shapes.split(","):
        weights = [make_weights(shape) for _ in range(WEIGHT_SETS)]
        layers = {
            "portable": [make_layer(shape, "cuda-portable", "bf16").prepare(weights[0])],
            "ours": [make_layer(shape, "cuda", "bf16").prepare(of) for of in weights],
        }
        if (first := marlin(weights[0], shape)) is not None:
            layers["marlin"] = [first, *(marlin(of, shape) for of in weights[1:])]
        for num_tokens in map(int, args.tokens.split(",")):
            rows.append(measured(shape, num_tokens, layers, generator))
            print(*rows[-1], flush=True)
    if args.out:
        write_table(args.out, head, rows)


if __name__ == "__main__":
    main()
