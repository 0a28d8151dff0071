#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: several MoE layers that share one workspace, captured in the strictest mode, replayed on other data.

For T in 1, 2, 4, 8, 16, ... 512 the layers are captured one after another in one graph. Each replay must give the bits
of an eager run on the same data: other hidden states, other routings, all ids -1, hostile ids. T = 0 must capture
nothing. Captured calls must allocate nothing: torch's allocator is watched, and the strict mode fails on any other.
Ends with PASS or FAIL.
"""

import argparse
import itertools
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "vllm_plugin"))  # the development build, if none is installed

import torch

import runner
from reference import generate
from reference.layer import Swiglu

NUM_LAYERS = 3


class Batch:
    """Inputs and output at fixed addresses, as a captured graph needs them."""

    def __init__(self, num_tokens: int, args: argparse.Namespace):
        self.x = torch.empty(num_tokens, args.hidden, dtype=torch.bfloat16, device="cuda")
        self.ids = torch.empty(num_tokens, args.top_k, dtype=torch.int32, device="cuda")
        self.weights = torch.empty(num_tokens, args.top_k, dtype=torch.float32, device="cuda")
        self.outs = [torch.empty_like(self.x) for _ in range(NUM_LAYERS)]
        self.shared = torch.empty_like(self.x)
        self.beside, self.ready = torch.cuda.Stream(), torch.cuda.Event()

    def fill(self, routing: str, args: argparse.Namespace, generator: torch.Generator) -> None:
        num_tokens = len(self.x)
        self.x.copy_(generate.tokens(num_tokens, args.hidden, generator))
        self.weights.copy_(generate.random_topk_weights(num_tokens, args.top_k, generator))
        ids = generate.random_ids(num_tokens, args.experts, args.top_k, generator)
        if routing == "none":
            ids.fill_(-1)
        elif routing == "one":
            ids[:] = torch.arange(args.top_k)
        elif routing == "hostile":
            bad = torch.tensor(generate.hostile_ids(args.experts), dtype=torch.int32)
            mask = torch.rand(ids.shape, generator=generator) < 0.4
            ids[mask] = bad[torch.randint(len(bad), (int(mask.sum()),), generator=generator)]
        self.ids.copy_(ids)

    def forward(self, layers, workspace: torch.Tensor) -> None:
        """Each layer takes what the one before gave, as in a model; all but the first have shared experts beside."""
        x = self.x
        layers[0](x, self.ids, self.weights, workspace=workspace, out=self.outs[0])
        for layer, x, out in zip(layers[1:], self.outs, self.outs[1:]):
            self.beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.beside):
                torch.mul(x, -0.75, out=self.shared)
                self.ready.record()
            shared = dict(shared_output=self.shared, shared_output_ready=self.ready)
            layer(x, self.ids, self.weights, workspace=workspace, out=out, **shared)

    def poison(self) -> None:
        for out in self.outs:
            out.view(torch.int16).fill_(-1)

    def bits(self) -> list[torch.Tensor]:
        return [out.view(torch.int16).clone() for out in self.outs]


def check(num_tokens: int, layers, workspace, args, generator) -> bool:
    batch = Batch(num_tokens, args)
    batch.fill("random", args, generator)
    torch.cuda.synchronize()

    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="global")  # the strictest: no call of any thread may be unsafe
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        batch.forward(layers, workspace)
        allocations = torch.cuda.memory_stats()["allocation.all.allocated"] - before
        graph.capture_end()
    torch.cuda.synchronize()

    bad = []
    for routing in ("random", "random", "none", "one", "hostile", "random"):
        batch.fill(routing, args, generator)
        batch.poison()
        workspace.fill_(0xFF)
        graph.replay()
        replayed = batch.bits()
        batch.poison()
        workspace.fill_(0xFF)
        batch.forward(layers, workspace)
        if not all(torch.equal(a, b) for a, b in zip(replayed, batch.bits())):
            bad.append(f"{routing}: bits differ from eager")
        if not all(out.isfinite().all() for out in batch.outs):
            bad.append(f"{routing}: not finite")
        if routing == "none" and any(out.any() for out in batch.outs):
            bad.append("none: not zero")
    if allocations:
        bad.append(f"{allocations} allocations while capturing")
    print(f"T={num_tokens:4d}  6 replays  {'ok' if not bad else '; '.join(bad)}", flush=True)
    return not bad


def no_tokens(layers, workspace, args) -> bool:
    """T = 0 launches nothing and fails at nothing, eager and captured."""
    batch = Batch(0, args)
    batch.forward(layers, workspace)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="global"):
        batch.forward(layers, workspace)
    print("T=   0  ok", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--inter", type=int, default=512)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--local", type=int, default=16, help="experts held here, from id 8")
    parser.add_argument("--top-k", type=int, default=6)
    parser.add_argument("--mode", default="bf16,nvfp4,fp8", help="fp8 is left out where kernels are portable")
    parser.add_argument("--device", default="cuda,cuda-portable")
    parser.add_argument("--most", type=int, default=512, help="tokens of the largest graph")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("cudagraph_test: SKIPPED, no GPU")
        return 0
    passed = True
    for device, mode in itertools.product(args.device.split(","), args.mode.split(",")):
        if (device, mode) == ("cuda-portable", "fp8"):
            continue
        generator = torch.Generator().manual_seed(1)
        layers = []
        for _ in range(NUM_LAYERS):
            weights = generate.random_code_weights(
                args.local, args.hidden, args.inter, generator, lossless=mode == "fp8"
            )
            layers.append(
                runner.make_layer(
                    weights.with_input_scales(4.0, 4.0),
                    num_experts=args.experts,
                    top_k=args.top_k,
                    mode=mode,
                    swiglu=Swiglu(limit=10.0),
                    first_local_expert=8,
                    device=device,
                )
            )
        workspace = torch.empty(layers[0].workspace_size(512), dtype=torch.uint8, device=layers[0].device)
        print(f"{device}, mode {mode}, {NUM_LAYERS} layers, one workspace of {workspace.numel() / 1e6:.1f} MB")
        passed &= no_tokens(layers, workspace, args)
        for num_tokens in [1, 2, 4, *range(8, args.most + 1, 8)]:
            passed &= check(num_tokens, layers, workspace, args, generator)
    print("cudagraph_test:", "PASS" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
