# SPDX-License-Identifier: Apache-2.0
"""vLLM 0.32 serves a tiny DeepSeek-V4 on the CPU with our experts, in every NVFP4 flavour."""

import agreement
import pytest
import reload_check
from tiny_deepseek_v4 import COMPRESS_RATIOS, NVFP4_FLAVOURS

LAYERS = len(COMPRESS_RATIOS)
PARALLEL = '{"tensor_parallel_size": 2, "enable_expert_parallel": true}'


@pytest.fixture(scope="module")
def served(serve, deepseek_v4):
    return {flavour: serve(deepseek_v4[flavour]) for flavour in NVFP4_FLAVOURS}


def active_line(served: dict) -> str:
    """The one line that says that our experts serve, and how."""
    active = [line for line in served["output"].splitlines() if "ACTIVE for NVFP4 MoE" in line]
    assert len(active) == 1
    return active[0]


@pytest.mark.parametrize("flavour", NVFP4_FLAVOURS)
def test_our_experts_serve_and_say_so(served, flavour):
    assert served[flavour]["served_by"]["moe"] == ["Nvfp4MoeExperts"]
    assert "mode bf16, because the device has no FP4 tensor cores" in active_line(served[flavour])


def test_flavours_give_identical_tokens(served):
    assert served["mixed"]["tokens"] == served["modelopt"]["tokens"] == served["compressed-tensors"]["tokens"]


def test_the_engines_own_linears_are_the_same_arithmetic_in_all_flavours(served):
    """Else the flavours would differ in what they do not name, and only on the CPUs for which vLLM has a kernel."""
    bf16 = ["exact_linear"]
    linears = {flavour: served[flavour]["engine_linears"] for flavour in NVFP4_FLAVOURS}
    assert linears == {"mixed": ["DecodedFp8Linear", *bf16], "modelopt": bf16, "compressed-tensors": bf16}


def test_tokens_do_not_depend_on_what_the_cpu_has(serve, served, deepseek_v4):
    """vLLM chooses kernels by whether torch says that there are AMX tiles; here it says the reverse."""
    assert serve(deepseek_v4["mixed"], "--flip-amx")["tokens"] == served["mixed"]["tokens"]


def test_tokens_are_those_of_the_float32_reference(served, judge, deepseek_v4):
    agreement.check("DeepSeek-V4", judge(deepseek_v4["float32"], served["mixed"]))


def test_without_the_moe_tokens_change(serve, served, deepseek_v4):
    """Negative control: the tests above would see a MoE that computes nothing."""
    zeroed = serve(deepseek_v4["mixed"], NVFP4_MOE_TEST_ZERO_MOE="1")
    pairs = zip(zeroed["tokens"], served["mixed"]["tokens"], strict=True)
    assert all(without != with_moe for without, with_moe in pairs)


def test_two_ranks_with_expert_parallel_give_the_same_tokens(serve, served, judge, deepseek_v4):
    parallel = serve(deepseek_v4["mixed"], "--options", PARALLEL)
    agreement.check("DeepSeek-V4, two ranks", judge(deepseek_v4["float32"], parallel))
    alone = served["mixed"]
    agreement.check_same(
        "DeepSeek-V4, one rank and two", judge(deepseek_v4["float32"], alone), alone["tokens"], parallel["tokens"]
    )
    # Every rank says so, with half of the experts.
    assert parallel["output"].count("ACTIVE for NVFP4 MoE") == 2


def test_weights_loaded_again_while_serving_are_the_new_models(serve, served, deepseek_v4):
    """Twice to the same model with other experts, where the first one's were; then experts move, as under EPLB."""
    reloaded = serve(deepseek_v4["mixed"], "--reload", str(deepseek_v4["cast"]))
    fresh = serve(deepseek_v4["cast"])
    reload_check.check(reloaded, served["mixed"]["tokens"], fresh["tokens"], num_moe=LAYERS, num_linears=0)


def test_the_original_mxfp4_experts_are_served_exactly(serve, judge, deepseek_v4):
    """Mode bf16, as everywhere without FP4 tensor cores."""
    original = serve(deepseek_v4["original"])
    assert original["served_by"]["moe"] == ["Nvfp4MoeExperts"]
    assert "ACTIVE for MXFP4 MoE on cpu" in original["output"]
    assert "NVFP4 MoE" not in original["output"]
    agreement.check("DeepSeek-V4, original", judge(deepseek_v4["cast-float32"], original))


def test_mode_fp8_gives_the_original_and_its_cast_the_same_tokens(serve, deepseek_v4):
    """The cast that exporters make beforehand is the one that is made at load, to the bit."""
    original, cast = (serve(deepseek_v4[flavour], NVFP4_MOE_MODE="fp8") for flavour in ("original", "cast"))
    assert "ACTIVE for MXFP4 MoE on cpu" in original["output"]
    assert original["tokens"] == cast["tokens"]


def test_mode_fp8_serves_what_was_cast(serve, judge, deepseek_v4):
    """On the checkpoint that it is for."""
    fp8 = serve(deepseek_v4["cast"], NVFP4_MOE_MODE="fp8")
    assert "mode fp8" in active_line(fp8)
    agreement.check_lossy("DeepSeek-V4, cast, mode fp8", judge(deepseek_v4["cast-float32"], fp8), most=0.5)


def test_mode_fp8_refuses_other_weights(serve, deepseek_v4):
    with pytest.raises(AssertionError, match=r"no power of two in \d+ of \d+ places; mode fp8 needs"):
        serve(deepseek_v4["mixed"], NVFP4_MOE_MODE="fp8")
