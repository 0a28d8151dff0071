# SPDX-License-Identifier: Apache-2.0
"""`doctor gpu`: the first run on a new card: right, as the portable kernels, repeatable, captured, watched, and timed.

Nothing is downloaded: a layer is made here. The report goes to a file, to be sent back.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import self_test
from .finding import FOUND, Report, WrongUse, progress

HIDDEN, INTER, EXPERTS, TOP_K = 2048, 1024, 32, 4
TOKENS = (1, 8, 64, 512)
# Relative error that any row may have against float64 on the same operands.
TOLERANCE = {"bf16": 0.02, "nvfp4": 0.5}
SANITIZER_SECONDS = 900
# Bytes a second of a card's memory, as NVIDIA states them, by a part of its name.
STATED_BANDWIDTH = {
    "B300": 8e12,
    "B200": 8e12,
    "RTX PRO 6000": 1.8e12,
    "RTX 5090": 1.79e12,
    "GB10": 0.273e12,
    "H200": 4.8e12,
    "H100": 3.35e12,
}


def run(arguments) -> int:
    """Print the report, and write it; 1 if anything is wrong."""
    try:
        import torch
    except ImportError as error:
        raise WrongUse(f"torch cannot be imported ({error}). Install nvfp4-moe.") from None
    device = arguments.device or ("cuda" if torch.cuda.is_available() else None)
    if device is None:
        raise WrongUse("torch finds no GPU here. Pass --device cpu to run the same on the CPU.")
    report = Report("gpu", device)
    facts(report, device)
    for step in (right, as_portable, repeatable, captured, sanitized, timed):
        if step is as_portable and arguments.inside_sanitizer:
            continue  # its kernels are those of the other steps, and it would take an hour
        if step is sanitized and arguments.inside_sanitizer:
            break
        progress(step.__doc__.splitlines()[0])
        try:
            step(report, device)
        except RuntimeError as error:
            report.fault(
                "step-fails",
                f"{step.__name__}: {str(error).splitlines()[0]}",
                "the kernels do not run here.",
                "Send the report.",
            )
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(report.to_dict(), indent=1))
        report.fact("report", f"{arguments.out}: send it with the issue")
    return report.finish(arguments.json)


def facts(report: Report, device: str) -> None:
    """What machine this is."""
    import torch

    import nvfp4_moe
    from nvfp4_moe.plugin import support

    report.fact(
        "nvfp4-moe", f"{nvfp4_moe.__version__}, torch {torch.__version__}, {platform.machine()} {platform.system()}"
    )
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(0)
        report.fact(
            "card",
            f"{card.name}, {card.major}.{card.minor}, {card.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}",
        )
    else:
        report.fact("instruction set", nvfp4_moe.cpu_isa())
    report.fact("plugin", support.device_refusal(device.partition("-")[0]) or "would be active")
    if device == "cuda":
        report.fact("proof", support.proof(device) or "its kernels were made and measured on such a card")


@lru_cache(maxsize=2)
def made(device: str, mode: str) -> tuple[Any, Any]:
    """(layer, its weights on the host): random codes, scales that keep what passes near 1."""
    import torch

    from nvfp4_moe import Layer, LayerWeights

    g = torch.Generator().manual_seed(0)
    weights = LayerWeights.empty(EXPERTS, HIDDEN, INTER, w13_input_scale=0.003, w2_input_scale=0.003)
    for name in ("w13", "w2"):
        codes, scales = getattr(weights, name), getattr(weights, f"{name}_block_scale")
        codes.copy_(torch.randint(0, 256, codes.shape, dtype=torch.uint8, generator=g))
        scales.copy_((torch.rand(scales.shape, generator=g) + 0.5).to(scales.dtype))
        columns = codes.shape[-1] * 2
        getattr(weights, f"{name}_global_scale").fill_(0.35 * columns**-0.5)
    layer = Layer(
        hidden_size=HIDDEN,
        intermediate_size=INTER,
        num_experts=EXPERTS,
        top_k=TOP_K,
        mode=mode,
        swiglu_limit=10.0,
        device=device,
    )
    return layer.prepare(weights.to(layer.device)), weights


def batch(num_tokens: int, device: str, seed: int = 1) -> tuple[Any, Any, Any]:
    """x, ids, weights"""
    import torch

    g = torch.Generator().manual_seed(seed)
    x = torch.randn(num_tokens, HIDDEN, generator=g).bfloat16()
    ids = torch.rand(num_tokens, EXPERTS, generator=g).topk(TOP_K).indices.int()
    on = device.partition("-")[0]
    return x.to(on), ids.to(on), torch.full((num_tokens, TOP_K), 0.25, device=on)


def reference(weights: Any, x: Any, ids: Any, topk_weights: Any) -> Any:
    """f64 [T, H] by expert_reference.py."""
    from .expert_reference import Expert, FileExperts, Swiglu, decode

    class MadeExperts(FileExperts):
        def __init__(self):
            self.swiglu, self.num_experts = Swiglu(10.0, 1.0, 0.0), EXPERTS

        def expert(self, number: int) -> Expert:
            w13 = decode(
                weights.w13[number], weights.w13_block_scale[number], float(weights.w13_global_scale[number, 0])
            )
            down = decode(weights.w2[number], weights.w2_block_scale[number], float(weights.w2_global_scale[number]))
            return Expert(*w13.chunk(2), down, 1.0)

    return MadeExperts().forward(x.cpu(), ids.long().cpu(), topk_weights.cpu())


def right(report: Report, device: str) -> None:
    """Is the layer what it is in float64?"""
    from .expert_reference import worst_row

    for mode, tolerance in TOLERANCE.items():
        layer, weights = made(device, mode)
        given = batch(16, device)
        error = worst_row(layer(*given).cpu(), reference(weights, *given))
        report.fact(f"error in mode {mode}", f"{error:.2g} in the worst of 16 rows, at most {tolerance}")
        if not error <= tolerance:
            report.fault(
                "layer-is-wrong",
                f"mode {mode}: error {error:.2g} in the worst row; {tolerance} is the most",
                "the kernels compute something else on this card.",
                "Send the report. Serve with NVFP4_MOE_DISABLE=1.",
            )


def as_portable(report: Report, device: str) -> None:
    """Are the bits those of the portable kernels, of which no addition rounds?"""
    if device == "cuda-portable":
        report.fact("self-test", "these are the portable kernels")
        return
    portable = "cuda-portable" if device == "cuda" else device
    found = list(self_test.differences(device, portable))
    different = [text for text in found if text]
    report.fact("self-test", f"{len(different)} of {len(found)} comparisons with {portable} differ")
    if different:
        report.fault(
            "differs-from-portable",
            different[0],
            "the kernels compute something else on this card, or only with such tiles.",
            "Send the report. Use the device cuda-portable, or serve with NVFP4_MOE_DISABLE=1.",
        )


def repeatable(report: Report, device: str) -> None:
    """Are the bits the same three times?"""
    layer, _ = made(device, "bf16")
    given = batch(64, device)
    first = layer(*given)
    different = sum(int((layer(*given) != first).sum()) for _ in range(2))
    report.fact("three runs", f"{different} of {2 * first.numel()} values differ")
    if different:
        report.fault(
            "not-repeatable",
            f"{different} values of two more runs differ; 0 must",
            "there is a race.",
            "Send the report.",
        )


def captured(report: Report, device: str) -> None:
    """Does a CUDA graph replay what eager computes?"""
    import torch

    if not device.startswith("cuda"):
        report.fact("CUDA graph", "not on this device")
        return
    layer, _ = made(device, "bf16")
    x, ids, weights = batch(8, device)
    out = torch.empty_like(x)
    workspace = torch.empty(layer.workspace_size(8), dtype=torch.uint8, device=x.device)
    layer(x, ids, weights, workspace=workspace, out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer(x, ids, weights, workspace=workspace, out=out)
    other = batch(8, device, seed=2)
    for target, values in zip((x, ids, weights), other):
        target.copy_(values)
    graph.replay()
    torch.cuda.synchronize()
    different = int((out != layer(*other)).sum())
    report.fact("CUDA graph", f"{different} of {out.numel()} values differ from eager")
    if different:
        report.fault(
            "graph-differs",
            f"{different} of {out.numel()} values differ from eager; 0 must",
            "serving with graphs is wrong.",
            "Serve with --enforce-eager, and send the report.",
        )


def sanitized(report: Report, device: str) -> None:
    """Does compute-sanitizer see a wild access?"""
    tool = shutil.which("compute-sanitizer")
    if tool is None or not device.startswith("cuda"):
        report.fact("compute-sanitizer", "not here" if tool is None else "not on this device")
        return
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m", "nvfp4_moe", "doctor", "gpu"]
    done = subprocess.run(
        [*command, "--device", device, "--inside-sanitizer"],
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        timeout=SANITIZER_SECONDS,
        check=False,
    )
    report.fact("compute-sanitizer", f"exit status {done.returncode}")
    if done.returncode not in (0, FOUND):
        last = (done.stdout.strip().splitlines() or ["nothing"])[-1]
        report.fault(
            "sanitizer",
            f"memcheck ends with {done.returncode}; it must be 0. It says: {last}",
            "a kernel reads or writes outside.",
            "Send the report.",
        )


def timed(report: Report, device: str) -> None:
    """How long does a forward take, beside reading its weights once?"""
    rate = bandwidth(device)
    stated = stated_bandwidth(device)
    part = f", {rate / stated:.0%} of the {stated / 1e9:.0f} that are stated" if stated else ""
    report.fact("a copy reaches", f"{rate / 1e9:.0f} GB/s{part}")
    for mode in TOLERANCE:
        time_mode(report, device, mode, rate)


def time_mode(report: Report, device: str, mode: str, rate: float) -> None:
    """A line for each number of tokens."""
    layer, _ = made(device, mode)
    one_expert = 3 * HIDDEN * INTER * 0.5625
    for num_tokens in TOKENS if device.startswith("cuda") else TOKENS[:3]:
        given = batch(num_tokens, device)
        touched = len(given[1].unique())
        seconds = median_seconds(lambda: layer(*given), device)
        floor = touched * one_expert / rate
        report.fact(
            f"{num_tokens} tokens, {mode}",
            f"{seconds * 1e6:.0f} us; reading {touched} experts takes {floor * 1e6:.0f} us at that rate",
        )


def stated_bandwidth(device: str) -> float | None:
    """Of the card's memory, bytes a second; None for a card that is not in the table."""
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else ""
    return next((rate for part, rate in STATED_BANDWIDTH.items() if part in name), None)


def bandwidth(device: str) -> float:
    """Bytes a second that a copy reads and writes."""
    import torch

    size = 1 << (30 if device.startswith("cuda") else 26)
    source = torch.zeros(size, dtype=torch.uint8, device=device.partition("-")[0])
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device)


def median_seconds(work: Callable[[], object], device: str, times: int = 20) -> float:
    """Of single runs, each waited for."""
    import torch

    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    work()
    found = []
    for _ in range(times):
        wait()
        start = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - start)
    return statistics.median(found)
