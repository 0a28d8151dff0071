# SPDX-License-Identifier: Apache-2.0
"""Test-only: EPLB on a CPU, which vLLM refuses; only where NVFP4_MOE_TEST_EPLB is 1.

The balancer, the maps and what moves experts are vLLM's own. Here is what it has for GPUs only: the translation of ids,
a place to begin, and events of a stream. After each rearrangement a rank prints how many places have another expert.
"""

import time
from unittest import mock

import torch

VARIABLE = "NVFP4_MOE_TEST_EPLB"


class GpuLike:
    """The platform, as the check of vLLM's settings sees it."""

    def __init__(self, platform):
        self.platform = platform

    def __getattr__(self, name):
        return getattr(self.platform, name)

    def is_cuda_alike(self):
        return True


class Event:
    """Of a stream whose work is done when the call returns."""

    def __init__(self, enable_timing: bool = False):
        self.seconds = 0.0

    def record(self, stream=None):
        self.seconds = time.monotonic()

    def synchronize(self):
        pass

    def elapsed_time(self, end: "Event") -> float:
        return 1000 * (end.seconds - self.seconds)


def map_and_record(topk_ids, expert_load_view, logical_to_physical_map, logical_replica_count, record_enabled,
                   num_unpadded_tokens=None):  # fmt: skip
    """Which replica of an expert serves a token, as vLLM's kernel has it; each is counted."""
    ids, tokens = topk_ids.long(), torch.arange(len(topk_ids))[:, None]
    replica = (tokens * 2654435769 & 0xFFFFFFFF) % logical_replica_count[ids]
    physical = logical_to_physical_map[ids, replica]
    if record_enabled:
        counted = physical[: len(ids) if num_unpadded_tokens is None else int(num_unpadded_tokens)].flatten()
        expert_load_view.scatter_add_(0, counted, torch.ones_like(counted, dtype=expert_load_view.dtype))
    return physical.to(topk_ids.dtype)


def install() -> None:
    """Let this process take part."""
    import vllm.config.parallel as parallel
    import vllm.model_executor.layers.fused_moe.router.base_router as router
    from vllm.distributed.eplb.eplb_state import EplbState
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    parallel.current_platform = GpuLike(parallel.current_platform)
    router.eplb_map_to_physical_and_record = map_and_record
    torch.cuda.Event = Event
    load_model, rearrange = CPUModelRunner.load_model, EplbState.rearrange

    def load_and_begin(self, *arguments, **named):
        load_model(self, *arguments, **named)
        self._moe_model, self.eplb_state = self.model, EplbState(self.parallel_config, self.device)
        self.eplb_state.add_model(self.model, self.model_config)

    def rearrange_and_say(self, is_profile=False, **named):
        if is_profile:
            return  # takes the memory that a GPU's exchange will need
        maps = [state.physical_to_logical_map.clone() for state in self.model_states.values()]
        with mock.patch.object(torch.cuda, "Event", Event):  # over vLLM's own stand-in, which tells no time
            rearrange(self, **named)
        for before, state in zip(maps, self.model_states.values()):
            moved = int((before != state.physical_to_logical_map).sum())
            print(f"EPLB: {moved} of {before.numel()} places have another expert", flush=True)

    CPUModelRunner.load_model, EplbState.rearrange = load_and_begin, rearrange_and_say
