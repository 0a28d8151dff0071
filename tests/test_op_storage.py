# SPDX-License-Identifier: Apache-2.0
"""Prepared weights keep their place: the op on a stand-in for the driver, where host memory plays the GPU's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import host_time_stand_in

PROGRAM = """
import sys
import torch
from pathlib import Path
from nvfp4_moe import Layer, LayerWeights, Linear, LinearWeights, ops

ops.SHARED_OBJECT = Path(sys.argv[1])
OPS = ops.load()
u8 = lambda *shape: torch.empty(shape, dtype=torch.uint8)

def aligned(size):
    whole = u8(size + 256)
    return whole[-whole.data_ptr() % 256 :][:size]

layer = Layer(hidden_size=64, intermediate_size=32, num_experts=4, top_k=2)
layer_weights = lambda: LayerWeights(
    u8(4, 64, 32), u8(4, 64, 4), torch.ones(4, 2), u8(4, 64, 16), u8(4, 64, 2), torch.ones(4)
)
linear = Linear(in_features=64, out_features=48)
linear_weights = lambda: LinearWeights(u8(48, 32), u8(48, 4), torch.ones(1))

given = aligned(OPS.layer_storage_size(layer.id))
OPS.layer_prepare(*layer_weights().tensors(), 0.0, 0.0, False, given, layer.id)
assert OPS.layer_storage(layer.id).data_ptr() == given.data_ptr()
layer.prepare(layer_weights())
assert layer.expert_slices.data_ptr() == given.data_ptr()

assert OPS.linear_storage(linear.id) is None
given, w = aligned(OPS.linear_storage_size(linear.id)), linear_weights()
OPS.linear_prepare(w.weight, w.block_scale, w.global_scale, None, [], 0.0, given, linear.id)
assert OPS.linear_storage(linear.id).data_ptr() == given.data_ptr()
before = w.weight._use_count()
linear.prepare(w)
assert linear.storage.data_ptr() == given.data_ptr()
assert w.weight._use_count() == before, "the checkpoint's tensors may be freed"

short = given[:-1]
try:
    OPS.linear_prepare(w.weight, w.block_scale, w.global_scale, None, [], 0.0, short, linear.id)
    raise AssertionError("took a storage that is too small")
except RuntimeError as error:
    assert f"storage_size is {short.numel()}" in str(error), error
assert OPS.linear_storage(linear.id).numel() == given.numel(), "a refusal leaves the place that it has"
print("done")
"""


def test_a_layer_and_a_linear_prepare_again_where_they_did_before(tmp_path: Path):
    if not host_time_stand_in.is_built():
        pytest.skip("CMake builds the op and cargo the library first, `make build`")
    host_time_stand_in.build(tmp_path)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "MOCK_QUIET": "1"}
    environment["PYTHONPATH"] = str(host_time_stand_in.ROOT / "vllm_plugin")
    command = [sys.executable, "-c", PROGRAM, tmp_path / "op.so"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "has no CUDA kernels" in done.stderr:
        pytest.skip("the library was built without nvcc")
    assert done.stdout == "done\n", done.stderr[-3000:]
