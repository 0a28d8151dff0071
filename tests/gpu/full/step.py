# SPDX-License-Identifier: Apache-2.0
"""What a decoding step is made of: kernels of a profiled generation, taken apart."""

import collections
from typing import NamedTuple

# A kernel's part of a step, by words of its name; the first that fits.
PARTS = {
    "communication": ("nccl", "all_reduce", "allreduce", "cross_device", "all_gather", "reduce_scatter"),
    "attention": (
        *("mla", "attn", "flash", "indexer", "compress", "rope", "kv_cache", "mqa", "fp8_paged", "swa", "slot_mapping"),
        *("topk_indices", "topk_metadata", "topk_per_row", "persistent_topk", "gather_k", "save_partial"),
    ),
    "connections": ("mhc", "hc_", "sinkhorn"),
    "experts": (
        *("gemm_sm90", "gemm1", "gemm2", "few_sm90", "route_", "combine", "quantize_rows"),  # ours
        *("marlin", "moe_align", "moe_sum", "act_and_mul", "count_and_sort"),
        *("humming", "process_input", "fused_mul_sum", "permute", "prepare_scatter"),
    ),
    "router": ("topk", "router", "gating", "hash"),
    "linears": ("fp8_gemm", "nvjet", "cublas", "gemv", "splitk", "quant", "swiglu_limit"),
}
WAITING = "waiting for a rank"


class Kernel(NamedTuple):
    """One launch; microseconds."""

    start: float
    us: float
    name: str


def part_of(kernel: str) -> str:
    """Attention, experts, communication, ..., or `rest`: norms, sampling and what nobody named."""
    name = kernel.lower()
    return next((part for part, words in PARTS.items() if any(word in name for word in words)), "rest")


def shares(spans: list[tuple[float, float, str]]) -> dict[str, float]:
    """Time by part; while several kernels run, each has an equal share. All shares are the time in which any ran."""
    edges = sorted([(start, 1, part) for start, _, part in spans] + [(end, -1, part) for _, end, part in spans])
    found, running, last = collections.Counter(), collections.Counter(), 0.0
    for at, change, part in edges:
        for other, count in running.items():
            found[other] += (at - last) * count / running.total() if count else 0.0
        running[part] += change
        last = at
    return dict(found)


def decoding(long: list[Kernel], short: list[Kernel]) -> list[Kernel]:
    """The launches that more tokens add: a generation begins with those of one token, its prompt's among them."""
    return sorted(long)[len(short) :]


def transfer_us(ranks: list[list[Kernel]]) -> float:
    """Of the ranks' common launches, what they take once all ranks have come: each as the last one to come has it.

    A kernel that exchanges with another rank runs, and waits, from its own rank's arrival on. Where ranks have not
    the same launches, as pipeline stages have not, the first rank's own.
    """
    communication = [[kernel.us for kernel in kernels if part_of(kernel.name) == "communication"] for kernels in ranks]
    if len({len(us) for us in communication}) > 1:
        return sum(communication[0])
    return sum(map(min, zip(*communication, strict=True)))


def taken_apart(long: list[list[Kernel]], short: list[list[Kernel]], steps: int) -> dict[str, dict[str, float]]:
    """A step of the first rank, from every rank's kernels: by part, by kernel, and how long any ran; and launches.

    Communication is what the exchange takes; what its kernels wait beside that is a part of its own.
    """
    ranks = [decoding(*pair) for pair in zip(long, short, strict=True)]
    own = ranks[0]
    parts = shares([(kernel.start, kernel.start + kernel.us, part_of(kernel.name)) for kernel in own])
    if "communication" in parts:
        transfer = min(transfer_us(ranks), parts["communication"])
        parts[WAITING], parts["communication"] = parts["communication"] - transfer, transfer
    kernels = collections.Counter()
    for kernel in own:
        kernels[kernel.name[:120]] += kernel.us
    found = {
        "parts": parts,
        "kernels": dict(kernels.most_common(60)),
        "busy": {"any": sum(parts.values())},
        "launches": {"all": len(own)},
    }
    return {kind: {name: value / steps for name, value in values.items()} for kind, values in found.items()}
