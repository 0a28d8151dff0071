# SPDX-License-Identifier: Apache-2.0
"""One engine of serve_two.py: greedy tokens of a few prompts, round after round, and what ran meanwhile, as JSON.

    python -m full.case MODEL --out FILE [--options JSON] [--ranks 2 --last N] [--rounds N] [--cpu]

Data-parallel ranks share the prompts; each writes a file of its own, the second `FILE` with the suffix `.rank1`.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from . import one
from .ranks import Ranks

# Ids, so that no tokenizer decides. A prompt of one token over and over is what makes a few experts hot.
PROMPTS = [
    [5, 17, 400, 23, 911, 64],
    list(range(300, 340)),
    [7] * 60,
    [(37 * i) % 900 + 3 for i in range(150)],
    [7] * 9,
]
GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8]}
COMMON = {
    "skip_tokenizer_init": True,
    "dtype": "bfloat16",
    "max_model_len": 512,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 512,
    "seed": 0,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
    "worker_extension_cls": "full.seen.Seen",
}
# A small cache of a given size: engines that share a GPU cannot measure what is left of it.
ON_GPU = {"compilation_config": GRAPHS, "gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": 1 << 30}
ON_CPU = {"enforce_eager": True}
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "TRITON_INTERPRET": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
}


def serve(arguments, ranks: Ranks) -> dict:
    """Start the engine, generate, and say what ran."""
    from vllm import LLM, SamplingParams

    llm = LLM(model=arguments.model, **COMMON | (ON_CPU if arguments.cpu else ON_GPU) | arguments.options)
    tokens = arguments.last if arguments.last and ranks.rank else arguments.tokens
    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS[ranks.rank :: ranks.size]]
    llm.collective_rpc("seen_start")
    report = {"rounds": [], "places": [llm.collective_rpc("seen_places")[0]]}

    def generate(prompts: list[dict]) -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, greedy, use_tqdm=False)]

    for _ in range(arguments.rounds):
        ranks.meet()
        report["rounds"].append(generate(prompts))
        report["places"].append(llm.collective_rpc("seen_places")[0])
    if arguments.alone:
        report["rounds"].append([generate([prompt])[0] for prompt in prompts])
    return report | {"seen": llm.collective_rpc("seen")}


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--options", type=json.loads, default={}, help="more arguments of vllm.LLM")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1, help="data-parallel ranks")
    parser.add_argument("--last", type=int, help="tokens of all ranks but the first, which then have none in a step")
    parser.add_argument("--alone", action="store_true", help="one more round, of every prompt by itself")
    parser.add_argument("--cpu", action="store_true", help="without a GPU: no graphs")
    arguments = parser.parse_args()
    for name, value in (one.ENVIRONMENT | (CPU_ENVIRONMENT if arguments.cpu else {})).items():
        os.environ.setdefault(name, value)
    ranks = Ranks.begin(arguments.ranks, ["-m", "full.case", *sys.argv[1:]])
    out = arguments.out.with_suffix(f".rank{ranks.rank}") if ranks.rank else arguments.out
    report = serve(arguments, ranks)
    part = out.with_name(f"{out.name}.part")
    part.write_text(json.dumps(report))
    part.rename(out)
    ranks.meet()
    sys.stdout.flush()
    os._exit(0)  # vLLM takes five seconds to end; who started this process ends what is left of it


if __name__ == "__main__":
    main()
