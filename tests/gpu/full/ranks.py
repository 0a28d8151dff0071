# SPDX-License-Identifier: Apache-2.0
"""Data-parallel ranks: each a process with an engine of its own, whose steps are common, so generations begin together.

An engine without a request takes no part in the others' steps until it has had one, so that a rank with nothing to do
asks for one token of a prompt of one, and idles from then on.
"""

import contextlib
import datetime
import os
import socket
import subprocess
import sys

FILLER = {"prompt_token_ids": [2]}
WAIT = datetime.timedelta(seconds=300)


def free_ports(count: int) -> list[int]:
    """Of this machine, for a moment."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextlib.contextmanager
def steps_wait(llm, wanted: bool = True):
    """What is enqueued inside begins in one step, at the end; otherwise the first of several begins alone."""
    core = llm.llm_engine.engine_core
    if wanted:
        core.call_utility("pause_scheduler", "keep", False)
    yield
    if wanted:
        core.call_utility("resume_scheduler")


class Ranks:
    """This process's place among them; the only one, unless `begin` made more."""

    def __init__(self):
        self.rank, self.size = (int(os.environ.get(f"VLLM_DP_{name}", n)) for name, n in (("RANK", 0), ("SIZE", 1)))
        self.meetings, self.store = 0, None

    @classmethod
    def begin(cls, size: int, command: list[str]) -> "Ranks":
        """Start `command` for every rank but the first, which this process becomes. A group's end is the end of all."""
        if size > 1 and "VLLM_DP_RANK" not in os.environ:
            master, meeting = map(str, free_ports(2))
            common = {"VLLM_DP_SIZE": str(size), "VLLM_DP_MASTER_IP": "127.0.0.1", "VLLM_DP_MASTER_PORT": master}
            os.environ.update(common | {"FULL_MEETING": meeting})
            for rank in range(size - 1, -1, -1):
                os.environ.update({"VLLM_DP_RANK": str(rank), "VLLM_DP_RANK_LOCAL": str(rank)})
                if rank:
                    subprocess.Popen([sys.executable, *command])
        return cls()

    def meet(self) -> None:
        """Wait until all ranks are here."""
        if self.size == 1:
            return
        if self.store is None:
            from torch.distributed import TCPStore

            self.store = TCPStore("127.0.0.1", int(os.environ["FULL_MEETING"]), self.size, self.rank == 0, WAIT)
        self.meetings += 1
        if self.store.add(f"here {self.meetings}", 1) == self.size:
            self.store.set(f"all {self.meetings}", "")
        self.store.wait([f"all {self.meetings}"], WAIT)

    def share(self, prompts: list[dict], tokens: int) -> tuple[list[dict], int]:
        """This rank's prompts, and how many tokens of each; the first rank has the most."""
        mine = prompts[self.rank :: self.size]
        return (mine, tokens) if mine else ([FILLER], 1)
