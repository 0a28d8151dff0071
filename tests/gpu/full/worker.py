# SPDX-License-Identifier: Apache-2.0
"""What a measuring process asks of every rank: vLLM's `worker_extension_cls`."""

import collections

import torch

# A kernel's part of a step, by words of its name; the first that fits.
PARTS = {
    "communication": ("nccl", "all_reduce", "allreduce", "cross_device", "all_gather", "reduce_scatter"),
    "experts": (
        "gemm_sm90",
        "gemm1",
        "gemm2",
        "route_",
        "combine",
        "quantize_rows",
        "marlin_moe",
        "moe_align",
        "moe_sum",
        "silu_and_mul",
        "count_and_sort",
    ),
    "router": ("topk", "router", "gating", "hash"),
    "attention": ("mla", "attn", "flash", "indexer", "compress", "rope", "kv_cache", "mqa", "fp8_paged"),
    "connections": ("mhc", "hc_", "sinkhorn"),
}


def part_of(kernel: str) -> str:
    """Attention, experts, communication, ..., or `rest`: the linears, norms and what nobody named."""
    name = kernel.lower()
    return next((part for part, words in PARTS.items() if any(word in name for word in words)), "rest")


class Watch:
    """Mixed into vLLM's worker; its methods are called by `LLM.collective_rpc`."""

    def full_memory(self) -> dict[str, float]:
        """GiB: the most that torch had reserved, and what is free now."""
        free, total = torch.cuda.mem_get_info()
        return {"reserved": torch.cuda.max_memory_reserved() / 2**30, "used": (total - free) / 2**30}

    def full_profile_start(self) -> None:
        """Watch kernels from now on."""
        activities = [torch.profiler.ProfilerActivity.CUDA]
        self._full_profile = torch.profiler.profile(activities=activities)
        self._full_profile.__enter__()

    def full_profile_stop(self) -> dict:
        """Microseconds by part and by kernel since the start."""
        torch.cuda.synchronize()
        profile = self._full_profile
        del self._full_profile
        profile.__exit__(None, None, None)
        parts, kernels = collections.Counter(), collections.Counter()
        for event in profile.events():
            if "CUDA" in str(event.device_type):
                parts[part_of(event.name)] += event.device_time
                kernels[event.name[:100]] += event.device_time
        return {"parts": dict(parts), "kernels": dict(kernels.most_common(40))}
