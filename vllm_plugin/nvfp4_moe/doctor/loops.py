# SPDX-License-Identifier: Apache-2.0
"""Does a text end in a loop? Of token ids, or of anything that compares."""

from collections.abc import Sequence
from typing import NamedTuple

LONGEST_PERIOD = 64
LEAST_REPEATS, LEAST_LENGTH = 3, 8


class Loop(NamedTuple):
    """A tail that repeats itself."""

    start: int  # of the first thing that belongs to it
    period: int
    length: int

    @property
    def repeats(self) -> float:
        """How often, the last one perhaps in part."""
        return self.length / self.period


def tail_loop(things: Sequence) -> Loop | None:
    """The longest tail that has a period; the shortest period of equally long ones. None if it is no loop."""
    best = None
    for period in range(1, min(LONGEST_PERIOD, len(things) // LEAST_REPEATS) + 1):
        start = len(things) - period
        while start > 0 and things[start - 1] == things[start - 1 + period]:
            start -= 1
        length = len(things) - start
        if length >= max(LEAST_REPEATS * period, LEAST_LENGTH) and (best is None or start < best.start):
            best = Loop(start, period, length)
    return best


def repetition(things: Sequence, n: int = 4) -> float:
    """Share of runs of n that occurred before: 0 in a text that never repeats itself, near 1 in a loop."""
    runs = [tuple(things[at : at + n]) for at in range(len(things) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
