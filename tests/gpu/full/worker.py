# SPDX-License-Identifier: Apache-2.0
"""What a measuring process asks of every rank: vLLM's `worker_extension_cls`."""

import collections
import functools
import time

import torch

# A kernel's part of a step, by words of its name; the first that fits.
PARTS = {
    "communication": ("nccl", "all_reduce", "allreduce", "cross_device", "all_gather", "reduce_scatter"),
    "attention": (
        *("mla", "attn", "flash", "indexer", "compress", "rope", "kv_cache", "mqa", "fp8_paged", "swa", "slot_mapping"),
        *("topk_indices", "topk_metadata", "topk_per_row", "persistent_topk", "gather_k", "save_partial"),
    ),
    "connections": ("mhc", "hc_", "sinkhorn"),
    "experts": (
        *("gemm_sm90", "gemm1", "gemm2", "route_", "combine", "quantize_rows"),  # ours
        *("marlin", "moe_align", "moe_sum", "act_and_mul", "count_and_sort"),
        *("humming", "process_input", "fused_mul_sum", "permute", "prepare_scatter"),
    ),
    "router": ("topk", "router", "gating", "hash"),
    "linears": ("fp8_gemm", "nvjet", "cublas", "gemv", "splitk", "quant", "swiglu_limit"),
}


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


def modular_experts(model: torch.nn.Module) -> list:
    """vLLM's modular kernel of every MoE layer."""
    methods = (getattr(module, "quant_method", None) for module in model.modules())
    kernels = (getattr(method, "moe_kernel", None) for method in methods)
    return [kernel for kernel in kernels if getattr(kernel, "fused_experts", None) is not None]


class HostClock:
    """Host time of the calls of methods, which it wraps until it is stopped."""

    def __init__(self, methods: dict[str, tuple[type, str]]):
        self.us: dict[str, list[float]] = collections.defaultdict(list)
        self.kept = [(owner, attribute, owner.__dict__[attribute]) for owner, attribute in methods.values()]
        for name, (owner, attribute) in methods.items():
            setattr(owner, attribute, self.timed(name, owner.__dict__[attribute]))

    def timed(self, name: str, function):
        """The function, with its time noted."""

        @functools.wraps(function)
        def call(*arguments, **keywords):
            start = time.perf_counter_ns()
            try:
                return function(*arguments, **keywords)
            finally:
                self.us[name].append((time.perf_counter_ns() - start) / 1e3)

        return call

    def stop(self) -> dict[str, list[float]]:
        """Put the methods back; microseconds of every call."""
        for owner, attribute, function in self.kept:
            setattr(owner, attribute, function)
        return dict(self.us)


def defining(kind: type, method: str) -> type:
    """The class that has the method itself."""
    return next(base for base in kind.__mro__ if method in base.__dict__)


class Watch:
    """Mixed into vLLM's worker; its methods are called by `LLM.collective_rpc`."""

    def full_memory(self) -> dict[str, float]:
        """GiB: the most that torch held and had reserved, and what is used now, by whomever."""
        free, total = torch.cuda.mem_get_info()
        most = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        return {name: size / 2**30 for name, size in (most | {"used": total - free}).items()}

    def full_layer_error(self) -> float:
        """Of the last MoE layer, against float64. What it takes of memory is in the most that torch held since."""
        from vllm.distributed.parallel_state import get_ep_group

        from .right import layer_error

        with torch.inference_mode():
            error = layer_error(self.model_runner.model, get_ep_group().rank_in_group)
        torch.cuda.empty_cache()
        return error

    def full_host_start(self) -> None:
        """Time the host's part of every MoE layer from now on: the experts alone, and vLLM's frame around them."""
        kernel = modular_experts(self.model_runner.model)[0]
        frame = getattr(kernel, "impl", kernel)
        self._full_clock = HostClock(
            {
                "experts": (defining(type(kernel.fused_experts), "apply"), "apply"),
                "frame": (defining(type(frame), "apply"), "apply"),
            }
        )

    def full_host_stop(self) -> dict[str, list[float]]:
        """Microseconds of every call since the start."""
        torch.cuda.synchronize()
        return self._full_clock.stop()

    def full_profile_start(self) -> None:
        """Watch kernels from now on."""
        activities = [torch.profiler.ProfilerActivity.CUDA]
        self._full_profile = torch.profiler.profile(activities=activities)
        self._full_profile.__enter__()

    def full_profile_stop(self) -> dict:
        """Microseconds by part and by kernel since the start, and those in which any kernel ran."""
        torch.cuda.synchronize()
        profile = self._full_profile
        del self._full_profile
        profile.__exit__(None, None, None)
        kernels, spans = collections.Counter(), []
        for event in profile.profiler.kineto_results.events():
            if "CUDA" in str(event.device_type()):
                us = event.duration_ns() / 1e3
                kernels[event.name()[:120]] += us
                spans.append((event.start_ns() / 1e3, event.start_ns() / 1e3 + us, part_of(event.name())))
        parts = shares(spans)
        return {
            "parts": parts,
            "kernels": dict(kernels.most_common(60)),
            "busy": {"any": sum(parts.values())},
            "launches": {"all": len(spans)},
        }
