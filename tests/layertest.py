#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reference against runner: one MoE layer through the torch op, compared with float64. Ends with PASS or FAIL.

    layertest.py --shape flash                      a generated layer of DeepSeek-V4 Flash's size, 3 experts
    layertest.py --checkpoint DIR --layer 3         a layer of a real checkpoint
    layertest.py --shape pro --tokens 1,8 --mode nvfp4 --experts 16 --ep-rank 1 --ep-size 4
    layertest.py --shape flash --mode bf16,fp8      weights with power-of-two block scales, which mode fp8 needs
    layertest.py --mode fp8 --scale-block-size 32   one for 32 weights, as casts of MXFP4 have them
    layertest.py --mode fp8 --fp8-max-error 0.04    ordinary weights, which mode fp8 rounds to e4m3
    layertest.py --activation relu2 --bias          another kind of expert: relu2 has no gate

Columns: `rel-L2` and `cosine` against float64 on the dequantised weights (in modes nvfp4 and fp8 on the quantised
activations, too); `exact x` the cosine against float64 on exact activations; `unquantised` the cosine against the
layer before its weights were quantised, where that is known; NaN and Inf in the output; activation blocks whose scale
saturated; the part of gate and up values that the clamp changed; the time of one call. Gates: reference/gates.py.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "vllm_plugin"))  # the development build, if none is installed

import torch

import nvfp4_moe
import runner
from reference import gates, generate, mxfp4, nvfp4, rounding
from reference.layer import (
    ACTIVATIONS,
    ReferenceLayer,
    Result,
    Swiglu,
    UnquantizedLayer,
    cosine,
    local_ids,
    relative_l2,
)
from reference.originals import read_originals

# hidden, intermediate, top_k, swiglu_limit
SHAPES = {"pro": (7168, 3072, 6, 10.0), "flash": (4096, 2048, 6, 10.0), "tiny": (256, 128, 6, 10.0)}


@dataclass
class Subject:
    """The layer under test: this rank's experts of it."""

    title: str
    weights: generate.Weights
    num_experts: int
    top_k: int
    first_local: int
    swiglu: Swiglu
    files: mxfp4.Weights | None = None  # of MXFP4, read and decoded without the library


