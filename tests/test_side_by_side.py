# SPDX-License-Identifier: Apache-2.0
"""The runner of GPU tests, with commands that need no GPU; and what it would run."""

import re
import signal
import subprocess
import sys
import time

import gpu_test
from gpu.full.process import is_alive
from side_by_side import ROOT, Command, Report


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_every_ending_is_said(tmp_path, capsys):
    commands = [
        Command("good", python("print('fine\\nPASS')"), must_say="PASS"),
        Command("silent", python("print('nothing')"), must_say="PASS"),
        Command("bad", python("print('why'); raise SystemExit(3)")),
        Command("slow", python("import time; print('begun', flush=True); time.sleep(60)")),
    ]
    report = Report(tmp_path, limit_s=1.0)
    report.run(commands, jobs=4)
    assert report.close("all", 1.0) == 1
    said = capsys.readouterr().out
    for line in ("good: ok (0, ", "silent: FAIL (without 'PASS', ", "bad: FAIL (3, ", "slow: FAIL (over 1 s, "):
        assert line in said
    for line in ("    why\n", "    begun\n"):
        assert line in said
    assert sorted(report.failed) == ["bad", "silent", "slow"]
    assert re.search(r"all, 1 s: 3 of 4 failed: .*; FAIL\n$", said)
    assert (tmp_path / "good.txt").read_text() == "fine\nPASS\n"


def test_gpus_are_dealt_and_who_must_be_alone_is(tmp_path, capsys):
    where = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], time.monotonic()); time.sleep(0.3); print({})"
    commands = [Command(name, python(where.format("time.monotonic()")), alone=name == "c") for name in "abc"]
    report = Report(tmp_path, limit_s=30)
    report.run(commands, jobs=2, gpus=["4", "7"])
    assert report.close("all", 1.0) == 0
    said = {name: (tmp_path / f"{name}.txt").read_text().split() for name in "abc"}
    assert {said["a"][0], said["b"][0]} == {"4", "7"}
    assert all(float(said[name][1]) >= float(said["c"][2]) for name in "ab"), "before the others"
    assert capsys.readouterr().out.endswith("3 ok; PASS\n")


def test_every_test_of_a_gpu_is_in_a_part():
    """Files with tests that are skipped without one; each once."""
    run = [word for names in gpu_test.TESTS.values() for word in names] + ["test_gpu_life"]
    assert len(run) == len(set(run))
    assert all((ROOT / f"tests/{name}.py").exists() for name in run)
    skipping = re.compile(r"skipif\(not torch\.cuda\.is_available|runner\.DEVICES|\"cuda-portable\"\]")
    files = (ROOT / "tests").glob("test_*.py")
    asked = {path.stem for path in files if skipping.search(path.read_text())}
    assert "test_gpu" in asked
    assert asked <= set(run), asked - set(run)


def test_what_is_asked_for_has_to_exist():
    done = subprocess.run(
        [sys.executable, ROOT / "tests/gpu_test.py", "--only", "nothing"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--only has nothing; it must be of tests, scripts, sanitizers." in done.stderr


INTERRUPTED = """
import signal, sys
from pathlib import Path
from side_by_side import Command, Report
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's jobs in the background begin without
slow = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
Report(Path(sys.argv[1]), limit_s=60).run([Command(name, [sys.executable, "-c", slow]) for name in "abcd"], jobs=2)
"""


def test_an_interrupt_leaves_no_process(tmp_path):
    begun = subprocess.Popen([sys.executable, "-c", INTERRUPTED, tmp_path], cwd=ROOT / "tests", stderr=subprocess.PIPE)
    limit = time.monotonic() + 30
    while sum(bool(log.read_text()) for log in tmp_path.glob("*.txt")) < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    begun.send_signal(signal.SIGINT)
    begun.communicate(timeout=20)
    pids = [int(log.read_text()) for log in tmp_path.glob("*.txt")]
    assert len(pids) == 2, "those that wait do not begin any more"
    assert not any(is_alive(pid) for pid in pids)
