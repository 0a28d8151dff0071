# SPDX-License-Identifier: Apache-2.0
"""A layer that writes where vLLM wants its output, and not into scratch that vLLM then copies from.

Before 0.32 vLLM asks experts for their output in scratch, then has it "weighted and reduced" into the tensor that it
returns. That second question is asked with both at hand, so a layer that found scratch in the first runs in the second.
From 0.32 on the first question comes with that tensor already. Delete this when `support.OLDEST` is 0.32.
"""

from collections.abc import Callable

import torch
import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm.model_executor.layers.fused_moe.prepare_finalize import MoEPrepareAndFinalizeNoDPEPModular


def asks_twice(kernel) -> bool:
    """Is the second question always asked? Some exchanges between ranks do without it."""
    return isinstance(kernel.prepare_finalize, MoEPrepareAndFinalizeNoDPEPModular)


def is_scratch(output: torch.Tensor, workspace13: torch.Tensor) -> bool:
    """vLLM cuts both from one buffer where it has to copy. (What torch.compile traces has no addresses: no.)"""
    if torch.compiler.is_compiling():
        return False
    return output.untyped_storage().data_ptr() == workspace13.untyped_storage().data_ptr()


class RunInto(mk.TopKWeightAndReduce):
    """The second question: `run(given, output)` computes the output, weighted and reduced."""

    def __init__(self, run: Callable[[tuple, torch.Tensor], None], given: tuple):
        self.run, self.given = run, given

    def apply(self, output, fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input):
        """Into `output`; the scratch stays unwritten."""
        self.run(self.given, output)
        return output
