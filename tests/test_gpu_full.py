# SPDX-License-Identifier: Apache-2.0
"""What `make gpu-serve-full` is made of, without a GPU and without vLLM."""

import os
import sys
import time
from pathlib import Path

GPU = Path(__file__).parent / "gpu"
sys.path.insert(0, str(GPU))
import serve_full

from gpu.full import process

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
    limit = time.monotonic() + 60
    while not begun.turn.with_suffix(".waiting").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(0.5)
    assert log.read_text() == "", "it did not wait"
    assert begun.take_turn(60) is None, log.read_text()
    assert log.read_text() == "on the GPU\n"


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
