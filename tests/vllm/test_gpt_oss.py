# SPDX-License-Identifier: Apache-2.0
"""vLLM serves a tiny gpt-oss on the CPU with our experts: MXFP4, rows of gate and up in turn, biases."""

import agreement
import pytest

RANKS = {"tensor parallel": '{"tensor_parallel_size": 2}'}
RANKS["expert parallel"] = '{"tensor_parallel_size": 2, "enable_expert_parallel": true}'


@pytest.fixture(scope="module")
def served(serve, gpt_oss):
    return serve(gpt_oss["mxfp4"])


@pytest.fixture(scope="module")
def judged(judge, gpt_oss, served):
    return judge(gpt_oss["float32"], served)


def test_the_experts_are_ours_and_say_so(served):
    assert served["served_by"]["moe"] == ["Nvfp4MoeExperts"]
    assert served["output"].count("ACTIVE for MXFP4 MoE") == 1


def test_tokens_are_those_of_the_float32_reference(judged):
    agreement.check("gpt-oss, MXFP4", judged)


@pytest.mark.parametrize("kind", RANKS)
def test_two_ranks_give_the_tokens_of_one(serve, gpt_oss, served, judged, judge, kind):
    """Split, a rank has 64 values of each expert, the other 32: biases of w2 are added once."""
    two = serve(gpt_oss["mxfp4"], "--options", RANKS[kind])
    agreement.check(f"gpt-oss, {kind}", judge(gpt_oss["float32"], two))
    agreement.check_same(f"gpt-oss, one rank and two, {kind}", judged, served["tokens"], two["tokens"])
