# SPDX-License-Identifier: Apache-2.0
"""Imported by serve_one.py, or a bundle's server: after each of its generations, the same prompts again, timed.

A step's time is what a token more costs: generations of LONG tokens less generations of one, so that prompts, tokenizer
and first-call compilation cancel out. Writes JSON to the file that NVFP4_MOE_DECODE_TIMES names: `seconds`, from the
number of prompts to those of a step, one for each round, and `steps`, the decoding steps that the timing added.
"""

import json
import os
import time
from pathlib import Path

from vllm import LLM, SamplingParams

ROUNDS = 5
LONG = 65

_generate = LLM.generate
_seconds_a_step: dict[int, list[float]] = {}


def _seconds(llm: LLM, prompts: list[str], num_tokens: int) -> float:
    start = time.perf_counter()
    _generate(llm, prompts, SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True), use_tqdm=False)
    return time.perf_counter() - start


def generate(self, prompts, *args, **kwargs):
    """`LLM.generate`, then the timing; the answer is that of the first, untimed generation."""
    answer = _generate(self, prompts, *args, **kwargs)
    pairs = [(_seconds(self, prompts, LONG), _seconds(self, prompts, 1)) for _ in range(ROUNDS)]
    _seconds_a_step[len(prompts)] = [(long - short) / (LONG - 1) for long, short in pairs]
    added = {"seconds": _seconds_a_step, "steps": len(_seconds_a_step) * ROUNDS * (LONG - 1)}
    Path(os.environ["NVFP4_MOE_DECODE_TIMES"]).write_text(json.dumps(added))
    return answer


LLM.generate = generate
