# SPDX-License-Identifier: Apache-2.0
"""What serve_two.py asks of every rank: vLLM's `worker_extension_cls`.

Replays are counted from the import on, which comes before a model is loaded: vLLM's breakable graphs, which DeepSeek-V4
has, keep each graph's bound `replay` when they capture it, and would not see a counter that comes later.
"""

import collections

import torch

COUNTS: collections.Counter = collections.Counter()
_replay = torch.cuda.CUDAGraph.replay


def counted_replay(graph):
    """torch's own, counted."""
    COUNTS["replays"] += 1
    return _replay(graph)


torch.cuda.CUDAGraph.replay = counted_replay


def counted(kind: str, step):
    """A worker's method for steps; how many there were of a kind, and in how many a graph was replayed."""

    def method(*arguments, **keywords):
        before = COUNTS["replays"]
        try:
            return step(*arguments, **keywords)
        finally:
            COUNTS[f"{kind} steps"] += 1
            COUNTS[f"{kind} replays"] += COUNTS["replays"] > before

    return method


class Seen:
    """Mixed into vLLM's worker; its methods are called by `LLM.collective_rpc`."""

    def seen_start(self) -> None:
        """Count replays of CUDA graphs, and steps with and without a token, from now on."""
        COUNTS.clear()
        self.execute_model = counted("busy", self.execute_model)
        self.execute_dummy_batch = counted("idle", self.execute_dummy_batch)

    def seen_places(self) -> list[list[int]]:
        """Which expert is in which place of each layer, if EPLB may move them."""
        state = getattr(self.model_runner, "eplb_state", None)
        models = state.model_states.values() if state is not None else ()
        return [row for model in models for row in model.physical_to_logical_map.tolist()]

    def seen_bytes(self) -> int:
        """What torch holds of the GPU's memory."""
        return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0

    def seen(self) -> dict:
        """The counts, and the classes that serve the MoE layers, a drafter's among them."""
        drafter = getattr(getattr(self.model_runner, "drafter", None), "model", None)
        models = filter(None, (self.model_runner.get_model(), drafter))
        methods = (getattr(module, "quant_method", None) for model in models for module in model.modules())
        kernels = (getattr(method, "moe_kernel", None) for method in methods)
        names = (type(kernel.fused_experts).__name__ for kernel in kernels if kernel is not None)
        return dict(COUNTS) | {"experts": dict(collections.Counter(names))}
