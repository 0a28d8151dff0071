# SPDX-License-Identifier: Apache-2.0
"""Generate greedily with vLLM on the CPU and print what happened as one JSON line; one process for each model.

python tests/vllm/serve.py MODEL [--tokens N] [--alone] [--flip-amx] [--reload OTHER] [--options JSON]
"""

import argparse
import hashlib
import json
import os
import sys
import time

# The engine runs in this process: less memory, and what it built can be looked at.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two ranks on one NUMA node
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRITON_INTERPRET": "1",
    # Under enforce_eager vLLM still compiles a few helpers: 12 s in every process, for the same tokens.
    "TORCHDYNAMO_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

PROMPTS = [
    [5, 17, 400, 23, 911, 64],
    list(range(300, 340)),
    [7] * 9,
    [(37 * i) % 1000 + 3 for i in range(150)],  # longer than the sliding window and one compressed block of 128
]


def model_of(llm):
    """The module that the only rank runs."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
    return getattr(worker, "worker", worker).model_runner.get_model()


def watch_logits(model):
    """A digest of all logits from now on, which are computed outside what vLLM compiles."""
    import torch

    digest, compute_logits = hashlib.sha256(), model.compute_logits

    def watched(*args, **kwargs):
        logits = compute_logits(*args, **kwargs)
        digest.update(logits.contiguous().view(torch.uint8).numpy().tobytes())
        return logits

    model.compute_logits = watched
    return digest


def methods(model) -> dict[str, list[str]]:
    """Class names that serve the MoE layers and the linears."""
    found: dict[str, set[str]] = {"moe": set(), "linear": set()}
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            found["moe"].add(type(method.moe_kernel.fused_experts).__name__)
        elif getattr(module, "nvfp4_moe_linear", None) is not None:
            found["linear"].add(type(module.nvfp4_moe_linear).__name__)
    return {kind: sorted(names) for kind, names in found.items()}


def engine_linears(model) -> list[str]:
    """What computes the linears that are vLLM's own."""
    found = set()
    for module in model.modules():
        fp8 = getattr(getattr(module, "quant_method", None), "fp8_linear", None)
        if hasattr(module, "cpu_linear"):
            found.add(module.cpu_linear.__name__)
        elif fp8 is not None:
            found.add(type(fp8).__name__)
    return sorted(found)


def our_layers(model) -> list:
    """(the library's handle, vLLM's module) of every MoE layer and linear that is ours."""
    found = []
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if hasattr(getattr(kernel, "fused_experts", None), "handle"):
            found.append((kernel.fused_experts.handle, module))
        elif hasattr(getattr(module, "nvfp4_moe_linear", None), "handle"):
            found.append((module.nvfp4_moe_linear.handle, module))
    return found


def what_is_read(model) -> list[tuple[int, list[int], list[int]]]:
    """Of each of our layers: the handle's number, the addresses that it reads, those of them that are parameters."""
    found = []
    for handle, module in our_layers(model):
        read = sorted(value.data_ptr() for value in vars(handle.weights).values() if hasattr(value, "data_ptr"))
        parameters = {parameter.data_ptr() for parameter in module.parameters()}
        found.append((handle.made.id, read, [address for address in read if address in parameters]))
    return found


def move_experts(rows_of_layers: list) -> None:
    """As EPLB does: the rows that vLLM listed at its start change places, and so do the numbers in the expert map."""
    import torch

    for layer, rows_of_each in rows_of_layers:
        order = torch.arange(layer.local_num_experts).roll(1)
        for rows in rows_of_each:
            rows.data.copy_(rows.data[order].clone())
        layer._expert_map = torch.empty(len(order), dtype=torch.int32)
        layer._expert_map[order] = torch.arange(len(order), dtype=torch.int32)


def reload(llm, models: list[str], generate) -> dict:
    """Tokens after each reload, and what the layers read before and after; then the experts move."""
    model = model_of(llm)
    rows = [(module, list(module.get_expert_weights())) for _, module in our_layers(model) if hasattr(module, "top_k")]
    result = {"read_before": what_is_read(model), "reloaded": []}
    for path in models:
        llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        result["reloaded"].append(generate(PROMPTS))
    result["read_after"] = what_is_read(model)
    move_experts(rows)
    return result | {"moved": generate(PROMPTS), "num_moved": len(rows)}


def flip_amx() -> None:
    """Let torch, whom vLLM asks, say the reverse of the truth about this CPU's AMX."""
    import torch

    has_amx = torch.cpu._is_amx_tile_supported()
    torch.cpu._is_amx_tile_supported = lambda: not has_amx


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--again", action="store_true", help="also generate all prompts a second time")
    parser.add_argument("--alone", action="store_true", help="also generate each prompt by itself")
    parser.add_argument(
        "--flip-amx", action="store_true", help="as on a CPU with AMX tiles, or if this has them, without"
    )
    parser.add_argument("--reload", help="then load this model's weights, the first's, and these again")
    parser.add_argument("--options", default="{}", help="JSON: more arguments of vllm.LLM")
    parser.add_argument("--only", default="0:", help="FIRST:END of the prompts, for a rank of several that share them")
    arguments = parser.parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)

    if arguments.flip_amx:
        flip_amx()
    from vllm import LLM, SamplingParams, __version__

    options = {
        "dtype": "bfloat16",
        "max_model_len": 512,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "enforce_eager": True,
        "seed": 0,
    }
    options["enable_prefix_caching"] = False
    options["disable_log_stats"] = True
    start = time.time()
    llm = LLM(model=arguments.model, **options | json.loads(arguments.options))
    loaded = time.time()
    greedy = SamplingParams(temperature=0, max_tokens=arguments.tokens, ignore_eos=True)

    def generate(prompts):
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], greedy, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    first, end = (int(number) if number else None for number in arguments.only.split(":"))
    prompts = PROMPTS[first:end]
    one_rank = "parallel" not in arguments.options
    logits = watch_logits(model_of(llm)) if one_rank else None
    result = {"vllm": __version__, "prompts": prompts, "tokens": generate(prompts)}
    if one_rank:
        result["logits"] = logits.hexdigest()
    if arguments.again:
        result["again"] = generate(prompts)
    if arguments.alone:
        result["alone"] = [generate([prompt])[0] for prompt in PROMPTS]
    if one_rank:
        model = model_of(llm)
        result |= {"served_by": methods(model), "engine_linears": engine_linears(model)}
    if arguments.reload:
        result |= reload(llm, [arguments.reload, arguments.model, arguments.reload], generate)
    result["seconds"] = {"load": round(loaded - start, 1), "generate": round(time.time() - loaded, 1)}
    print("SERVED " + json.dumps(result), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
