# SPDX-License-Identifier: Apache-2.0
"""The entry point: cheap to import, safe to call twice, off when told, silent about nothing."""

import subprocess
import sys
from importlib import metadata

import pytest

from nvfp4_moe.plugin import support

COUNT_KERNELS = """
import logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
import nvfp4_moe.plugin
assert not {"torch", "vllm"} & set(sys.modules), "importing the plugin imported something heavy"
nvfp4_moe.plugin.register()
nvfp4_moe.plugin.register()
import vllm.envs
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.kernels import linear
from vllm.platforms import PlatformEnum
names = [k.__name__ for k in linear._POSSIBLE_NVFP4_KERNELS.get(PlatformEnum.CUDA, [])]
print("FOUND", names.index("Nvfp4MoeLinearKernel") if "Nvfp4MoeLinearKernel" in names else None,
      names.count("Nvfp4MoeLinearKernel"), hasattr(RoutedExperts._get_quant_method, "__wrapped__"),
      "NVFP4_MOE_MODE" in vllm.envs.environment_variables)
"""


def register(**environment: str) -> tuple[list[str], str]:
    import os

    done = subprocess.run(
        [sys.executable, "-c", COUNT_KERNELS], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))
    return found.split()[1:], done.stdout + done.stderr


def test_vllm_finds_the_entry_point():
    entries = [e for e in metadata.entry_points(group="vllm.general_plugins") if e.name == "nvfp4_moe"]
    assert [e.value for e in entries] == ["nvfp4_moe.plugin:register"]


def test_registering_twice_registers_once_and_first():
    assert register()[0] == ["0", "1", "True", "True"]


def test_the_kill_switch_leaves_vllm_alone_and_says_so():
    found, output = register(NVFP4_MOE_DISABLE="1")
    assert found == ["None", "0", "False", "False"]
    assert "nvfp4_moe is NOT active: NVFP4_MOE_DISABLE is '1'" in output


@pytest.mark.parametrize("version", ["0.26.0", "0.32.0", "0.33.1", "0.30.0rc1"])
def test_supported_versions(version):
    assert support.version_refusal(version) is None


@pytest.mark.parametrize("version", ["0.25.1", "0.34.0", "1.0.0", "dev"])
def test_other_versions_are_refused_by_number(version):
    assert support.version_refusal(version).startswith(f"vllm is {version}; it must be 0.26 to 0.33")
