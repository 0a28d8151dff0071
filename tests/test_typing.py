# SPDX-License-Identifier: Apache-2.0
"""What editors and type checkers see: every public name, and a mistake in a call where it is made."""

import json
import subprocess
import sys

import pytest

import nvfp4_moe

RIGHT = """
import torch
from nvfp4_moe import Checkpoint, Error, Layer, LayerWeights, Linear, LinearWeights, quantize

def forward(weights: LayerWeights, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    try:
        with Layer(hidden_size=64, intermediate_size=32, num_experts=4, top_k=2, mode="bf16").prepare(weights) as layer:
            return layer(x, ids, workspace=None)
    except Error as error:
        raise SystemExit(error.status)

rows: int = Checkpoint("folder").layer_info(3).num_experts
scale: torch.Tensor = quantize(torch.zeros(1, 16), swizzled=True).block_scale
"""

# Each line has one mistake.
WRONG = """
from nvfp4_moe import Checkpoint, Layer, Linear, quantize, no_such_name
Layer(hidden_size="64", intermediate_size=32, num_experts=4, top_k=2)
Layer(hidden_size=64, intermediate_size=32, num_experts=4)
Layer(hidden_size=64, intermediate_size=32, num_experts=4, top_k=2, modus="bf16")
Linear(in_features=64, out_features=32).prepare(7)
Linear(in_features=64, out_features=32).forwards
Checkpoint("folder").layer_info("3")
quantize([1.0, 2.0])
"""


def test_the_written_names_are_the_modules_names():
    assert sorted(nvfp4_moe.__all__) == sorted(["__version__", *nvfp4_moe._HOMES])
    assert {name for name in nvfp4_moe.__all__ if not hasattr(nvfp4_moe, name)} == set()
    assert set(nvfp4_moe.__all__) <= set(dir(nvfp4_moe))


def test_a_type_checker_finds_every_mistake_and_no_other(tmp_path):
    pytest.importorskip("basedpyright", reason="the type checker is installed by make setup only")
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    paths = [path for path in sys.path if path.endswith("vllm_plugin")]
    settings = {"include": ["*.py"], "typeCheckingMode": "standard", "extraPaths": paths}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--project", str(tmp_path)]
    report = json.loads(subprocess.run([*command, "--pythonpath", sys.executable], capture_output=True).stdout)
    found = report["generalDiagnostics"]
    lines = [(d["file"].rpartition("/")[2], d["range"]["start"]["line"]) for d in found if d["severity"] == "error"]
    assert sorted(set(lines)) == [("wrong.py", line) for line in range(1, len(WRONG.splitlines()))]
