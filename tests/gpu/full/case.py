# SPDX-License-Identifier: Apache-2.0
"""One engine of serve_two.py: greedy tokens of a few prompts, round after round, and what ran meanwhile, as JSON.

    python -m full.case MODEL --out FILE [--options JSON] [--ranks 2 --last N] [--rounds N] [--forced] [--cpu]

All prompts of a round begin in one step: which ones share a step decides sizes of tiles, and with them last bits.
Data-parallel ranks share the prompts; each writes a file of its own, the second `FILE` with the suffix `.rank1`.
"""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path

from . import one
from .options import PLAIN, SMALL_CACHE, decode_graphs
from .ranks import Ranks, steps_wait

# Ids, so that no tokenizer decides. A prompt of one token over and over is what makes a few experts hot.
PROMPTS = [
    [5, 17, 400, 23, 911, 64],
    list(range(300, 340)),
    [7] * 60,
    [(37 * i) % 900 + 3 for i in range(150)],
    [7] * 9,
]
# What --forced decodes: so many texts behind as many prompts, a round of prompts like those above at a time. They are
# short, because an expert that differs early is still seen at the end. And of how many ids an engine gives logprobs.
FORCED_ROUNDS, FORCED_TOKENS, LOGPROBS = 4, 16, 20
FORCED_PROMPTS = [[(token + 37 * n) % 1000 for token in ids] for n in range(FORCED_ROUNDS) for ids in PROMPTS]
TEXTS = [[(53 * i + 101 * n) % 900 + 3 for i in range(FORCED_TOKENS)] for n in range(len(FORCED_PROMPTS))]
COMMON = PLAIN | {
    "skip_tokenizer_init": True,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 512,
    "worker_extension_cls": "full.seen.Seen",
}
ON_GPU = {"compilation_config": decode_graphs([1, 2, 4, 8]), **SMALL_CACHE}
ON_CPU = {"enforce_eager": True}
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "TRITON_INTERPRET": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
}


class Engine:
    """vLLM, asked by this rank."""

    def __init__(self, arguments, ranks: Ranks):
        from vllm import LLM

        forced = {"logits_processors": ["full.forced:Forced"]} if arguments.forced else {}
        options = COMMON | (ON_CPU if arguments.cpu else ON_GPU) | forced | arguments.options
        self.llm, self.ranks = LLM(model=arguments.model, **options), ranks
        self.prompts = [{"prompt_token_ids": ids} for ids in PROMPTS[ranks.rank :: ranks.size]]

    def outputs(self, prompts: list[dict], sampling: list) -> list:
        """Of prompts that begin in one step. Ranks pause by stepping without tokens, so theirs begin as they come."""
        with steps_wait(self.llm, len(prompts) > 1 and self.ranks.size == 1):
            self.llm.enqueue(prompts, sampling, use_tqdm=False)
        return [output.outputs[0] for output in self.llm.wait_for_completion(use_tqdm=False)]

    def tokens(self, prompts: list[dict], count: int) -> list[list[int]]:
        """What it chooses."""
        from vllm import SamplingParams

        greedy = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        return [list(output.token_ids) for output in self.outputs(prompts, [greedy] * len(prompts))]

    def forced(self, number: int) -> list[list[dict[int, float]]]:
        """A round of texts; of each of this rank's tokens, in its context: the likeliest ids, and their logprobs."""
        from vllm import SamplingParams

        first, last = number * len(PROMPTS), (number + 1) * len(PROMPTS)
        share = slice(first + self.ranks.rank, last, self.ranks.size)
        texts, prompts = TEXTS[share], [{"prompt_token_ids": ids} for ids in FORCED_PROMPTS[share]]
        sampling = [
            SamplingParams(temperature=0, max_tokens=len(text), ignore_eos=True, detokenize=False, logprobs=LOGPROBS,
                           extra_args={"forced": text}) for text in texts
        ]  # fmt: skip
        outputs = self.outputs(prompts, sampling)
        took = [list(output.token_ids) for output in outputs]
        if took != texts:
            raise RuntimeError(f"forced texts are {took}; they must be {texts}. See full/forced.py.")
        return [[{id: one.logprob for id, one in step.items()} for step in output.logprobs] for output in outputs]


def reloaded(engine: Engine, arguments, rounds: list) -> dict:
    """Rounds with other weights, the first again, and these after sleep of both levels; bytes held by each rank."""
    llm, load = engine.llm, partial(engine.llm.collective_rpc, "reload_weights")
    held = [llm.collective_rpc("seen_bytes")]

    def note() -> None:
        rounds.append(engine.tokens(engine.prompts, arguments.tokens))
        held.append(llm.collective_rpc("seen_bytes"))

    for model in (arguments.reload, arguments.model):
        load(kwargs={"weights_path": model})
        note()
    if not arguments.cpu:  # vLLM sleeps on a GPU only
        llm.sleep(level=1)
        llm.wake_up()
        note()
        llm.sleep(level=2)
        llm.wake_up(tags=["weights"])
        load(kwargs={"weights_path": arguments.model})
        llm.wake_up(tags=["kv_cache"])
        note()
    return {"held": held}


def serve(arguments, ranks: Ranks) -> dict:
    """Start the engine, generate, and say what ran."""
    engine = Engine(arguments, ranks)
    rpc, prompts = engine.llm.collective_rpc, engine.prompts
    tokens = arguments.last if arguments.last and ranks.rank else arguments.tokens
    rpc("seen_start")
    report = {"rounds": [], "places": [rpc("seen_places")[0]]}
    for _ in range(arguments.rounds):
        ranks.meet()
        report["rounds"].append(engine.tokens(prompts, tokens))
        report["places"].append(rpc("seen_places")[0])
    if arguments.alone:
        report["rounds"].append([engine.tokens([prompt], tokens)[0] for prompt in prompts])
    if arguments.reload:
        report |= reloaded(engine, arguments, report["rounds"])
    report["seen"] = rpc("seen")
    if arguments.forced:
        ranks.meet()
        report["forced"] = [engine.forced(number) for number in range(FORCED_ROUNDS)]
    return report


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
    parser.add_argument("--reload", help="another model's folder: its weights, then the first ones, then sleep")
    parser.add_argument("--forced", action="store_true", help="decode TEXTS, too, and say what the engine thinks of it")
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
