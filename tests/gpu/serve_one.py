# SPDX-License-Identifier: Apache-2.0
"""Serve one checkpoint with the vLLM that is installed, greedily and in this process; what ran goes to a JSON file.

    python tests/gpu/serve_one.py MODEL --out FILE [--eager] [--moe-backend NAME] [--plugin MODULE]...

The report has the tokens of eight prompts together and of the first alone; whether every logit was finite; graphs
captured and replayed, as counted at torch.cuda.CUDAGraph; and the classes that serve the MoE layers.
"""

import argparse
import collections
import importlib
import json
import os
from pathlib import Path

from full.options import PLAIN, decode_graphs

SIZES = [1, 2, 4, 8]
NUM_TOKENS = 32
# Ids, so that no tokenizer decides. One prompt spans several blocks of the KV cache.
PROMPTS = [[(7 * row + 13 * i * (row + 1)) % 900 + 3 for i in range(3 + 5 * row)] for row in range(7)] + [[17] * 200]
# The engine runs in this process, so that a plugin module and the counters below see it.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def counted_graphs() -> collections.Counter:
    """Captures and replays from now on, by the name of torch.cuda.CUDAGraph's method."""
    import torch

    seen: collections.Counter = collections.Counter()

    def count(name: str) -> None:
        original = getattr(torch.cuda.CUDAGraph, name)

        def method(graph, *args, **kwargs):
            seen[name] += 1
            return original(graph, *args, **kwargs)

        setattr(torch.cuda.CUDAGraph, name, method)

    count("capture_end")
    count("replay")
    return seen


def model_of(llm):
    """The module that the only rank runs."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
    return getattr(worker, "worker", worker).model_runner.get_model()


def watched_logits(model) -> list:
    """Whether each step's logits are finite: tensors, because the check must not wait for the GPU."""
    import torch

    finite, compute_logits = [], model.compute_logits

    def watched(*args, **kwargs):
        logits = compute_logits(*args, **kwargs)
        finite.append(torch.isfinite(logits).all())
        return logits

    model.compute_logits = watched
    return finite


def moe_classes(model) -> dict[str, int]:
    """How many MoE layers each class of experts serves."""
    kernels = (getattr(getattr(module, "quant_method", None), "moe_kernel", None) for module in model.modules())
    return dict(collections.Counter(type(kernel.fused_experts).__name__ for kernel in kernels if kernel is not None))


def options(arguments) -> dict:
    """Of vllm.LLM."""
    return PLAIN | {
        "model": arguments.model,
        "max_model_len": 1024,
        "max_num_seqs": SIZES[-1],
        "max_num_batched_tokens": 512,
        "gpu_memory_utilization": 0.5,
        "moe_backend": arguments.moe_backend,
        **({"enforce_eager": True} if arguments.eager else {"compilation_config": decode_graphs(SIZES)}),
    }


def serve(arguments) -> dict:
    """Start the engine, generate, and say what ran."""
    graphs = counted_graphs()
    for plugin in arguments.plugin:
        importlib.import_module(plugin)
    import torch

    from vllm import LLM, SamplingParams, __version__

    llm = LLM(**options(arguments))
    captured = graphs["capture_end"]
    model = model_of(llm)
    finite = watched_logits(model)
    graphs.clear()
    greedy = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], greedy, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    tokens = {"batch": generate(PROMPTS), "first_alone": generate(PROMPTS[:1])}
    return {
        "device": torch.cuda.get_device_name(),
        "vllm": __version__,
        "torch": torch.__version__,
        "eager": arguments.eager,
        "tokens": tokens,
        "graphs": {"captured": captured, "replays_in_generation": graphs["replay"]},
        "logits": {"steps": len(finite), "all_finite": bool(finite) and bool(torch.stack(finite).all())},
        "built": {"moe": moe_classes(model)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--moe-backend", default="auto")
    parser.add_argument("--plugin", action="append", default=[], help="a module to import before vLLM starts")
    arguments = parser.parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    arguments.out.write_text(json.dumps(serve(arguments), indent=1))


if __name__ == "__main__":
    main()
