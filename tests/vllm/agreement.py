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


def check(judged: list[dict[str, float]]) -> None:
    """Assert the rule on the output of reference_logits.py."""
    decided = [t for t in judged if t["margin"] > MARGIN and t["routing"] > ROUTING]
    equal = sum(t["deficit"] == 0 for t in judged)
    print(f"{equal} of {len(judged)} tokens equal the float32 reference's, {len(decided)} decided")
    assert all(t["deficit"] == 0 for t in decided), [t for t in decided if t["deficit"]]
    assert len(decided) >= ENOUGH_DECIDED * len(judged)
    assert equal >= MOST * len(judged)
