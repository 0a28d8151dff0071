# SPDX-License-Identifier: Apache-2.0
"""vLLM serves a tiny Nemotron-H on the CPU with our experts: relu2 without a gate, in a latent width."""

import agreement
import pytest


@pytest.fixture(scope="module")
def served(serve, nemotron_h):
    return serve(nemotron_h["modelopt"])


def test_the_experts_are_ours_and_say_so(served):
    assert served["served_by"]["moe"] == ["Nvfp4MoeExperts"]
    assert served["output"].count("ACTIVE for NVFP4 MoE") == 1


def test_tokens_are_those_of_the_float32_reference(served, judge, nemotron_h):
    agreement.check("Nemotron-H", judge(nemotron_h["float32"], served))
