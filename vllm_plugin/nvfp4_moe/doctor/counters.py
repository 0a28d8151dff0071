# SPDX-License-Identifier: Apache-2.0
"""`doctor counters`: what the kernels of a served model saw, worker by worker."""

import json
import urllib.error
import urllib.request

from .finding import Report, some

COUNTERS = ("saturated_blocks", "nonfinite_values", "out_of_range_ids", "first_bad_token")
MEANINGS = {
    "saturated_blocks": ("input scales are too small.", "Use NVFP4_MOE_MODE=bf16, or calibrate."),
    "nonfinite_values": (
        "NaN or infinity reached the experts or a linear.",
        "Look before them (norms, attention): doctor layers names the first.",
    ),
    "out_of_range_ids": ("the router or the expert map names experts that there are not.", "Look at the router."),
}
HOW = "Serve with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls nvfp4_moe.plugin.worker.Counters."


def run(arguments) -> int:
    """Print them; 0 if every counter is 0, 1 if one is not or the server does not answer."""
    return examine(arguments.url, arguments.reset).finish(arguments.json)


def examine(url: str, reset: bool = False) -> Report:
    """Of a server's workers."""
    report = Report("counters", url)
    try:
        workers = call(url, "nvfp4_moe_counters")
        if reset:
            call(url, "nvfp4_moe_reset_counters")
    except (OSError, ValueError, KeyError) as error:
        report.fault("no-answer", f"{error}; a server answers /collective_rpc", "there is nothing to read.", HOW)
        return report
    report.numbers["workers"] = workers
    for rank, worker in enumerate(workers):
        report.fact(
            f"worker {rank}", f"{worker['device']}: " + ", ".join(f"{name} {worker[name]}" for name in COUNTERS)
        )
    for name, (means, do) in MEANINGS.items():
        bad = [f"{worker[name]} on worker {rank}" for rank, worker in enumerate(workers) if worker[name]]
        if bad:
            report.fault(name.replace("_", "-"), f"{name}: {some(bad)}; 0 is healthy", means, do)
    return report


def call(url: str, method: str) -> list:
    """One method of every worker, by vLLM's development interface."""
    body = json.dumps({"method": method}).encode()
    request = urllib.request.Request(
        url.rstrip("/") + "/collective_rpc", data=body, headers={"Content-Type": "application/json"}
    )
    if not request.type.startswith("http"):
        raise ValueError(f"{request.type} is no protocol of a server; it must be http or https")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b'{"results": []}')["results"]
