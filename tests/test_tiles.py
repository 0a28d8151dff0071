"""kernels/common/tiles.cuh, compiled for the host: which CTA multiplies what, for many routings, matrices and grids."""

import re
import subprocess


def test_ctas_share_the_tiles_without_gaps(host_program):
    program = host_program("tiles", "-O2", "-Wno-parentheses")
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    launches, with_halves = map(int, re.findall(r"\d+", done.stdout))
    assert launches > 5000, done.stdout
    assert 500 < with_halves < launches, done.stdout
