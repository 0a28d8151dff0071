# SPDX-License-Identifier: Apache-2.0
"""What a forward costs the host in eager mode, on a stand-in for the driver: bounds that only a blunder passes."""

import pytest

from bench import host_time_stand_in


@pytest.fixture(scope="module")
def measured():
    """Microseconds of a forward of 64 tokens."""
    if not host_time_stand_in.is_built():
        pytest.skip("CMake builds the op and cargo the library first, `make build`")
    try:
        return host_time_stand_in.run(["--tokens", "64", "--calls", "1000"])["64"]
    except RuntimeError as error:
        if "has no CUDA kernels" in str(error):
            pytest.skip("the library was built without nvcc")
        raise


def test_all_launches_are_made_within_40_us(measured):
    assert 0 < measured["library"] < measured["op"] < measured["apply"] < 40


def test_the_library_plans_a_call_within_5_us(measured):
    """About 0.6 us on a machine of 2026; 13 while it found a tile's rows by an integral in every call."""
    assert measured["library"] < 5


def test_python_and_the_op_take_little_beside_the_library(measured):
    """About 4 us on a machine of 2026; 10 before strings of error messages were made only for errors."""
    assert measured["apply"] - measured["library"] < 20
