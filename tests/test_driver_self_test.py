# SPDX-License-Identifier: Apache-2.0
"""What the first create asks of the driver on a chip that nobody ran the kernels on: the self-test, seen as in
test_driver_calls.py."""

import pytest

import test_driver_calls
from test_driver_calls import UNSUPPORTED

run = test_driver_calls.run  # the fixture
OWN, PORTABLE = 1, 2  # NVFP4_MOE_DEVICE_CUDA, _CUDA_PORTABLE


def ended_well(status: int, lines: list[str]) -> bool:
    """The program's last layers are of mode fp8, which not every family has."""
    return status == 0 or (status == UNSUPPORTED and "mode is 3 (fp8)" in lines[-1])


def test_no_self_test_where_the_kernels_were_proved(run):
    for device_kind in (OWN, PORTABLE):
        assert not [line for line in run(device_kind)[1] if "compare_values" in line]


@pytest.mark.parametrize("capability", [100, 103, 120, 121])
def test_a_chip_that_nobody_ran_is_tested_at_the_first_create(run, capability):
    """Once, whatever is made there; and every launch of a forward is as ever."""
    status, lines = run(OWN, capability)
    if status == UNSUPPORTED and "they need compute capability" in lines[-1]:
        pytest.skip("this build has no kernels of its own for it")
    assert ended_well(status, lines), lines[-1]
    first = next(place for place, line in enumerate(lines) if line.startswith("begin "))
    compared = [place for place, line in enumerate(lines) if "cuLaunchKernelEx compare_values" in line]
    assert len(compared) >= 3 * 4 * 2  # modes and scales; layers and a linear; many tokens and few
    assert compared[-1] < first
    # The oracle computed, too: it runs once for a layer and a mode, own kernels at least twice.
    assert sum("gemm_portable" in line for line in lines[:first]) == 3 * (3 * 2 + 1)
    assert sum("cuMemFree" in line for line in lines[:first]) > 50, "its memory goes back"


@pytest.mark.parametrize("capability", [100, 120])
def test_kernels_that_compute_something_else_are_refused_with_the_numbers(run, capability, monkeypatch):
    if not ended_well(*run(OWN, capability)):
        pytest.skip("this build has no kernels of its own for it")
    monkeypatch.setenv("MOCK_DIFFERENCE", "1")
    status, lines = run(OWN, capability)
    assert status == UNSUPPORTED
    assert "device_kind is 1 (own kernels), which fail their self-test on CUDA device 0" in lines[-1]
    assert (
        f"(compute capability {capability // 10}.{capability % 10}): mode Bf16, Static scales, SwiGLU, 203" in lines[-1]
    )
    assert "row 0, column 0 is 0 by its own kernels and 0 by the portable ones" in lines[-1]
    assert "Pass 2, the portable kernels (cuda-portable)" in lines[-1]
    assert run(PORTABLE, capability)[0] == 0
