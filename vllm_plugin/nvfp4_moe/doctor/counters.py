# SPDX-License-Identifier: Apache-2.0
"""`doctor counters`: what the kernels of a served model saw, worker by worker."""

import json
import urllib.error
import urllib.request

HEALTHY = {"saturated_blocks": 0, "nonfinite_values": 0, "out_of_range_ids": 0, "first_bad_token": -1}
MEANINGS = {
    "saturated_blocks": "input scales are too small: use mode bf16, or calibrate",
    "nonfinite_values": "NaN or infinity reached the experts or a linear: look before them (norms, attention)",
    "out_of_range_ids": "the router or the expert map names experts that there are not",
}
HOW = "Serve with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls nvfp4_moe.plugin.worker.Counters."


def run(arguments) -> int:
    """Print them; 0 if every counter is 0, 1 if one is not or the server does not answer."""
    try:
        workers = call(arguments.url, "nvfp4_moe_counters")
        if arguments.reset:
            call(arguments.url, "nvfp4_moe_reset_counters")
    except (OSError, ValueError, KeyError) as error:
        print(f"{arguments.url}: {error}. {HOW}")
        return 1
    bad = {name for worker in workers for name in HEALTHY if worker[name] != HEALTHY[name]}
    if arguments.json:
        print(json.dumps({"workers": workers, "healthy": not bad}))
    else:
        for rank, worker in enumerate(workers):
            print(f"worker {rank}  {worker['device']:8}  " + "  ".join(f"{name} {worker[name]}" for name in HEALTHY))
        for name, meaning in MEANINGS.items():
            if name in bad:
                print(f"{name}: {meaning}")
    return 1 if bad else 0


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
