# SPDX-License-Identifier: Apache-2.0
"""A process whose children end with it: vLLM's ranks are processes of their own, and hold a GPU's memory."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

GONE_S = 5
"""The longest that a killed group is waited for, so that its memory is free."""
ASKED_S = 1
"""What a process may take to say where it is."""
FREE_MIB, FREE_S = 1024, 20
"""A GPU is free below so many MiB; and how long it may take to become so."""


def is_alive(group: int) -> bool:
    """Has a group of processes one that has not ended? Those that have may wait for long for who asks their status."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of = file.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state not in "ZX":
                return True
    return False


def smi(*query: str) -> list[str]:
    """Lines of nvidia-smi, of the GPUs that are ours to see; none where there is no such program."""
    ours = os.environ.get("CUDA_VISIBLE_DEVICES")
    query = (*query, *([f"--id={ours}"] if ours else []))
    try:
        ran = subprocess.run(["nvidia-smi", *query, "--format=csv,noheader,nounits"], capture_output=True, text=True)
    except OSError:
        return []
    return ran.stdout.splitlines() if ran.returncode == 0 else []


def held_gpus(limit_s: float = FREE_S) -> str:
    """Who holds the GPUs' memory, once so long has passed; nothing if they are free, or become so.

    An engine that starts while another ends takes what that gave back for its own, and its cache is too large then.
    """
    limit = time.monotonic() + limit_s
    while any(int(used) >= FREE_MIB for used in smi("--query-gpu=memory.used")):
        if time.monotonic() > limit:
            used = ", ".join(f"{used} MiB" for used in smi("--query-gpu=memory.used"))
            holders = (
                "; ".join(smi("--query-compute-apps=pid,process_name,used_memory")) or "processes that it cannot see"
            )
            return f"GPUs have {used} in use, by {holders}; they must be free. End those processes first."
        time.sleep(0.5)
    return ""


def stop_all(processes: list["Process"]) -> None:
    """At once, and not one after another: who asks for it may have few seconds itself."""
    for process in processes:
        process.kill()
    for process in processes:
        process.stop()


class Process:
    """Runs from now on, into its log."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path, folder: Path | None = None):
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )

    def status(self, limit_s: float) -> int | None:
        """The exit status, once it has ended; none if it is stopped."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.ask()
            return None
        finally:
            self.stop()

    def ask(self) -> None:
        """What is about to be stopped may say where it is."""

    def wait(self, limit_s: float) -> str | None:
        """Until it ends, or is stopped; why it failed, if it did."""
        status = self.status(limit_s)
        if status is None:
            return f"stopped after {limit_s:.0f} s"
        return f"exit status {status}" if status else None

    def kill(self) -> None:
        """Begin to end it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End it and all that it started."""
        limit = time.monotonic() + GONE_S
        self.kill()
        while is_alive(self.process.pid) and time.monotonic() < limit:
            time.sleep(0.05)
            self.kill()
        self.process.poll()


class InTurn(Process):
    """One that imports now, and takes the GPU when its turn comes (ahead.py)."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path):
        self.turn = log.with_suffix(".turn")
        for stale in (self.turn, self.turn.with_suffix(".waiting")):
            stale.unlink(missing_ok=True)
        super().__init__(command, environment | {"FULL_TURN": str(self.turn)}, log)

    def imported(self, limit_s: float) -> str | None:
        """Once it waits for its turn nothing; or why it does not. Importing has a limit of its own."""
        limit = time.monotonic() + limit_s
        while not self.turn.with_suffix(".waiting").exists():
            if self.process.poll() is not None:
                return f"exit status {self.process.poll()} before its turn"
            if time.monotonic() > limit:
                return f"it has not imported after {limit_s:.0f} s"
            time.sleep(0.05)
        return None

    def take_turn(self, limit_s: float) -> str | None:
        """Let it have the GPU until it ends, or is stopped; why it failed, if it did."""
        self.turn.touch()
        return self.wait(limit_s)

    def ask(self) -> None:
        """The stacks of all its processes, into the log; who has no handler ends a little earlier."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGUSR1)
        time.sleep(ASKED_S)
