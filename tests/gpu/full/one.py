# SPDX-License-Identifier: Apache-2.0
"""One process of a whole model: start vLLM, measure, write JSON.

    python -m full.one MODEL --out FILE [--backend ours|marlin|humming] [--layout tp2|dp2|pp2|one] ...

Times are medians of --rounds. A step's time is what a token more costs: generations of LONG tokens less generations of
one, so that prompts and the tokenizer cancel out. Time to first token is that of a prompt alone, through the engine.

Under dp2 attention is data parallel, and tokens are exchanged for the experts: two processes share the sequences, and
the times are the first rank's, whose steps are the other's too. A prompt alone leaves the other rank without tokens.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

from . import ahead, step
from .options import PLAIN, decode_graphs
from .ranks import Ranks, steps_wait

LAYOUTS = {
    "one": {"tensor_parallel_size": 1},
    "tp2": {"tensor_parallel_size": 2, "enable_expert_parallel": True},
    "dp2": {"enable_expert_parallel": True},
    "pp2": {"pipeline_parallel_size": 2},
}
DATA_PARALLEL = {"dp2": 2}
BACKENDS = {"ours": "auto", "marlin": "marlin", "humming": "humming"}
LONG = 33
PROFILED = 9
"""Tokens of a generation that is profiled: every kernel's event is read in Python."""
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_DEEP_GEMM_WARMUP": "skip",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    # NVLink multicast stays off: a program that uses it and ends badly can put GPUs out of service that others share.
    "NCCL_NVLS_ENABLE": "0",
    "NVSHMEM_DISABLE_NVLS": "1",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
}


