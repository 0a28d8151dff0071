# SPDX-License-Identifier: Apache-2.0
"""Calls without a workspace on the stand-in driver: for which does the library allocate?

Prints, as JSON, the bytes that the driver gave during a layer's first call, which takes the library's workspace, and
during a linear's, which takes torch's.
"""

import ctypes
import json
import sys
from pathlib import Path

import host_time
import torch


def driver_bytes() -> int:
    """Of the two copies of the stand-in, whichever the library has opened."""
    copies = map(ctypes.CDLL, ("libcuda.so.1", "libcuda.so"))
    return sum(ctypes.c_uint64.in_dll(copy, "mock_bytes").value for copy in copies)


def given_during(call) -> int:
    before = driver_bytes()
    call()
    return driver_bytes() - before


def main(op: Path) -> None:
    host_time.ops.SHARED_OBJECT = op
    device = torch.device("cpu")
    layer, linear = host_time.make_layer(host_time.make_weights(device)), host_time.make_linear(device)
    given, x = host_time.make_inputs(layer, 4), torch.zeros(4, host_time.HIDDEN, dtype=torch.bfloat16)
    found = {
        "linear": given_during(lambda: linear.forward(x)),
        "layer": given_during(lambda: layer.forward(given.x, given.ids, given.weights)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[sys.argv.index("--op") + 1]))
