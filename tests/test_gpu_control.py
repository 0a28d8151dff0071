# SPDX-License-Identifier: Apache-2.0
"""The judge of a model that loses bits (gpu/full/control.py): it passes equal noise, and finds what is worse."""

import sys
from pathlib import Path

import numpy
import pytest

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
from full import control

SHAPE = 20, 16, 256
REFERENCE = numpy.random.default_rng(1).normal(size=SHAPE)


def said(noise: float, seed: int, wrong: float = 0.0) -> control.Said:
    """An engine's: the reference's logits with noise, and in a part of the contexts others altogether."""
    random = numpy.random.default_rng(seed)
    logits = REFERENCE + noise * random.normal(size=SHAPE)
    logits = numpy.where(random.random(SHAPE[:2])[..., None] < wrong, random.normal(size=SHAPE), logits)
    logprobs = logits - numpy.logaddexp.reduce(logits, axis=-1, keepdims=True)
    best = numpy.argsort(-logprobs, axis=-1)[..., :20]
    return [
        [{int(id): float(row[id]) for id in ids} for row, ids in zip(*prompt, strict=True)]
        for prompt in zip(logprobs, best, strict=True)
    ]


CONTROL = said(0.1, 2)


@pytest.mark.parametrize(
    ("noise", "wrong", "good"),
    [
        (0.1, 0.0, [True, True, True]),
        (0.15, 0.0, [True, False, True]),
        (0.4, 0.0, [False, False, False]),
        (0.1, 0.02, [True, True, False]),
    ],
)
def test_what_is_worse_than_the_control_is_found(noise, wrong, good):
    found = control.compare(REFERENCE, said(noise, 3, wrong), CONTROL)
    assert [is_good for is_good, _ in found] == good, found


def test_a_token_that_only_ours_get_wrong_is_named():
    """The one of the third prompt's fifth context, whose worst token ours find best."""
    ours = [[dict(step) for step in steps] for steps in CONTROL]
    worst = int(REFERENCE[2, 4].argmin())
    ours[2][4] = {worst: 0.0}
    good, line = control.compare(REFERENCE, ours, CONTROL)[2]
    assert not good
    assert ": 2.4 " in line


def test_two_gpus_may_be_as_far_from_one_as_the_controls():
    near, far = said(0.1, 5), said(0.3, 6)
    assert control.compare_layouts((CONTROL, near), (CONTROL, said(0.1, 7)))[0]
    assert not control.compare_layouts((CONTROL, far), (CONTROL, near))[0]


def test_an_engine_that_is_the_reference_is_at_no_distance():
    found = control.judged(REFERENCE, said(0.0, 8))
    assert not found.wrong.any()
    assert found.error.max() < 1e-12


def test_fewer_tokens_of_free_texts_are_chance_or_not():
    judged = [[{"deficit": float(n < wrong)} for n in range(120)] for wrong in (22, 26, 45)]
    assert control.compare_free(judged[1], judged[0])[0]
    assert not control.compare_free(judged[2], judged[0])[0]
    assert control.compare_free(judged[0], judged[2])[0], "better is no fault"


def test_chances():
    """One and the same of two, by hand: 2 of 2 heads; 0 good of 1 where 1 of 2 is good."""
    assert control.coins(2, 2) == 0.25
    assert control.coins(0, 5) == 1
    assert control.drawn(0, 1, 1, 1) == 0.5
