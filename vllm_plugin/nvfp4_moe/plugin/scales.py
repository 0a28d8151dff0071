"""Global scales of the activations, for mode nvfp4: which policy a layer gets, and calibration.

    static      the checkpoint's input_scale, the maximum over all experts of all ranks
    calibrated  from the first forward, which is vLLM's profile run, or from a file that an earlier run saved
    dynamic     each row from its own largest value

The profile run's tokens are dummies. To calibrate on real text, delete nothing: serve once in mode bf16 with prompts,
or calibrate offline, and name the file in NVFP4_MOE_SCALES_FILE.
"""

import json
import os
from functools import cache
from pathlib import Path

import torch
from vllm.config import CompilationMode, get_current_vllm_config
from vllm.distributed import parallel_state
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
        if self.path and self.path.exists():
            self.scales = read_scales(self.path)
            logger.info("nvfp4_moe: input scales of %d layers read from %s", len(self.scales), self.path)

    def known(self, layer_name: str) -> list[float] | None:
        """The layer's scales, or None after noting that its first forward will bring them."""
        if layer_name in self.scales:
            return self.scales[layer_name]
        refuse_under_compile()
        self.waiting.add(layer_name)
        return None

    def record(self, layer_name: str, scales: list[float]) -> None:
        """Take what a first forward measured; save once no layer is waiting."""
        self.scales[layer_name] = scales
        self.waiting.discard(layer_name)
        if self.waiting:
            return
        logger.info("nvfp4_moe: input scales of %d layers calibrated in the first forward", len(self.scales))
        # Every rank of a tensor-parallel group holds the same scales, and pipeline stages hold different layers.
        if self.path and parallel_state.get_tensor_model_parallel_rank() == 0:
            merged = (read_scales(self.path) if self.path.exists() else {}) | self.scales
            write_scales(self.path, merged)
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


def write_scales(path: Path, scales: dict[str, list[float]]) -> None:
    """Replace the file in one step, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"format": FORMAT, "input_scales": dict(sorted(scales.items()))}, indent=1) + "\n")
    temporary.replace(path)


def refuse_under_compile() -> None:
    """Calibration reads activations on the host, which a compiled graph has no place for."""
    mode = get_current_vllm_config().compilation_config.mode
    if mode not in (None, CompilationMode.NONE):
        raise ValueError(
            f"vLLM's compilation mode is {mode.name}; calibrating needs NONE. Serve once with --enforce-eager and "
            f"{settings.SCALES_FILE} set, then serve as you like with that file."
        )


def maximum_over_ranks(values: list[float], use_ep: bool, device: torch.device) -> list[float]:
    """Elementwise maximum over the ranks that share a layer, so that all of them quantise alike."""
    group = parallel_state.get_ep_group() if use_ep else parallel_state.get_tp_group()
    if group.world_size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX, group=group.device_group)
    return tensor.tolist()
