# SPDX-License-Identifier: Apache-2.0
"""Devices: tests that name one the machine lacks are skipped, and the summary says how many."""

import os

import pytest
import torch

NO_GPU = "no GPU on this machine"
NO_FP8 = "mode fp8 is Hopper's and the CPU's"


@pytest.fixture(autouse=True)
def _skip_missing_device(request):
    device = getattr(request.node, "callspec", None) and request.node.callspec.params.get("device")
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    if device == "cuda" and request.node.callspec.params.get("mode") == "fp8" and capability() != "9.0":
        pytest.skip(NO_FP8)


def capability() -> str:
    """Of the GPU, or of the one that tests/standin plays."""
    return os.environ.get("STANDIN_CAPABILITY") or "{}.{}".format(*torch.cuda.get_device_capability())


def pytest_collection_modifyitems(items):
    """The portable kernels have no mode fp8: what asks for both is no test (test_fp8.py has the refusal)."""
    no_test = {"mode": "fp8", "device": "cuda-portable"}.items()
    items[:] = [item for item in items if not (hasattr(item, "callspec") and no_test <= item.callspec.params.items())]


def pytest_terminal_summary(terminalreporter):
    num_skipped = sum(NO_GPU in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if num_skipped:
        terminalreporter.write_line(f"GPU tests not run: {num_skipped} ({NO_GPU})")