@dataclass
class Outputs:
    """All tokens of a mode, over all cases: what quantising costs is a statement about many tokens."""

    runner: list[torch.Tensor]
    oracle: list[torch.Tensor]
    exact: list[torch.Tensor]
    unquantized: list[torch.Tensor]

    def add(self, out: torch.Tensor, oracle: torch.Tensor, exact: torch.Tensor, unquantized: torch.Tensor | None):
        self.runner.append(out)
        self.oracle.append(oracle)
        self.exact.append(exact)
        if unquantized is not None:
            self.unquantized.append(unquantized)

    def summary(self, mode: str, weight_error: float) -> bool:
        """Print the mode's cosines; does it pass the gates on what quantising, and rounding weights, costs?"""
        out, exact = torch.cat(self.runner), torch.cat(self.exact)
        to_exact = cosine(out, exact)
        ok = to_exact >= gates.COSINE_ACTIVATIONS
        gate = gates.COSINE_ACTIVATIONS
        print(f"{mode}, {len(out)} tokens: cosine to exact activations {to_exact:.5f} (gate {gate})", end="")
        if mode == "fp8":
            loss = relative_l2(out, exact)
            most = gates.REL_L2_FP8 + gates.ROUNDED_WEIGHTS * weight_error
            ok = ok and loss <= most
            print(f", rel-L2 {loss:.2e} (gate {most:.2e})", end="")
        print()
        if self.unquantized:
            original = torch.cat(self.unquantized)
            ours, formats = cosine(out, original), cosine(torch.cat(self.oracle), original)
            side = "above" if ours >= gates.BAR_UNQUANTIZED else "BELOW"
            print(f"  to the unquantised layer {ours:.5f}, {side} the historical bar {gates.BAR_UNQUANTIZED}; ", end="")
            print(f"the format itself, in float64, {formats:.5f} (gate {gates.COSINE_LOSS} less)")
            ok = ok and ours >= formats - gates.COSINE_LOSS
        print("  ok" if ok else "  FAIL")
        return ok


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", type=Path, help="directory of safetensors files and config.json")
    source.add_argument("--shape", choices=SHAPES, help="generate a layer of this size (default: tiny)")
    parser.add_argument("--layer", type=int, default=0, help="which MoE layer of the checkpoint")
    parser.add_argument("--experts", type=int, default=3, help="experts of a generated layer")
    parser.add_argument("--top-k", type=int, help="default: the model's, but less than all experts")
    parser.add_argument("--tokens", default="1,8,64,512", help="numbers of tokens, with commas")
    parser.add_argument("--mode", default="bf16,nvfp4", help="activation modes, with commas: bf16, nvfp4, fp8")
    kinds = "of a generated layer; swiglu clamps at the shape's limit, others have their models' numbers"
    parser.add_argument("--activation", default="swiglu", choices=ACTIVATIONS, help=kinds)
    parser.add_argument("--bias", action="store_true", help="give a generated layer biases")
    parser.add_argument(
        "--interleaved", action="store_true", help="rows of gate and up take turns in a generated layer"
    )
    rounded = "mode fp8: round weights to e4m3 where that costs no matrix more; generated ones are ordinary then"
    parser.add_argument("--fp8-max-error", type=float, default=0.0, help=rounded)
    paired = "mode fp8: 32 for block scales that are equal in pairs; generated ones are then"
    parser.add_argument("--scale-block-size", type=int, default=16, choices=(16, 32), help=paired)
    parser.add_argument("--scale-policy", default="static", choices=("static", "dynamic"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ep-rank", type=int, default=0)
    parser.add_argument("--ep-size", type=int, default=1, help="split the experts over so many ranks")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def rank_of(args: argparse.Namespace, num_experts: int) -> tuple[int, int]:
    """(first, count) of the experts of this rank."""
    if num_experts % args.ep_size != 0 or not 0 <= args.ep_rank < args.ep_size:
        sys.exit(
            f"--ep-size is {args.ep_size} and --ep-rank {args.ep_rank}; {num_experts} experts must split evenly, and "
            "ranks count from 0. Pass a divisor."
        )
    count = num_experts // args.ep_size
    return args.ep_rank * count, count


def top_k_of(args: argparse.Namespace, model_top_k: int, num_experts: int) -> int:
    return args.top_k or max(1, min(model_top_k, num_experts - 1))


def from_checkpoint(args: argparse.Namespace) -> Subject:
    checkpoint = nvfp4_moe.Checkpoint(args.checkpoint)
    info = checkpoint.layer_info(args.layer)
    first, count = rank_of(args, info.num_experts)
    read = checkpoint.read_layer(args.layer, first_expert=first, num_experts=count)
    weights = generate.Weights(**vars(read), unquantized=read_originals(args.checkpoint, args.layer, first, count))
    title = f"{args.checkpoint.name} ({info.format}), layer {args.layer}"
    top_k = top_k_of(args, info.top_k or 6, info.num_experts)
    activation = ACTIVATIONS[info.activation](info.swiglu_limit, info.swiglu_alpha, info.swiglu_beta)
    files = mxfp4.read(args.checkpoint, args.layer, first, count) if info.format == "mxfp4" else None
    return Subject(title, weights, info.num_experts, top_k, first, activation, files)


def generated(args: argparse.Namespace) -> Subject:
    shape = args.shape or "tiny"
    hidden, intermediate, model_top_k, limit = SHAPES[shape]
    first, count = rank_of(args, args.experts)
    numbers = {"swiglu": (limit,), "swiglu_step": (7.0,), "situ": (25.0, 1.0, 4.0)}.get(args.activation, ())
    activation = ACTIVATIONS[args.activation](*numbers)
    generator = torch.Generator().manual_seed(args.seed)
    lossless = "fp8" in args.mode.split(",") and not args.fp8_max_error
    kind = {"lossless": lossless, "gated": activation.gated, "scale_block_size": args.scale_block_size}
    weights = generate.normal_weights(args.experts, hidden, intermediate, generator, **kind)
    weights = weights.with_biases(generator) if args.bias else weights
    weights = weights.with_interleaved_rows() if args.interleaved else weights
    top_k = top_k_of(args, model_top_k, args.experts)
    title = f"generated {shape}, {args.activation}{' with biases' if args.bias else ''}"
    return Subject(title, weights.experts(first, count), args.experts, top_k, first, activation)


def calibrate(subject: Subject, args: argparse.Namespace) -> None:
    """Give weights without input scales those that 64 tokens of warm-up call for."""
    generator = torch.Generator().manual_seed(args.seed + 1)
    layer = make_layer(subject, "bf16", args)
    x, ids, topk_weights = make_batch(subject, 64, generator)
    layer.calibrate(*(t.to(layer.device) for t in (x, ids, topk_weights)))
    subject.weights.w13_input_scale, subject.weights.w2_input_scale = layer.calibrated_scales()


def make_layer(subject: Subject, mode: str, args: argparse.Namespace) -> nvfp4_moe.Layer:
    return runner.make_layer(
        subject.weights,
        num_experts=subject.num_experts,
        top_k=subject.top_k,
        mode=mode,
        scale_policy=args.scale_policy,
        swiglu=subject.swiglu,
        first_local_expert=subject.first_local,
        fp8_max_error=args.fp8_max_error if mode == "fp8" else 0.0,
        scale_block_size=args.scale_block_size if mode == "fp8" else 16,
        device=args.device,
    )


def make_batch(subject: Subject, num_tokens: int, generator: torch.Generator):
    return (
        generate.tokens(num_tokens, subject.weights.w13.shape[2] * 2, generator),
        generate.random_ids(num_tokens, subject.num_experts, subject.top_k, generator),
        generate.random_topk_weights(num_tokens, subject.top_k, generator),
    )


def run(layer: nvfp4_moe.Layer, inputs) -> tuple[torch.Tensor, int, float]:
    """(output of a call with poisoned buffers, blocks it saturated, seconds of a second call)."""
    nvfp4_moe.reset_device_status(layer.device)
    out = runner.run(layer, *inputs)
    saturated = nvfp4_moe.read_device_status(layer.device).saturated_blocks
    inputs = [t.to(layer.device) for t in inputs]
    synchronize = torch.cuda.synchronize if layer.device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    layer(*inputs)
    synchronize()
    return out, saturated, time.perf_counter() - start


def judge(mode: str, out: torch.Tensor, result: Result, bound: float, x: torch.Tensor, scale: float | None) -> str:
    """ "ok", or which gates a case does not pass."""
    failures = []
    if not out.isfinite().all():
        failures.append("not finite")
    if not relative_l2(out, result.out) <= bound:
        failures.append("rel-L2 above its gate")
    if mode == "bf16" and not cosine(out, result.out) >= gates.COSINE:
        failures.append(f"cosine below {gates.COSINE}")
    if mode == "nvfp4" and not operands_match(x, scale):
        failures.append("quantised activations differ from the oracle's")
    return "FAIL: " + "; ".join(failures) if failures else "ok"


def operands_match(x: torch.Tensor, scale: float | None) -> bool:
    """Are the library's quantised activations the oracle's, bit for bit?"""
    ours, theirs = nvfp4_moe.quantize(x, scale), nvfp4.quantize(x, scale)
    return torch.equal(ours.packed, nvfp4.pack(theirs.codes)) and torch.equal(
        ours.block_scale.view(torch.uint8), theirs.block_scale
    )


def hostile_rows_are_zero(layer: nvfp4_moe.Layer, subject: Subject, generator: torch.Generator) -> bool:
    """Rows of ids that no router should give become 0, and change no bit of the other rows."""
    x, ids, topk_weights = make_batch(subject, 16, generator)
    clean = runner.run(layer, x, ids, topk_weights)
    hostile = torch.tensor(generate.hostile_ids(subject.num_experts))
    ids[4:8] = hostile[torch.arange(4 * subject.top_k) % len(hostile)].view(4, -1)
    dirty = runner.run(layer, x, ids, topk_weights)
    clean[4:8] = 0
    return torch.equal(clean.view(torch.int16), dirty.view(torch.int16))


def main() -> int:
    args = parse_arguments()
    torch.set_grad_enabled(False)
    subject = from_checkpoint(args) if args.checkpoint else generated(args)
    weights = subject.weights
    half_h, inter = weights.w13.shape[2], weights.w2.shape[2] * 2
    device = nvfp4_moe.cpu_isa() if args.device == "cpu" else args.device
    print(f"{subject.title}: hidden {half_h * 2}, intermediate {inter}, top-{subject.top_k}, ", end="")
    print(f"{len(weights.w13)} of {subject.num_experts} experts, limit {subject.swiglu.limit:g}; {device}")

    modes = args.mode.split(",")
    if "nvfp4" in modes and args.scale_policy == "static" and not (weights.w13_input_scale and weights.w2_input_scale):
        calibrate(subject, args)
        print("input scales: calibrated on 64 tokens, the source has none")
    scales = (weights.w13_input_scale, weights.w2_input_scale) if args.scale_policy == "static" else (None, None)
    layers = {mode: make_layer(subject, mode, args) for mode in modes}
    reference = mxfp4.Layer(subject.files, subject.swiglu) if subject.files else ReferenceLayer(weights, subject.swiglu)
    rounds = "fp8" in modes and args.fp8_max_error > 0
    references = {"fp8": rounding.RoundedLayer(weights, subject.swiglu)} if rounds else {}
    if rounds:
        print(f"weights rounded to e4m3: {layers['fp8'].weight_error()}")
    original = UnquantizedLayer(weights, subject.swiglu) if weights.unquantized else None

    print("    T  mode   rel-L2    gate      cosine      exact x  unquantised  NaN/Inf  saturated  clamped       time")
    passed = True
    gathered = {mode: Outputs([], [], [], []) for mode in modes}
    generator = torch.Generator().manual_seed(args.seed + 2)
    for num_tokens in map(int, args.tokens.split(",")):
        inputs = make_batch(subject, num_tokens, generator)
        x, ids, topk_weights = inputs
        local = local_ids(ids, subject.num_experts, len(weights.w13), subject.first_local)
        outputs = {mode: run(layer, inputs) for mode, layer in layers.items()}
        exact = reference.forward(x, local, topk_weights)
        unquantized = original.forward(x, local, topk_weights).out if original else None
        for mode, (out, saturated, seconds) in outputs.items():
            own = references.get(mode, reference)
            result = own.forward(x, local, topk_weights, mode, scales) if mode != "bf16" else exact
            bound = gates.bound(result, mode, args.device, rounded=mode in references)
            verdict = judge(mode, out, result, bound, x, scales[0])
            passed = passed and verdict == "ok"
            before = "not known" if unquantized is None else f"{cosine(out, unquantized):.5f}"
            gathered[mode].add(out, result.out, exact.out, unquantized)
            print(
                f"{num_tokens:5}  {mode:5}  {relative_l2(out, result.out):.2e}  {bound:.2e}  "
                f"{cosine(out, result.out):.8f}  {cosine(out, exact.out):.5f}  {before:>11}  "
                f"{int(out.isnan().sum()):3}/{int(out.isinf().sum()):<3}  {saturated:9}  {result.clamped:7.2%}  "
                f"{seconds * 1e3:7.1f} ms  {verdict}",
                flush=True,
            )
    for mode, layer in layers.items():
        ok = hostile_rows_are_zero(layer, subject, generator)
        passed = passed and ok
        print(f"hostile ids, {mode}: rows are 0 and change nothing else: {'ok' if ok else 'FAIL'}")
    for mode, outputs in gathered.items():
        passed = outputs.summary(mode, layers[mode].weight_error().rel_l2) and passed
    print(f"layertest: {'PASS' if passed else 'FAIL'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
