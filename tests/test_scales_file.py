# SPDX-License-Identifier: Apache-2.0
"""The file of calibrated input scales, which several threads and processes save to."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_vllm

ROOT = Path(__file__).parents[1]


def test_scales_that_are_saved_at_once_are_all_kept(tmp_path):
    fake_vllm.install()
    try:
        from nvfp4_moe.plugin.scales import merge_scales, read_scales

        path = tmp_path / "made" / "scales.json"
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda i: merge_scales(path, {f"layer {i}": [float(i), 1.0]}), range(64)))
        program = (
            f"import sys; sys.path[:0] = [{str(ROOT / 'tests')!r}, {str(ROOT / 'vllm_plugin')!r}]\n"
            "import fake_vllm; fake_vllm.install()\n"
            "from pathlib import Path\n"
            "from nvfp4_moe.plugin.scales import merge_scales\n"
            "for i in range(20): merge_scales(Path(sys.argv[1]), {f'{sys.argv[2]} {i}': [1.0, 1.0]})\n"
        )
        others = [subprocess.Popen([sys.executable, "-c", program, path, str(rank)]) for rank in range(2)]
        assert [other.wait() for other in others] == [0, 0]
        assert len(read_scales(path)) == 64 + 2 * 20
    finally:
        fake_vllm.remove()
