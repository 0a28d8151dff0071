# SPDX-License-Identifier: Apache-2.0
"""Load a model once, ask the doctor about it as it is and with each fault of plants.py; prints its answers as JSON.

python tests/vllm/doctor_plants.py MODEL [NAME of a plant]
"""

import json
import os
import sys
import time

from serve import ENVIRONMENT

SKIPPED = {"attention": ("sinks",), "sinks": ("range", "decode", "shift")}  # of doctor attention, with a plant


def ask(engine, command: str, skip: tuple[str, ...] = ()) -> dict:
    from nvfp4_moe.doctor import attention, layers, norm
    from nvfp4_moe.doctor.engine import PROMPT
    from nvfp4_moe.doctor.finding import Report

    report = Report(command, engine.model)
    if command == "layers":
        layers.examine(report, engine, PROMPT, num_tokens=24)
    elif command in ("attention", "sinks"):
        attention.examine(report, engine, skip)
    else:
        engine.watch(PROMPT)
        norm.judge(report, engine.workers("norms")[0])
    return report.to_dict()


def timed(engine) -> tuple[float, float]:
    """Seconds of a plain request, and of a watched one; the best of several, taken in turns."""
    from nvfp4_moe.doctor.engine import PROMPT

    def seconds(ask) -> float:
        start = time.perf_counter()
        ask(PROMPT)
        return time.perf_counter() - start

    pairs = [(seconds(engine.ask), seconds(engine.watch)) for _ in range(5)]
    plain, watched = map(min, zip(*pairs, strict=True))
    return plain, watched


def main() -> None:
    model, only = sys.argv[1], sys.argv[2:]
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from plants import PLANTS

    from nvfp4_moe.doctor.engine import PROMPT, Engine

    engine = Engine(model)
    served = engine.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
    module = getattr(served, "worker", served).model_runner.get_model()
    before = engine.ask(PROMPT)
    said = {"healthy": {command: ask(engine, command) for command in ("layers", "norm", "attention")}, "planted": {}}
    for plant in PLANTS:
        if only and plant.name not in only:
            continue
        undo = plant.put(module)
        try:
            said["planted"][plant.name] = ask(engine, plant.command, SKIPPED.get(plant.command, ()))
        finally:
            undo()
    said["mended"] = engine.ask(PROMPT) == before
    said["seconds"] = timed(engine)
    print("DOCTOR " + json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
