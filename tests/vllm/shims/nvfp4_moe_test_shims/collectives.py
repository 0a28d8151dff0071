# SPDX-License-Identifier: Apache-2.0
"""Test-only: what vLLM's CPU communicator lacks for attention under data parallel with expert parallel.

Ranks bring unequal numbers of tokens: all are gathered before the experts, and each gets the sum of its own afterwards.
"""

import torch
import torch.distributed as dist


def install() -> None:
    """Give vLLM's CPU communicator both, where it has none."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    for function in (all_gatherv, reduce_scatterv):
        if function.__name__ not in vars(CpuCommunicator):
            setattr(CpuCommunicator, function.__name__, function)


def all_gatherv(self, input_, dim=0, sizes=None):
    """The rows of every rank, one rank after another; of one tensor, or of each of several."""
    if not isinstance(input_, torch.Tensor):
        return [all_gatherv(self, one, dim, sizes) for one in input_]
    assert dim == 0
    sizes = sizes or [len(input_)] * self.world_size
    padded = input_.new_zeros((max(sizes), *input_.shape[1:]))
    padded[: len(input_)] = input_
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded, group=self.device_group)
    return torch.cat([rows[:size] for rows, size in zip(gathered, sizes, strict=True)])


def reduce_scatterv(self, input_, dim=0, sizes=None):
    """This rank's rows of the sum over all ranks; f32, then rounded once."""
    assert dim == 0
    sizes = sizes or [len(input_) // self.world_size] * self.world_size
    total = input_.float()
    dist.all_reduce(total, group=self.device_group)
    return total.split(sizes)[self.rank_in_group].to(input_.dtype)
