# SPDX-License-Identifier: Apache-2.0
"""The active driver: one CPU device, no streams."""

import time

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class InterpreterDriver(DriverBase):
    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_current_target(self):
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cpu

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0

    def get_benchmarker(self):
        def benchmark(function, *, quantiles=None, **_):
            start = time.perf_counter()
            function()
            milliseconds = (time.perf_counter() - start) * 1e3
            return [milliseconds] * len(quantiles) if quantiles else milliseconds

        return benchmark
