# SPDX-License-Identifier: Apache-2.0
"""What the doctor asks of each worker: vLLM mixes this class into its workers, in this process or in others.

Numbers and names alone leave a worker; captured tensors stay where they are. While nothing is installed, nothing runs.
"""

from pathlib import Path
from typing import Any

from . import moe_probe
from .hooks import Recorder
from .norms import NormWatch


class Probe:
    """Methods of a worker, whose names must be nobody else's."""

    def nvfp4_moe_doctor_install(self, keep: bool = False) -> None:
        """Watch the next forward."""
        from nvfp4_moe import reset_device_status

        model = self.model_runner.get_model()
        self.nvfp4_moe_doctor = Recorder(model, keep), NormWatch(model), moe_probe.MoeWatch()
        reset_device_status(self.device)

    def nvfp4_moe_doctor_remove(self) -> None:
        """The worker is as before; what was caught can be read."""
        for watch in self.nvfp4_moe_doctor:
            watch.remove()

    def nvfp4_moe_doctor_boundaries(self) -> list[dict[str, Any]]:
        """All that passed, in order of time."""
        return self.nvfp4_moe_doctor[0].table()

    def nvfp4_moe_doctor_norms(self) -> dict[str, Any]:
        """Every norm against its definition, and the head's answer to the last residual."""
        return self.nvfp4_moe_doctor[1].result()

    def nvfp4_moe_doctor_experts(self, model: str, num_tokens: int) -> dict[str, Any]:
        """Our MoE layers against the files' experts; the counters that the forward left."""
        from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

        from nvfp4_moe import Checkpoint, read_device_status
        from nvfp4_moe.plugin import settings, support

        counters = read_device_status(self.device)._asdict()  # before the probes add theirs
        rank = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        mode, _ = support.resolved_mode(settings.mode())
        calls = self.nvfp4_moe_doctor[2].calls
        layers = []
        if calls:
            checkpoint = Checkpoint(model)
            for call in calls.values():
                try:
                    layers.append(moe_probe.examine(checkpoint, call, mode, num_tokens, rank))
                except RuntimeError as error:  # the reader's: the file breaks a rule
                    found = {"name": call.experts.layer_name, "verdict": "unread", "why": str(error).splitlines()[0]}
                    layers.append(found)
        return {"rank": rank[0], "mode": mode, "counters": counters, "layers": layers}

    def nvfp4_moe_doctor_save(self, file: str) -> int:
        """Outputs of every boundary to a safetensors file, by the first rank; returns how many."""
        from safetensors.torch import save_file
        from vllm.distributed import get_tensor_model_parallel_rank

        kept = self.nvfp4_moe_doctor[0].kept
        if get_tensor_model_parallel_rank() == 0:
            save_file({name: tensor.contiguous() for name, tensor in kept.items()}, file)
        return len(kept)

    def nvfp4_moe_doctor_compare(self, file: str) -> list[list]:
        """[name, cosine, relative error] against a saved run, in order of time; of what both have in one shape."""
        from safetensors.torch import load_file

        from .expert_reference import cosine, relative

        if not Path(file).is_file():
            raise ValueError(f"{file} is no file; --against takes one that --save wrote.")
        saved, kept = load_file(file), self.nvfp4_moe_doctor[0].kept
        both = [name for name in kept if name in saved and kept[name].shape == saved[name].shape]
        return [[name, cosine(kept[name], saved[name]), relative(kept[name], saved[name])] for name in both]
