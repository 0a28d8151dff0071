# SPDX-License-Identifier: Apache-2.0
"""vLLM's own selection code, as on an H100: nothing is chosen silently, nothing against the user."""

from pathlib import Path

import pytest

from conftest import run_python

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def chosen():
    return run_python(HERE / "select_on_cuda.py", marker="CHOSEN ")


@pytest.mark.parametrize("case", ["clamp", "no_clamp", "w4a16", "eplb"])
def test_our_experts_come_first(chosen, case):
    assert chosen[case] == "Nvfp4MoeExperts"


@pytest.mark.parametrize("case", ["marlin", "float16", "gelu_no_mul", "refused"])
def test_our_experts_stay_out(chosen, case):
    """The user's --moe-backend, what the library cannot do, and a device it refuses: vLLM's own choice stands."""
    assert chosen[case] == "MarlinExperts"


def test_a_layer_of_deepseek_v4_is_ours_and_the_log_says_so(chosen):
    assert chosen["layer"]["experts"] == "Nvfp4MoeExperts"
    assert chosen["layer"]["method"] == "ModelOptMoE"
    (line,) = chosen["layer"]["logged"]
    assert "is ACTIVE for NVFP4 MoE on cuda (NVIDIA H100 80GB HBM3): mode bf16, because the device has no FP4" in line


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("layer_marlin", "--moe-backend is marlin, which is the user's choice"),
        ("layer_float16", "dtype is torch.float16"),
    ],
)
def test_a_layer_that_is_not_ours_says_why(chosen, case, reason):
    assert chosen[case]["experts"] == "MarlinExperts"
    (line,) = chosen[case]["logged"]
    assert line.startswith(f"nvfp4_moe is NOT active for NVFP4 MoE: {reason}")


def test_the_original_deepseek_v4_is_ours_too(chosen):
    assert chosen["original"]["experts"] == "Nvfp4MoeExperts"
    assert chosen["original"]["method"] == "Mxfp4MoE"
    (line,) = chosen["original"]["logged"]
    assert "is ACTIVE for MXFP4 MoE on cuda (NVIDIA H100 80GB HBM3): mode bf16, because the device has no FP4" in line


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("original_marlin", "--moe-backend is marlin, which is the user's choice"),
        ("original_split", "intermediate_size_per_partition is 2064; it must be a multiple of 32"),
    ],
)
def test_mxfp4_that_is_not_ours_is_vllms_and_says_why(chosen, case, reason):
    assert chosen[case]["experts"] != "Nvfp4MoeExperts"
    assert chosen[case]["method"] == "Mxfp4MoEMethod"
    (line,) = chosen[case]["logged"]
    assert line.startswith(f"nvfp4_moe is NOT active for MXFP4 MoE: {reason}")


def test_our_linear_kernel_comes_first(chosen):
    assert chosen["linear"] == "Nvfp4MoeLinearKernel"


@pytest.mark.parametrize("case", ["linear_marlin", "linear_disabled", "linear_refused"])
def test_our_linear_kernel_stays_out(chosen, case):
    assert chosen[case].endswith("NvFp4LinearKernel")
    assert chosen[case] != "Nvfp4MoeLinearKernel"


def test_the_oracle_is_patched_only_while_a_layer_is_built(chosen):
    assert chosen["patched_after"] is False
