# SPDX-License-Identifier: Apache-2.0
"""Layers that are not certainly ours, as on an H100: vLLM serves them as if we were not there, and one line says it."""

from pathlib import Path

import pytest

from conftest import run_python

HERE = Path(__file__).parent
ALONE = {
    "quark": "QuarkNvfp4MoEMethod is a quantisation method that this plugin does not know",
    "float16 experts": "dtype is torch.float16; it must be torch.bfloat16",
    "float16 linear": "dtype is torch.float16; it must be torch.bfloat16",
    "linear of an unknown method": "is a quantisation method that this plugin does not know",
}


@pytest.fixture(scope="module")
def left():
    return run_python(HERE / "left_alone_on_cuda.py", marker="LEFT ")


def test_what_is_ours_is_ours(left):
    assert (left["modelopt"]["class"], left["modelopt"]["method"]) == ("Nvfp4MoeExperts", "ModelOptMoE")


@pytest.mark.parametrize("case", ALONE)
def test_the_rest_is_vllms(left, case):
    assert left[case]["class"] in ("MarlinExperts", "MarlinNvFp4LinearKernel", "CutlassNvFp4LinearKernel")
    (line,) = left[case]["logged"]
    assert "NOT active" in line
    assert ALONE[case] in line


def test_a_method_that_is_left_alone_keeps_its_class(left):
    assert left["quark"]["method"] == "QuarkNvfp4MoEMethod"
