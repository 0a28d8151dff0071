"""Devices: tests that name one the machine lacks are skipped, and counted."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _skip_missing_device(request):
    device = getattr(request.node, "callspec", None) and request.node.callspec.params.get("device")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
