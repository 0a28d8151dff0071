# SPDX-License-Identifier: Apache-2.0
"""Global scales of the activations, for mode nvfp4: which policy a layer gets, and calibration.

    static      the checkpoint's input_scale, the maximum over all experts of all ranks
    calibrated  from the first requests, which are served in bf16 meanwhile, or from a file that an earlier run saved
    dynamic     each row from its own largest value

vLLM's profile run is not calibrated on: it skips attention, so that what follows attention sees uninitialised memory.
"""

import fcntl
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from vllm.config import get_current_vllm_config
from vllm.distributed import parallel_state
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger

from . import settings

logger = init_logger("vllm.nvfp4_moe")

FORMAT = 1


class Calibration:
    """Calibrated input scales of this process by layer name: read from a file, or collected and then saved to it."""

    def __init__(self, path: str | None):
        self.path = Path(path) if path else None
        self.scales: dict[str, list[float]] = {}
        self.waiting: set[str] = set()
        self.may_measure = False
        if self.path and self.path.exists():
            self.scales = read_scales(self.path)
            logger.info("nvfp4_moe: input scales of %d layers read from %s", len(self.scales), self.path)
        self.of_file = set(self.scales)

    def known(self, layer_name: str) -> list[float] | None:
        """The layer's scales of the file, or None after noting that its first tokens will bring them.

        What this process measured is no answer: where it asks again, other weights are being loaded.
        """
        if layer_name in self.of_file:
            return self.scales[layer_name]
        if not self.may_measure:  # at the first load: some versions have no configuration during a reload
            refuse_where_unseen()
            self.may_measure = True
        self.waiting.add(layer_name)
        return None

    def record(self, layer_name: str, scales: list[float]) -> None:
        """Take what a layer measured; save once no layer is waiting."""
        self.scales[layer_name] = scales
        self.waiting.discard(layer_name)
        if self.waiting:
            return
        logger.info("nvfp4_moe: input scales of %d layers calibrated on the first requests", len(self.scales))
        # Every rank of a tensor-parallel group holds the same scales, and pipeline stages hold different layers.
        if self.path and parallel_state.get_tensor_model_parallel_rank() == 0:
            merge_scales(self.path, self.scales)
            logger.info("nvfp4_moe: input scales saved to %s", self.path)


@cache
def calibration() -> Calibration:
    """This process's calibration."""
    return Calibration(settings.scales_file())


def read_scales(path: Path) -> dict[str, list[float]]:
    """Layer name to decoding input scales: [w13, w2] of a MoE layer, [x] of a linear."""
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT:
        raise ValueError(
            f"format of {path} is {content.get('format')}; it must be {FORMAT}. Delete the file to calibrate again."
        )
    return content["input_scales"]


def merge_scales(path: Path, scales: dict[str, list[float]]) -> None:
    """Add to what the file has. Threads, and processes of one machine, do so in turn: none loses what another saves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file of its own, since the other is replaced; closing it unlocks it. It stays: to remove it would let two in.
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_scales(path, (read_scales(path) if path.exists() else {}) | scales)


def write_scales(path: Path, scales: dict[str, list[float]]) -> None:
    """Replace the file in one step, so that no reader sees half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"format": FORMAT, "input_scales": dict(sorted(scales.items()))}, indent=1) + "\n")
    temporary.replace(path)


def refuse_where_unseen() -> None:
    """Calibration reads activations on the host, of every step, and on all ranks of a layer at the same step."""
    config = get_current_vllm_config()
    if not config.model_config.enforce_eager:
        raise ValueError(
            f"enforce_eager is False; calibrating needs True, since graphs run without the host. Serve once with "
            f"--enforce-eager and {settings.SCALES_FILE} set, then serve as you like with that file."
        )
    if config.parallel_config.data_parallel_size > 1:
        raise ValueError(
            f"data_parallel_size is {config.parallel_config.data_parallel_size}; calibrating needs 1, since ranks must "
            f"see the same steps. Serve once without data parallel and {settings.SCALES_FILE} set, then with that file."
        )


class LayerCalibration:
    """One layer on its way to input scales: its forwards calibrate until it has seen enough tokens of real requests."""

    def __init__(self, name: str, read: Callable[[], list[float]], set: Callable[..., None], use_ep: bool):
        """`read` returns what the library saw and makes it forget, raising if there was nothing; `set` takes scales."""
        self.name, self.read, self.set, self.use_ep = name, read, set, use_ep
        self.num_tokens = 0
        self.seen()  # forget what a layer saw whose weights were replaced before it had seen enough

    def finish(self, x: torch.Tensor) -> bool:
        """After a forward of x [T, ..]: True if the layer has its scales now, the same on all ranks."""
        if get_forward_context().attn_metadata is None:  # a profile or warm-up run
            self.seen()
            return False
        self.num_tokens += len(x)
        if self.num_tokens < settings.calibration_tokens():
            return False
        reduced = maximum_over_ranks(self.seen(), self.use_ep, x.device)
        if min(reduced) == 0:  # no token has come to any expert yet
            return False
        self.set(*reduced)
        calibration().record(self.name, reduced)
        return True

    def seen(self) -> list[float]:
        """What the library saw since the last call, as scales; zeros for nothing."""
        try:
            return self.read()
        except RuntimeError:
            return [0.0, 0.0]


def maximum_over_ranks(values: list[float], use_ep: bool, device: torch.device) -> list[float]:
    """Elementwise maximum over the ranks that share a layer, so that all of them quantise alike."""
    group = parallel_state.get_ep_group() if use_ep else parallel_state.get_tp_group()
    if group.world_size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX, group=group.device_group)
    return tensor.tolist()
