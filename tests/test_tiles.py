"""kernels/common/tiles.cuh, compiled for the host: which CTA multiplies what, for many routings, matrices and grids."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_ctas_share_the_tiles_without_gaps(tmp_path):
    program = tmp_path / "tiles"
    warnings = ["-Wall", "-Wno-parentheses", "-Wno-unknown-pragmas", "-Werror"]
    flags = ["-std=c++17", "-O2", *warnings, "-I", ROOT / "kernels"]
    subprocess.run(["c++", *flags, ROOT / "tests/layout/tiles.cpp", "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    launches, with_halves = map(int, re.findall(r"\d+", done.stdout))
    assert launches > 5000, done.stdout
    assert 500 < with_halves < launches, done.stdout
