# SPDX-License-Identifier: Apache-2.0
"""What `make gpu-serve-full` is made of, without a GPU and without vLLM."""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

GPU = Path(__file__).parent / "gpu"
sys.path.insert(0, str(GPU))
import serve_full

from gpu.full import humming_experts, process, right, weights

RANK = "from full import ahead; ahead.wait(); print('on the GPU', flush=True)"
FRONT = f"""
import multiprocessing, runpy
from full import ahead
def rank():
    {RANK}
if __name__ == "__main__":
    ahead.wait()  # a front end touches no GPU, and does not wait
    child = multiprocessing.get_context("spawn").Process(target=rank)
    child.start()
    child.join()
    raise SystemExit(child.exitcode)
"""


def test_a_process_waits_for_its_turn(tmp_path):
    front, log = tmp_path / "front.py", tmp_path / "log"
    front.write_text(FRONT)
    begun = process.InTurn([sys.executable, str(front)], os.environ | {"PYTHONPATH": str(GPU)}, log)
    assert begun.imported(60) is None
    time.sleep(0.5)
    assert log.read_text() == "", "it did not wait"
    assert begun.take_turn(60) is None, log.read_text()
    assert log.read_text() == "on the GPU\n"


def test_who_cannot_wait_for_its_turn_says_why(tmp_path):
    begun = process.InTurn([sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ), tmp_path / "log")
    assert begun.imported(60) == "exit status 3 before its turn"
    slow = process.InTurn([sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ), tmp_path / "slow")
    assert slow.imported(0.1) == "it has not imported after 0 s"
    slow.stop()


def test_who_is_stopped_in_its_turn_says_where_it_was(tmp_path):
    front, log = tmp_path / "front.py", tmp_path / "log"
    front.write_text(FRONT.replace("print('on the GPU', flush=True)", "import time; time.sleep(60)"))
    begun = process.InTurn([sys.executable, str(front)], os.environ | {"PYTHONPATH": str(GPU)}, log)
    assert begun.imported(60) is None
    assert begun.take_turn(0.5) == "stopped after 0 s"
    assert " in rank" in log.read_text()


def report(**more) -> dict:
    return {"start_s": 10.0, "kv_blocks": 100, "logged": {"load_s": 2.0}} | more


def test_a_record_has_all_rounds_of_all_runs():
    """The second run was stopped before its first tokens; it was the one whose step was taken apart."""
    profile = {"8": {"parts": {"experts": 5.0}, "busy": {"any": 6.0}, "launches": {"all": 7.0}}}
    whole = report(step_ms={"8": [4.0, 2.0]}, first_token_ms={"128": [30.0]})
    part = report(step_ms={"8": [8.0]}, profile=profile)
    found = {(quantity, size): values for _, quantity, size, *values in serve_full.rows("ours", [whole, part])}
    assert found["step_ms", "8"] == ["4.000", "2.000", "8.000", 3]
    assert found["tokens_per_s", "8"] == ["2000.0", "1000.0", "4000.0", 3]
    assert found["first_token_ms", "128"] == ["30.000", "30.000", "30.000", 1]
    assert found["kernels_us experts", "8"][0] == "5.0"
    assert found["load_s", ""][-1] == 2


class Experts(torch.nn.Module):
    """What right.py asks of a layer of vLLM's; the backend keeps nothing of its parameters but the first one's name."""

    def __init__(self, backend):
        super().__init__()
        config = {"hidden_dim": 64, "intermediate_size_per_partition": 32, "num_experts": 8, "num_local_experts": 4}
        self.moe_config = SimpleNamespace(**config, experts_per_token=2)
        self.quant_method = SimpleNamespace(apply=backend)
        self.expert_map = torch.tensor([-1, -1, -1, -1, 0, 1, 2, 3], dtype=torch.int32)
        for name, rows, columns in (("w13", 64, 64), ("w2", 64, 32)):
            scales = torch.zeros(4, rows, columns // 16, dtype=torch.float8_e4m3fn)
            whole = torch.zeros((4, 2) if name == "w13" else (4,))
            codes = torch.zeros(4, rows, columns // 2, dtype=torch.uint8)
            for leaf, tensor in ((name, codes), (f"{name}_scale", scales), (f"{name}_scale_2", whole)):
                leaf = leaf.replace(name, f"{name}_weight")
                self.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=False))


def served(backend) -> torch.nn.Module:
    """A model whose last layer is such a one, loaded as rank 1."""
    model = torch.nn.Sequential()
    model.add_module("experts", torch.nn.Sequential(Experts(backend)))
    outer = torch.nn.Sequential(model)
    weights.fill_model(outer, 1)
    return outer


def exactly(layer, x, shares, ids, *_):
    """The layer of the parameters that were loaded, in float64."""
    import peers_data

    names = {"w13": "w13_weight", "w2": "w2_weight"}
    held = {ours: getattr(layer, theirs) for ours, theirs in names.items()}
    held |= {f"{name}_block_scale": getattr(layer, f"{name}_weight_scale") for name in names}
    held |= {f"{name}_global_scale": getattr(layer, f"{name}_weight_scale_2") for name in names}
    return peers_data.exact("served", SimpleNamespace(**held), x, layer.expert_map[ids.long()], shares)


def test_a_right_layer_is_right_and_a_wrong_one_is_not():
    assert right.layer_error(served(exactly), 1) < 1e-12
    assert right.layer_error(served(lambda layer, x, shares, ids, *_: exactly(layer, x, shares.flip(1), ids)), 1) > 0.1
    assert right.layer_error(served(exactly), 0) > 0.5, "another rank has other experts"


def test_weights_are_the_same_as_mxfp4():
    layer = served(exactly)[0][0][0]
    for block, whole in (
        (layer.w13_weight_scale, layer.w13_weight_scale_2[:, 0]),
        (layer.w2_weight_scale, layer.w2_weight_scale_2),
    ):
        e8m0 = humming_experts.mxfp4_scales(block, whole)
        nvfp4 = block.double() * whole.double().view(-1, 1, 1)
        assert torch.equal(torch.exp2(e8m0.double() - 127).repeat_interleave(2, dim=-1), nvfp4)
        with pytest.raises(ValueError, match="w4a8 must have such"):
            humming_experts.mxfp4_scales(block, 3 * whole)


def test_humming_is_served_only_if_asked_for(monkeypatch):
    monkeypatch.delenv("FULL_HUMMING", raising=False)
    path = list(sys.path)
    humming_experts.register()
    assert sys.path == path
    monkeypatch.setenv("FULL_HUMMING", "w8a8")
    with pytest.raises(ValueError, match="it must be one of w4a16, w4a8"):
        humming_experts.register()
