# SPDX-License-Identifier: Apache-2.0
"""What makes an engine decode a given text (gpu/full/forced.py), by vLLM's own bookkeeping of a batch's rows."""

import sys
from pathlib import Path

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from vllm import SamplingParams

sys.path.append(str(Path(__file__).parents[1] / "gpu"))
from full.forced import Forced


def chosen(forced: Forced, rows: int) -> list[int]:
    """Of logits whose best is id 0."""
    logits = torch.zeros(rows, 16)
    logits[:, 0] = 5.0
    return forced.apply(logits).argmax(-1).tolist()


def test_rows_take_their_texts_and_keep_them_when_they_move_or_come_anew():
    forced = Forced(None, torch.device("cpu"), False)
    texts = [SamplingParams(extra_args={"forced": ids}) for ids in ([3, 4, 5], [7, 8, 9])]
    outputs = [[], [], []]
    params = [SamplingParams(), *texts]

    def step(*removed: int, added=(), moved=()) -> list[int]:
        """Rows change; then a step, after which vLLM may not know the ids yet."""
        rows = [(row, params[request], [1], outputs[request]) for row, request in added]
        forced.update_state(BatchUpdate(batch_size=3, removed=removed, added=rows, moved=moved))
        found = chosen(forced, 3)
        for output in outputs:
            output.append(-1)
        return found

    assert step(added=[(0, 0), (1, 1), (2, 2)]) == [0, 3, 7]
    assert step(0, moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)]) == [8, 4, 0]
    assert step(1, added=[(0, 1), (2, 2)]) == [5, 0, 9], "under pipeline parallel a request comes anew"
    assert step() == [0, 0, 0], "an engine that steps ahead is free"
