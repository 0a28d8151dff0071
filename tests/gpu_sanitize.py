#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every kernel on small shapes, to be run under compute-sanitizer (memcheck, racecheck, initcheck, synccheck).

    gpu_sanitize.py [small] [rings]

small: shapes so small that a CTA fills each stage of its ring once. rings: more tiles and slabs than stages, and calls
of few tokens in one launch; racecheck reports false hazards there, but for a build of its own
(docs/kernels.md#racecheck).
PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives each tensor its own allocation, so that a step past one is seen.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "vllm_plugin"))  # the development build, if none is installed

import torch

import nvfp4_moe
import runner
from nvfp4_moe import Linear, LinearWeights
from reference import generate
from reference.layer import Relu2, Swiglu

HIDDEN, INTER, EXPERTS, TOP_K = 144, 80, 8, 2
KINDS = (("bf16", "static"), ("nvfp4", "static"), ("nvfp4", "dynamic"))
# One for each GEMM kernel (8, 16, 24, ... rows); 1100 tokens take the routing of several blocks.
TOKENS = (1, 32, 60, 80, 120, 200, 250, 300, 350, 1100)
# GEMM1 has 256 tiles of four stages or more, GEMM2 1024, for 132 multiprocessors.
RINGS_HIDDEN, RINGS_INTER, RINGS_EXPERTS = 4096, 512, 16
RINGS_TOKENS = (40, 100, 160, 250, 400, 500, 650, 800, 1000, 1500, 2000)


def run_layers(device: str, generator: torch.Generator, activation: Swiglu, tokens: tuple[int, ...]) -> None:
    sizes = (EXPERTS, HIDDEN, INTER)
    made = (generate.random_code_weights(*sizes, generator, lossless=p, gated=activation.gated) for p in (True, False))
    lossless, ordinary = (weights.with_input_scales(4.0, 4.0) for weights in made)
    if activation != Swiglu():
        lossless, ordinary = (weights.with_biases(generator) for weights in (lossless, ordinary))
        if activation.gated:
            lossless, ordinary = (weights.with_interleaved_rows() for weights in (lossless, ordinary))
    fp8 = [("fp8", "static", 0.1), ("fp8", "static", 0.0)] if device == "cuda" else []
    for mode, policy, fp8_max_error in (*fp8, *((*kind, 0.0) for kind in KINDS)):
        layer = runner.make_layer(
            ordinary if fp8_max_error else lossless,
            fp8_max_error=fp8_max_error,
            num_experts=EXPERTS,
            top_k=TOP_K,
            mode=mode,
            scale_policy=policy,
            swiglu=activation,
            device=device,
        )
        for num_tokens in tokens:
            ids = generate.random_ids(num_tokens, EXPERTS, TOP_K, generator)
            ids[::3, 0] = -1
            topk_weights = generate.random_topk_weights(num_tokens, TOP_K, generator)
            x = generate.tokens(num_tokens, HIDDEN, generator)
            workspace = torch.empty(layer.workspace_size(num_tokens), dtype=torch.uint8, device="cuda")
            out = layer(x.cuda(), ids.cuda(), topk_weights.cuda(), workspace=workspace)
            assert out.isfinite().all()
            if mode == "bf16" and num_tokens in (tokens[0], tokens[-1]):
                wide = torch.ones(num_tokens, HIDDEN + 8, dtype=torch.bfloat16, device="cuda")
                for shared in (wide[:, 8:], wide[:, 3 : 3 + HIDDEN]):  # loads of 16 bytes, and of 2
                    inputs = x.cuda(), ids.cuda(), topk_weights.cuda()
                    assert layer(*inputs, workspace=workspace, shared_output=shared).isfinite().all()
    layer.calibrate(x.cuda(), ids.cuda(), topk_weights.cuda(), workspace=workspace)
    assert all(scale > 0 for scale in layer.calibrated_scales())


def run_linears(device: str, generator: torch.Generator) -> None:
    packed = torch.randint(0, 256, (100, HIDDEN // 2), dtype=torch.uint8, generator=generator)
    scales = torch.randint(0, 100, (100, HIDDEN // 16), dtype=torch.uint8, generator=generator)
    for mode in ("bf16", "nvfp4"):
        linear = Linear(in_features=HIDDEN, out_features=100, mode=mode, scale_policy="dynamic", device=device)
        linear.prepare(LinearWeights(packed.cuda(), scales.cuda(), torch.ones(1, device="cuda")))
        for num_tokens in TOKENS[:6]:
            workspace = torch.empty(linear.workspace_size(num_tokens), dtype=torch.uint8, device="cuda")
            assert linear(generate.tokens(num_tokens, HIDDEN, generator).cuda(), workspace=workspace).isfinite().all()


def run_calls(weights, tokens: tuple[int, ...], generator: torch.Generator, **config) -> None:
    layer = runner.make_layer(weights, top_k=TOP_K, scale_policy="static", device="cuda", **config)
    for num_tokens in tokens:
        ids = generate.random_ids(num_tokens, config["num_experts"], TOP_K, generator)
        x = generate.tokens(num_tokens, 2 * weights.w13.shape[2], generator)
        topk_weights = generate.random_topk_weights(num_tokens, TOP_K, generator)
        assert runner.run(layer, x, ids, topk_weights).isfinite().all()


def run_rings(generator: torch.Generator) -> None:
    # In one launch on Hopper, which hidden sizes take whose weight tiles are enough for all multiprocessors: CTAs by
    # themselves, and in pairs.
    for hidden in (7168, 4096):
        weights = generate.random_code_weights(EXPERTS, hidden, INTER, generator)
        run_calls(weights, (1, 8), generator, num_experts=EXPERTS, mode="bf16")
    sizes = (RINGS_EXPERTS, RINGS_HIDDEN, RINGS_INTER)
    for mode, fp8_max_error in (("bf16", 0.0), ("nvfp4", 0.0), ("fp8", 0.0), ("fp8", 0.1)):
        weights = generate.random_code_weights(*sizes, generator, lossless=not fp8_max_error)
        weights = weights.with_input_scales(4.0, 4.0)
        config = {"num_experts": RINGS_EXPERTS, "mode": mode, "fp8_max_error": fp8_max_error}
        run_calls(weights, RINGS_TOKENS, generator, **config)


def run_small(generator: torch.Generator) -> None:
    for device in ("cuda", "cuda-portable"):
        run_layers(device, generator, Swiglu(), TOKENS)
        for activation in (Swiglu(7.0, 1.702, 1.0), Relu2()):  # of interleaved rows, and without a gate
            run_layers(device, generator, activation, TOKENS[::3])
        run_linears(device, generator)


def main() -> None:
    parts = sys.argv[1:] or ["small", "rings"]
    for part in parts:
        {"small": run_small, "rings": run_rings}[part](torch.Generator().manual_seed(0))
    print("status", nvfp4_moe.read_device_status("cuda"))
    print("gpu_sanitize: done")


if __name__ == "__main__":
    main()
