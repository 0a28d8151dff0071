# SPDX-License-Identifier: Apache-2.0
"""Imported by every Python of a run without a GPU: the management library that vLLM asks, as of one H200."""

import importlib.abc
import importlib.machinery
import sys
import types

NAME = "vllm.third_party.pynvml"
ANSWERS = {
    "nvmlInit": lambda: None,
    "nvmlShutdown": lambda: None,
    "nvmlDeviceGetCount": lambda: 1,
    "nvmlDeviceGetHandleByIndex": lambda index: index,
    "nvmlDeviceGetName": lambda handle: "NVIDIA absent",
    "nvmlDeviceGetCudaComputeCapability": lambda handle: (9, 0),
    "nvmlDeviceGetUUID": lambda handle: "absent",
    "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(total=150109880320),
    "nvmlDeviceGetNumGpuCores": lambda handle: 132 * 128,
}


class NVMLError(Exception):
    """What vLLM catches."""


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Puts the answers in the place of vLLM's own copy of pynvml."""

    def find_spec(self, name, path=None, target=None):
        """That module, and no other."""
        return importlib.machinery.ModuleSpec(name, self) if name == NAME else None

    def create_module(self, spec):
        """The answers."""
        module = types.ModuleType(NAME)
        errors = {"NVMLError": NVMLError, "NVMLError_NotSupported": NVMLError}
        module.__dict__.update(ANSWERS | errors)
        return module

    def exec_module(self, module):
        """Nothing is left to do."""


sys.meta_path.insert(0, Finder())
