# SPDX-License-Identifier: Apache-2.0
"""How the proofs of tests/abi run commands, and what a step may end with."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/abi"
TARGET_FOLDER = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


class Failure(Exception):
    """A step that failed; the text is the evidence."""


class Skip(Exception):
    """A step that cannot run here; the text is the reason."""


def command(*words: object, stdin: str = "", **environment: str) -> str:
    """Run a command in the repository root; its output, or Failure with it."""
    done = subprocess.run(
        [str(word) for word in words],
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
        input=stdin,
        text=True,
        errors="replace",  # readelf shows checksums as they are
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode != 0:
        raise Failure(f"{words[0]} exited with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout
