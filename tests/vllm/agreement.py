# SPDX-License-Identifier: Apache-2.0
"""When two greedy tokens must be equal: the rule "equal where the argmax margin allows", for all tests of this folder.

vLLM computes in bf16, and two ranks add their parts in another order than one. So two logits, or the scores of two
experts, that are closer than this rounding may change places; an expert that changes places moves every logit. The
arbiter is the float32 reference (reference_logits.py), which sees the same tokens before: a token is DECIDED where

    margin  > MARGIN     its best logit leads the second by more than that many standard deviations of the logits, and
    routing > ROUTING    in every layer the last chosen expert leads the first one left out by more than that many
                         standard deviations of the scores.

Against the reference (`check`): decided tokens are equal and at least ENOUGH_DECIDED of all; MOST of all are equal.
Between two runs (`check_same`: one rank and two): the first token of a prompt that differs is undecided; behind it the
prompts are no longer the same text, and both runs pass `check` anyway. MOST_SAME of all tokens agree.

Both thresholds are three to four times what rounding did to the tiny DeepSeek-V4 (2026-11-21, vLLM 0.32, one rank
and two): each of its 5 tokens of 128 that differed had a margin up to 0.015 or a routing up to 0.007. What a run
measures is printed at the end of the tests: how far a served token lay below the reference's best at most (`deficit`),
and the margin and routing of the tokens that differ, beside the thresholds that excuse them.
"""

MARGIN = 0.05
ROUTING = 0.03
ENOUGH_DECIDED = 0.3
MOST = 0.85
MOST_SAME = 0.5

measured: list[str] = []  # printed by conftest.py


def decided(token: dict[str, float]) -> bool:
    """Must this token, of the output of reference_logits.py, equal the reference's?"""
    return token["margin"] > MARGIN and token["routing"] > ROUTING


def check(label: str, judged: list[dict[str, float]]) -> None:
    """Assert the rule on all tokens of a served model."""
    must_equal = [token for token in judged if decided(token)]
    wrong = [token for token in judged if token["deficit"]]
    measured.append(
        f"{label}: {len(judged) - len(wrong)} of {len(judged)} tokens are the float32 reference's, "
        f"{sum(not token['deficit'] for token in must_equal)} of {len(must_equal)} decided ones; largest deficit "
        f"{max(token['deficit'] for token in judged):.4f}{differing(wrong)}"
    )
    assert not any(token["deficit"] for token in must_equal), [t for t in must_equal if t["deficit"]]
    assert len(must_equal) >= ENOUGH_DECIDED * len(judged)
    assert len(judged) - len(wrong) >= MOST * len(judged)


def check_lossy(label: str, judged: list[dict[str, float]], most: float) -> None:
    """Where activations lose more than bf16: `most` of all tokens are the reference's."""
    wrong = [token for token in judged if token["deficit"]]
    same = len(judged) - len(wrong)
    measured.append(f"{label}: {same} of {len(judged)} tokens are the float32 reference's{differing(wrong)}")
    assert same >= most * len(judged)


def check_same(label: str, judged: list[dict[str, float]], tokens: list[list[int]], others: list[list[int]]) -> None:
    """Assert that two runs give the same tokens; `judged` is of `tokens`, prompt after prompt."""
    start, num_same, first_differing = 0, 0, []
    for mine, other in zip(tokens, others, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b), len(mine))
        if same < len(mine):
            first_differing.append(judged[start + same])
        start, num_same = start + len(mine), num_same + same
    measured.append(f"{label}: {num_same} of {start} tokens are the same{differing(first_differing)}")
    assert not any(map(decided, first_differing)), first_differing
    assert num_same >= MOST_SAME * start


def differing(tokens: list[dict[str, float]]) -> str:
    """Why these tokens may differ."""
    if not tokens:
        return ""
    reasons = ", ".join(f"{token['margin']:.4f}/{token['routing']:.4f}" for token in tokens)
    return f"; margin/routing of those that differ, decided above {MARGIN}/{ROUTING}: {reasons}"
