# SPDX-License-Identifier: Apache-2.0
"""What the doctor asks of each worker: vLLM mixes this class into its workers, in this process or in others.

Numbers and names alone leave a worker; captured tensors stay where they are. While nothing is installed, nothing runs.
"""

import json
import zlib
from typing import Any

import torch

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
        from nvfp4_moe.plugin import support

        counters = read_device_status(self.device)._asdict()  # before the probes add theirs
        rank = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        calls = self.nvfp4_moe_doctor[2].calls
        layers = []
        if calls:
            checkpoint = Checkpoint(model)
            for call in calls.values():
                mode, _ = support.resolved_moe_mode(call.experts.weights)
                try:
                    layers.append(moe_probe.examine(checkpoint, call, mode, num_tokens, rank))
                except RuntimeError as error:  # the reader's: the file breaks a rule
                    found = {"name": call.experts.layer_name, "verdict": "unread", "why": str(error).splitlines()[0]}
                    layers.append(found)
        blocks = sum(call.blocks() for call in calls.values())
        return {"rank": rank[0], "mode": mode, "counters": counters, "blocks": blocks, "layers": layers}

    def nvfp4_moe_doctor_kept(self) -> dict[str, int]:
        """A checksum of every kept output, in order of time: a part of a sum differs from rank to rank."""
        kept = self.nvfp4_moe_doctor[0].kept
        return {name: zlib.crc32(tensor.contiguous().view(torch.uint8).numpy()) for name, tensor in kept.items()}

    def nvfp4_moe_doctor_save(self, file: str, names: list[str]) -> None:
        """These outputs to a safetensors file, by the first rank."""
        from safetensors.torch import save_file
        from vllm.distributed import get_tensor_model_parallel_rank

        if get_tensor_model_parallel_rank() == 0:
            save_file({name: self.nvfp4_moe_doctor[0].kept[name].contiguous() for name in names}, file)

    def nvfp4_moe_doctor_compare(self, file: str, names: list[str]) -> list[list]:
        """[name, median cosine of the rows, least one] of these against a saved run; of what both have in one shape."""
        from safetensors.torch import load_file

        from .expert_reference import row_cosines

        saved, kept = load_file(file), self.nvfp4_moe_doctor[0].kept
        both = [name for name in names if name in saved and kept[name].shape == saved[name].shape]
        rows = {name: row_cosines(kept[name], saved[name]).nan_to_num(-1.0) for name in both}
        return [[name, float(cosines.median()), float(cosines.min())] for name, cosines in rows.items()]

    def nvfp4_moe_doctor_attention_install(self) -> None:
        """Watch attention modules until they are let go."""
        from .attention_probe import AttentionWatch
        from .sink_probe import Sinks

        model = self.model_runner.get_model()
        self.nvfp4_moe_doctor_watch, self.nvfp4_moe_doctor_sinks = AttentionWatch(model), Sinks(model)

    def nvfp4_moe_doctor_attention_start(self, plan: str, times: float = 1.0) -> None:
        """For the next forwards: JSON of what AttentionWatch takes."""
        self.nvfp4_moe_doctor_watch.start(json.loads(plan), times)

    def nvfp4_moe_doctor_attention_changes(self, forward: int, against: list[int]) -> list[dict[str, Any]]:
        """Numbers of the last request."""
        return self.nvfp4_moe_doctor_watch.changes(forward, against)

    def nvfp4_moe_doctor_attention_keep(self, label: str) -> None:
        """The last row of each layer."""
        self.nvfp4_moe_doctor_watch.keep(label)

    def nvfp4_moe_doctor_attention_parts(self, labels: list[str], whole: str, none: str) -> list[dict[str, Any]]:
        """Kept rows against each other."""
        return self.nvfp4_moe_doctor_watch.parts(labels, whole, none)

    def nvfp4_moe_doctor_sinks_table(self) -> list[dict[str, Any]]:
        """This rank's, by layer."""
        return self.nvfp4_moe_doctor_sinks.table()

    def nvfp4_moe_doctor_sinks_set(self, value: float, head: int | None, others: float) -> None:
        """Of this rank's heads."""
        self.nvfp4_moe_doctor_sinks.set(value, head, others)

    def nvfp4_moe_doctor_sinks_padding(self, value: float) -> None:
        """Of heads that are none."""
        self.nvfp4_moe_doctor_sinks.set_padding(value)

    def nvfp4_moe_doctor_sinks_restore(self) -> None:
        """As loaded."""
        self.nvfp4_moe_doctor_sinks.restore()

    def nvfp4_moe_doctor_attention_remove(self) -> None:
        """The model is as before."""
        self.nvfp4_moe_doctor_sinks.restore()
        self.nvfp4_moe_doctor_watch.remove()
        del self.nvfp4_moe_doctor_watch, self.nvfp4_moe_doctor_sinks
