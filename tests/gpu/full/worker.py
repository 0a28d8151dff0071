# SPDX-License-Identifier: Apache-2.0
"""What a measuring process asks of every rank: vLLM's `worker_extension_cls`."""

import collections
import functools
import importlib
import time

import torch


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
        methods = {
            "experts": (defining(type(kernel.fused_experts), "apply"), "apply"),
            "frame": (defining(type(frame), "apply"), "apply"),
        }
        if getattr(kernel.fused_experts, "may_run_late", False):  # then vLLM's second question runs the layer
            late = importlib.import_module("nvfp4_moe.plugin.into_output").RunInto
            methods["experts, late"] = (late, "apply")
        self._full_clock = HostClock(methods)

    def full_host_stop(self) -> dict[str, list[float]]:
        """Microseconds of every call since the start."""
        torch.cuda.synchronize()
        return self._full_clock.stop()

    def full_profile_start(self) -> None:
        """Watch kernels from now on."""
        activities = [torch.profiler.ProfilerActivity.CUDA]
        self._full_profile = torch.profiler.profile(activities=activities)
        self._full_profile.__enter__()

    def full_profile_stop(self) -> list[list]:
        """Every kernel since the start, as step.Kernel has it."""
        torch.cuda.synchronize()
        profile = self._full_profile
        del self._full_profile
        profile.__exit__(None, None, None)
        events = profile.profiler.kineto_results.events()
        return [
            [event.start_ns() / 1e3, event.duration_ns() / 1e3, event.name()[:400]]
            for event in events
            if "CUDA" in str(event.device_type())
        ]
