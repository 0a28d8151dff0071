# SPDX-License-Identifier: Apache-2.0
"""Imported by every process of a loading run: times vLLM's loading of a model, notes its memory, and ends there.

Writes JSON to the file that FULL_LOAD names. vLLM would go on to measure memory and capture graphs; nobody asked for
that, so the process that loaded ends its whole group, which process.py made: vLLM's front end would take its time.
"""

import json
import os
import signal
import time
from pathlib import Path

import torch
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

_load_model = BaseModelLoader.load_model


def largest_layer(model: torch.nn.Module) -> int:
    """Bytes of the experts of the largest layer, as they lie on the GPU."""
    sizes: dict[str, int] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        parts = name.split(".")
        if "experts" in parts and "shared_experts" not in parts:
            layer = ".".join(parts[: parts.index("experts")])
            sizes[layer] = sizes.get(layer, 0) + tensor.numel() * tensor.element_size()
    return max(sizes.values(), default=0)


def load_model(self, *arguments, **keywords):
    """vLLM's own, watched."""
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    model = _load_model(self, *arguments, **keywords)
    torch.cuda.synchronize()
    found = {
        "device": torch.cuda.get_device_name(),
        "seconds": time.perf_counter() - start,
        "peak": torch.cuda.max_memory_allocated() - before,
        "finished": torch.cuda.memory_allocated() - before,
        "largest_layer": largest_layer(model),
    }
    Path(os.environ["FULL_LOAD"]).write_text(json.dumps(found))
    os.killpg(0, signal.SIGKILL)


BaseModelLoader.load_model = load_model
