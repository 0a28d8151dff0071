# SPDX-License-Identifier: Apache-2.0
"""Runs commands, several at a time, and says how each ended. What each printed is in a file of its own."""

import os
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gpu.full.process import Process, stop_all

ROOT = Path(__file__).resolve().parents[1]
LAST_LINES, LAST_OF_A_FAILURE = 2, 14


@dataclass
class Command:
    """A test that is a process; it passes if it ends with 0 and says what it must."""

    name: str
    words: list[object]
    environment: dict[str, str] = field(default_factory=dict)
    must_say: str = ""
    alone: bool = False
    """Before the others, by itself: it watches what others would change."""


class Report:
    """How commands ended."""

    def __init__(self, logs: Path, limit_s: float):
        self.logs, self.limit_s = logs, limit_s
        self.failed: list[str] = []
        self.running: list[Process] = []
        self.count = 0
        logs.mkdir(parents=True, exist_ok=True)

    def run(self, commands: list[Command], jobs: int, gpus: list[str] = ()) -> None:
        """`jobs` at a time, dealt to these GPUs (CUDA_VISIBLE_DEVICES); none: as the environment has it."""
        places: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for job in range(jobs):
            places.put({"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {})

        def at_a_place(command: Command) -> None:
            place = places.get()
            try:
                self.one(command, place)
            finally:
                places.put(place)

        with ThreadPoolExecutor(jobs) as pool:
            try:
                for command in commands:
                    if command.alone:
                        at_a_place(command)
                list(pool.map(at_a_place, [command for command in commands if not command.alone]))
            finally:
                stop_all(self.running)  # of an interrupt they know nothing

    def one(self, command: Command, place: dict[str, str]) -> None:
        """Its line, and its last ones."""
        log, started = self.logs / f"{command.name.replace(' ', '-').replace(',', '')}.txt", time.monotonic()
        environment = {**os.environ, **place, **command.environment}
        process = Process([str(word) for word in command.words], environment, log, ROOT)
        self.running.append(process)
        ended = process.status(self.limit_s)
        self.running.remove(process)
        status = f"over {self.limit_s:.0f} s" if ended is None else str(ended)
        output = log.read_text(errors="replace")
        if status == "0" and command.must_say not in output:
            status = f"without {command.must_say!r}"
        wrong = status != "0"
        self.count += 1
        if wrong:
            self.failed.append(command.name)
        lines = [line for line in output.splitlines() if line.strip()][-(LAST_OF_A_FAILURE if wrong else LAST_LINES) :]
        text = "".join(f"    {line[:160]}\n" for line in lines)
        said = f"{command.name}: {'FAIL' if wrong else 'ok'} ({status}, {time.monotonic() - started:.0f} s)"
        print(f"{said}\n{text}", end="", flush=True)

    def close(self, name: str, seconds: float) -> int:
        """The last line, and the exit status."""
        failed = f"{len(self.failed)} of {self.count} failed: {', '.join(self.failed)}; FAIL"
        print(f"{name}, {seconds:.0f} s: {failed if self.failed else f'{self.count} ok; PASS'}", flush=True)
        return int(bool(self.failed))
