# SPDX-License-Identifier: Apache-2.0
"""Real vLLM in this process, with our methods in its workers; each of them is asked by name."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from .finding import WrongUse, progress

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one rank runs here: less memory, and a debugger reaches it
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is the report
    "VLLM_NO_USAGE_STATS": "1",
}
# Every id is in every vocabulary, and some repeat; long enough that a window or a block of 128 is passed.
PROMPT = [(37 * number) % 230 + 20 for number in range(150)]


class Engine:
    """One model, loaded once."""

    def __init__(self, model: str, options: str = "{}"):
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            given = json.loads(options)
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise WrongUse(f"vllm cannot be imported ({error}); this command serves the model. Install it.") from None
        except ValueError as error:
            raise WrongUse(f"--options is no JSON object ({error}); it takes arguments of vllm.LLM.") from None
        defaults = {
            "worker_extension_cls": "nvfp4_moe.doctor.worker.Probe",
            "dtype": "bfloat16",
            "enforce_eager": True,  # a captured graph runs no hooks
            "max_model_len": 512,
            "max_num_seqs": 2,
            "max_num_batched_tokens": 512,
            "enable_prefix_caching": False,
            "seed": 0,
        }
        progress("loading the model")
        self.model = model
        with stdout_to_stderr():
            self.llm = LLM(
                model=model,
                disable_log_stats=True,
                **defaults | given,
            )
        self.sampling = partial(SamplingParams, temperature=0, ignore_eos=True)

    def ask(self, prompt: list[int], num_forwards: int = 2) -> list[int]:
        """The prompt in one forward, and one token in each that follows."""
        sampling = self.sampling(max_tokens=num_forwards)
        with stdout_to_stderr():
            outputs = self.llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        return list(outputs[0].outputs[0].token_ids)

    def workers(self, method: str, *arguments: Any) -> list[Any]:
        """A method of every worker, by its name after `nvfp4_moe_doctor_`."""
        return self.llm.collective_rpc(f"nvfp4_moe_doctor_{method}", args=arguments)

    def watch(self, prompt: list[int], keep: bool = False) -> list[int]:
        """One request, watched; afterwards workers tell what passed."""
        self.workers("install", keep)
        try:
            return self.ask(prompt)
        finally:
            self.workers("remove")


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Whatever vLLM, its libraries and its workers print does not get into the report, which may be JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
