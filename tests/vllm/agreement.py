"""When a greedy token must equal that of the float32 reference.

vLLM computes in bf16, so two logits, or the scores of two experts, that are closer than its rounding may change places;
an expert that changes places moves every logit. So a token is DECIDED where the reference's best logit leads the second
by more than MARGIN standard deviations of the logits, and where in every layer the last chosen expert leads the first
one left out by more than ROUTING standard deviations of the scores. Decided tokens must be equal, and they must be
enough to mean something; of all tokens, MOST must be equal.
"""

MARGIN = 0.05
ROUTING = 0.02
ENOUGH_DECIDED = 0.25
MOST = 0.85


def decided(token: dict[str, float]) -> bool:
    """Must this token, of the output of reference_logits.py, equal the reference's?"""
    return token["margin"] > MARGIN and token["routing"] > ROUTING


def check(judged: list[dict[str, float]]) -> None:
    """Assert the rule on all tokens of a served model."""
    must_equal = [token for token in judged if decided(token)]
    equal = sum(token["deficit"] == 0 for token in judged)
    print(f"{equal} of {len(judged)} tokens equal the float32 reference's, {len(must_equal)} decided")
    assert all(token["deficit"] == 0 for token in must_equal), [t for t in must_equal if t["deficit"]]
    assert len(must_equal) >= ENOUGH_DECIDED * len(judged)
    assert equal >= MOST * len(judged)


def check_same(judged: list[dict[str, float]], tokens: list[list[int]], others: list[list[int]]) -> None:
    """Assert that two runs give the same tokens: where a prompt's first differ, the reference calls it undecided.

    `judged` is of `tokens`, prompt after prompt. Ranks add their parts in bf16, so runs of one and of two ranks round
    differently; after the first difference the prompts are no longer the same text.
    """
    start, num_same = 0, 0
    for mine, other in zip(tokens, others, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b), len(mine))
        assert same == len(mine) or not decided(judged[start + same]), (mine, other, judged[start + same])
        start, num_same = start + len(mine), num_same + same
    print(f"{num_same} of {start} tokens are the same")
    assert num_same >= start / 2
