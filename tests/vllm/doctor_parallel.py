# SPDX-License-Identifier: Apache-2.0
"""The doctor on two ranks with expert parallel: healthy, and with a fault on the second; prints its answers as JSON.

python tests/vllm/doctor_parallel.py MODEL
"""

import json
import os
import sys

import torch
from serve import ENVIRONMENT

from nvfp4_moe.doctor.worker import Probe

OPTIONS = {
    "tensor_parallel_size": 2,
    "enable_expert_parallel": True,
    "distributed_executor_backend": "mp",
    "worker_extension_cls": "doctor_parallel.Planted",
}


class Planted(Probe):
    """A worker whose experts of one layer can be made ill."""

    def nvfp4_moe_doctor_plant(self, rank: int, layer: int) -> None:
        """The first expert of a rank gives NaN, wherever the doctor or a request asks it."""
        from vllm.distributed import get_tensor_model_parallel_rank

        from nvfp4_moe.plugin.experts import Nvfp4MoeExperts

        apply = Nvfp4MoeExperts.apply

        def ill(experts, **arguments):
            apply(experts, **arguments)
            if f"layers.{layer}." in experts.layer_name:
                first = int((arguments["expert_map"] == 0).nonzero()[0])
                arguments["output"][(arguments["topk_ids"] == first).any(1)] = torch.nan

        if get_tensor_model_parallel_rank() == rank:
            Nvfp4MoeExperts.apply = ill


def main() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from nvfp4_moe.doctor import attention, layers
    from nvfp4_moe.doctor.engine import Engine
    from nvfp4_moe.doctor.finding import Report

    engine = Engine(sys.argv[1], json.dumps(OPTIONS))

    def ask(examine, command: str, **given) -> dict:
        report = Report(command, engine.model)
        examine(report, engine, **given)
        return report.to_dict()

    said = {
        "layers": ask(layers.examine, "layers", num_tokens=24),
        "attention": ask(attention.examine, "attention", skip=("range",)),
    }
    engine.workers("plant", 1, 2)
    said["planted"] = ask(layers.examine, "layers", num_tokens=24)
    print("DOCTOR " + json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
