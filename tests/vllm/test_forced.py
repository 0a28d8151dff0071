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


def test_rows_take_their_texts_and_keep_them_when_they_move():
    forced = Forced(None, torch.device("cpu"), False)
    texts = [SamplingParams(extra_args={"forced": ids}) for ids in ([3, 4, 5], [7, 8, 9])]
    added = [(0, SamplingParams(), [1], []), *((row, text, [1], []) for row, text in enumerate(texts, 1))]
    forced.update_state(BatchUpdate(batch_size=3, removed=[], added=added, moved=[]))
    assert chosen(forced, 3) == [0, 3, 7]
    move = (2, 0, MoveDirectionality.UNIDIRECTIONAL)
    forced.update_state(BatchUpdate(batch_size=2, removed=[0], added=[], moved=[move]))
    assert chosen(forced, 2) == [8, 4]
    forced.update_state(None)
    assert chosen(forced, 2) == [9, 5]
    assert chosen(forced, 2) == [0, 0], "an engine that steps ahead is free"
