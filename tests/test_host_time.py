# SPDX-License-Identifier: Apache-2.0
"""What a forward costs the host in eager mode, on a stand-in for the driver: bounds that only a blunder passes."""

import pytest

from bench import host_time_stand_in


def on_the_stand_in(arguments: list[str], script: str) -> dict:
    if not host_time_stand_in.is_built():
        pytest.skip("CMake builds the op and cargo the library first, `make build`")
    try:
        return host_time_stand_in.run(arguments, script)
    except RuntimeError as error:
        if "has no CUDA kernels" in str(error):
            pytest.skip("the library was built without nvcc")
        raise


@pytest.fixture(scope="module")
def measured():
    """Microseconds of a forward of 64 tokens."""
    return on_the_stand_in(["--tokens", "64", "--calls", "1000"], "host_time.py")["64"]


def test_all_launches_are_made_within_40_us(measured):
    assert 0 < measured["library"] < measured["op"] < measured["apply"] < 40


def test_the_library_plans_a_call_within_5_us(measured):
    """About 0.6 us on a machine of 2026; 13 while it found a tile's rows by an integral in every call."""
    assert measured["library"] < 5


def test_python_and_the_op_take_little_beside_the_library(measured):
    """About 4 us on a machine of 2026; 10 before strings of error messages were made only for errors."""
    assert measured["apply"] - measured["library"] < 20


def test_a_linear_with_scratch_of_each_call_takes_little_more(measured):
    """About 2 us on a machine of 2026, Python's part included."""
    assert measured["linear"] - measured["given"] < 15


def test_a_linears_scratch_is_torchs():
    """Whose allocator knows streams and graphs, and is what vLLM measures."""
    allocated = on_the_stand_in([], "host_time_memory.py")
    assert allocated["linear"] == 0
    assert allocated["layer"] > 0  # which has the library's, where nobody brings one
