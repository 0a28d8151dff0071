# SPDX-License-Identifier: Apache-2.0
"""What serve_two.py asks of every rank: vLLM's `worker_extension_cls`."""

import collections

import torch


class Seen:
    """Mixed into vLLM's worker; its methods are called by `LLM.collective_rpc`."""

    def seen_start(self) -> None:
        """Count replays of CUDA graphs, and steps without a token, from now on."""
        self._seen = collections.Counter()
        replay, dummy = torch.cuda.CUDAGraph.replay, self.execute_dummy_batch

        def counted_replay(graph):
            self._seen["replays"] += 1
            return replay(graph)

        def counted_dummy():
            before = self._seen["replays"]
            dummy()
            self._seen["idle steps"] += 1
            self._seen["idle replays"] += self._seen["replays"] - before

        torch.cuda.CUDAGraph.replay, self.execute_dummy_batch = counted_replay, counted_dummy

    def seen_places(self) -> list[list[int]]:
        """Which expert is in which place of each layer, if EPLB may move them."""
        state = getattr(self.model_runner, "eplb_state", None)
        models = state.model_states.values() if state is not None else ()
        return [row for model in models for row in model.physical_to_logical_map.tolist()]

    def seen(self) -> dict:
        """The counts, and the classes that serve the MoE layers, a drafter's among them."""
        drafter = getattr(getattr(self.model_runner, "drafter", None), "model", None)
        models = filter(None, (self.model_runner.get_model(), drafter))
        methods = (getattr(module, "quant_method", None) for model in models for module in model.modules())
        kernels = (getattr(method, "moe_kernel", None) for method in methods)
        names = (type(kernel.fused_experts).__name__ for kernel in kernels if kernel is not None)
        return dict(self._seen) | {"experts": dict(collections.Counter(names))}
