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


class Process:
    """Runs from now on, into its log."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path):
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, limit_s: float) -> str | None:
        """Until it ends, or is stopped; why it failed, if it did."""
        try:
            status = self.process.wait(limit_s)
            return f"exit status {status}" if status else None
        except subprocess.TimeoutExpired:
            return f"stopped after {limit_s:.0f} s"
        finally:
            self.stop()

    def stop(self) -> None:
        """End it and all that it started."""
        limit = time.monotonic() + GONE_S
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < limit:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.poll()
                time.sleep(0.05)


class InTurn(Process):
    """One that imports now, and takes the GPU when its turn comes (ahead.py)."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path):
        self.turn = log.with_suffix(".turn")
        for stale in (self.turn, self.turn.with_suffix(".waiting")):
            stale.unlink(missing_ok=True)
        super().__init__(command, environment | {"FULL_TURN": str(self.turn)}, log)

    def take_turn(self, limit_s: float) -> str | None:
        """Let it have the GPU until it ends, or is stopped; why it failed, if it did."""
        self.turn.touch()
        return self.wait(limit_s)