def options(arguments) -> dict:
    """Of vllm.LLM."""
    ranks = DATA_PARALLEL.get(arguments.layout, 1)
    sizes = sorted({-(-sequences // ranks) for sequences in arguments.sequences})
    return PLAIN | {
        "model": arguments.model,
        "load_format": arguments.load_format,
        "skip_tokenizer_init": True,
        "kv_cache_dtype": "fp8",
        "max_model_len": max(arguments.prompts) + 2 * LONG,
        "max_num_seqs": max(sizes),
        "max_num_batched_tokens": 8192,
        "gpu_memory_utilization": arguments.memory,
        "moe_backend": BACKENDS[arguments.backend],
        "worker_extension_cls": "full.worker.Watch",
        "compilation_config": decode_graphs(sizes),
        **LAYOUTS[arguments.layout],
    }


class Server:
    """The engine, asked for greedy tokens."""

    def __init__(self, arguments, ranks: Ranks):
        from vllm import LLM

        self.ranks, start = ranks, time.time()
        self.llm = LLM(**options(arguments))
        self.start_s = time.time() - (ahead.began() or start)
        self.random = random.Random(20261130)
        self.vocabulary = self.llm.llm_engine.model_config.get_vocab_size()

    def prompts(self, count: int, length: int) -> list[dict]:
        """Random ids, never the same twice."""
        return [
            {"prompt_token_ids": [self.random.randrange(2, self.vocabulary) for _ in range(length)]}
            for _ in range(count)
        ]

    def seconds(self, prompts: list[dict], tokens: int) -> float:
        """Of one generation. Several prompts begin in one step, so that batches are the same again.

        So do data-parallel ranks, whose engines step on for a while without a token; that is not timed.
        """
        from vllm import SamplingParams

        paused = len(prompts) > 1 or self.ranks.size > 1
        prompts, tokens = self.ranks.share(prompts, tokens)
        greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        engine, start = self.llm.llm_engine, time.perf_counter()
        with steps_wait(self.llm, paused):
            self.llm.enqueue(prompts, greedy, use_tqdm=False)
            if paused:
                self.ranks.meet()
                start = time.perf_counter()
        while engine.output_processor.has_unfinished_requests():
            engine.step()
        took = time.perf_counter() - start
        self.llm.wait_for_completion(use_tqdm=False)
        return took

    def first_token_ms(self, lengths: list[int], rounds: int) -> dict[int, list[float]]:
        """Of a prompt of each length alone; one more round warms up. Lengths take turns, as the host's moods do."""
        found = {length: [] for length in lengths}
        for _ in range(rounds + 1):
            for length in lengths:
                found[length].append(self.seconds(self.prompts(1, length), 1) * 1e3)
        return {length: ms[1:] for length, ms in found.items()}

    def step_ms(self, sizes: list[int], rounds: int) -> dict[int, list[float]]:
        """Of one decoding step of each number of sequences, which take turns."""
        found = {sequences: [] for sequences in sizes}
        for _ in range(rounds):
            for sequences in sizes:
                prompts = self.prompts(sequences, 16)
                found[sequences].append((self.seconds(prompts, LONG) - self.seconds(prompts, 1)) / (LONG - 1) * 1e3)
        return found

    def profile(self, sequences: int) -> dict:
        """Microseconds of a step, by part, as the first rank's kernels have it; and its kernels' number."""
        prompts = self.prompts(sequences, 16)
        found = []
        for tokens in (PROFILED, 1):
            self.llm.collective_rpc("full_profile_start")
            self.seconds(prompts, tokens)
            ranks = self.llm.collective_rpc("full_profile_stop")
            found.append([[step.Kernel(*kernel) for kernel in kernels] for kernels in ranks])
        return step.taken_apart(*found, PROFILED - 1)

    def host_us(self, length: int, rounds: int) -> dict[str, float]:
        """Medians of the host's time in an MoE layer, while a prompt of this length is read, eagerly."""
        self.llm.collective_rpc("full_host_start")
        for _ in range(rounds):
            self.seconds(self.prompts(1, length), 1)
        calls = self.llm.collective_rpc("full_host_stop")[0]
        return {name: statistics.median(us) for name, us in calls.items()}


def measure(arguments, ranks: Ranks) -> dict:
    """Start, then every number."""
    import torch

    from vllm import __version__

    server = Server(arguments, ranks)
    cache = server.llm.llm_engine.vllm_config.cache_config
    report = {
        "device": torch.cuda.get_device_name(),
        "vllm": __version__,
        "backend": arguments.backend,
        "mode": os.environ.get("NVFP4_MOE_MODE", "") if arguments.backend == "ours" else "",
        "layout": arguments.layout,
        "start_s": server.start_s,
        "kv_blocks": cache.num_gpu_blocks,
    }
    if arguments.most_error and ranks.size == 1:  # a layer whose tokens are exchanged cannot be asked alone
        report["layer_error"] = max(server.llm.collective_rpc("full_layer_error"))
        save(report, arguments.out)
        if not report["layer_error"] <= arguments.most_error:
            sys.exit(f"a layer's error is {report['layer_error']}; it must be at most {arguments.most_error}.")
    start = time.perf_counter()
    say("engine is ready")
    server.step_ms(sorted(arguments.sequences)[::-1], 1)  # the first touch of every kernel is not measured
    report["first_touch_s"] = time.perf_counter() - start
    say("every kernel was touched")
    save(report, arguments.out)
    report["step_ms"] = server.step_ms(arguments.sequences, arguments.rounds)
    say("steps are measured")
    save(report, arguments.out)
    report["first_token_ms"] = server.first_token_ms(arguments.prompts, arguments.rounds)
    say("first tokens are measured")
    save(report, arguments.out)
    report["memory"] = server.llm.collective_rpc("full_memory")
    report["host_us"] = {n: server.host_us(n, arguments.rounds) for n in arguments.host}
    say("the host's times are measured")
    save(report, arguments.out)
    report["profile"] = {n: server.profile(n) for n in arguments.profile}
    return report


def say(what: str) -> None:
    """How far this process came, for who reads the log of one that was stopped."""
    print(f"{time.strftime('%H:%M:%S')} full.one: {what}", flush=True)


def save(report: dict, file: Path) -> None:
    """As JSON, with the medians of the times; after each quantity, so that a run that is stopped leaves what it has."""
    timed = [kind for kind in ("step_ms", "first_token_ms") if kind in report]
    report["medians"] = {kind: {n: statistics.median(values) for n, values in report[kind].items()} for kind in timed}
    file.write_text(json.dumps(report, indent=1))


def numbers(text: str) -> list[int]:
    """`1,8,64`."""
    return [int(word) for word in text.split(",") if word]


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=BACKENDS, default="ours")
    parser.add_argument("--load-format", default="full_random", help="auto reads a checkpoint")
    parser.add_argument("--layout", choices=LAYOUTS, default="tp2")
    parser.add_argument("--sequences", type=numbers, default=[1, 8, 64, 256])
    parser.add_argument("--prompts", type=numbers, default=[128, 512, 2048, 8000])
    parser.add_argument("--profile", type=numbers, default=[], help="numbers of sequences whose step is taken apart")
    parser.add_argument("--host", type=numbers, default=[], help="lengths of prompts whose layers' host time is taken")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=float, default=0.9)
    parser.add_argument("--most-error", type=float, help="of a layer against float64, or nothing is timed")
    arguments = parser.parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if arguments.layout != "one":
        os.environ[ahead.WAITING] = "VllmWorker"
    ranks = Ranks.begin(DATA_PARALLEL.get(arguments.layout, 1), ["-m", "full.one", *sys.argv[1:]])
    if ranks.rank:
        arguments.out = arguments.out.with_suffix(f".rank{ranks.rank}")
    save(measure(arguments, ranks), arguments.out)
    ranks.meet()
    sys.stdout.flush()
    os._exit(0)  # vLLM takes five seconds to end; who started this process ends what is left of it


if __name__ == "__main__":
    main()
