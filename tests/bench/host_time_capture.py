# SPDX-License-Identifier: Apache-2.0
"""Calls without a workspace while the stand-in driver says that every stream is being captured: who brings the memory?

Prints, as JSON, the error of a layer's call, for which the library would make memory, and of a linear's, which has
torch's.
"""

import ctypes
import json
from pathlib import Path

import host_time
import torch


def error_of(call) -> str:
    """Its text; empty if the call succeeds."""
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


def main(op: Path) -> None:
    host_time.ops.SHARED_OBJECT = op
    device = torch.device("cpu")
    layer, linear = host_time.make_layer(host_time.make_weights(device)), host_time.make_linear(device)
    given, x = host_time.make_inputs(layer, 4), torch.zeros(4, host_time.HIDDEN, dtype=torch.bfloat16)
    for name in ("libcuda.so.1", "libcuda.so"):  # two copies: whichever the library has opened
        ctypes.c_int.in_dll(ctypes.CDLL(name), "mock_capturing").value = 1
    found = {
        "layer": error_of(lambda: layer.forward(given.x, given.ids, given.weights)),
        "linear": error_of(lambda: linear.forward(x)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    import sys

    main(Path(sys.argv[sys.argv.index("--op") + 1]))
