# SPDX-License-Identifier: Apache-2.0
"""Answers of a server that must be the same, however the request was computed."""

import math
import os

from .client import Answer, Server
from .finding import Report

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "1, 2, 3, 4, 5, 6, 7,",
    "def fibonacci(n):\n    ",
]
# Engines add in another order in another batch, in bf16, and of two experts that are nearly tied the other one may be
# chosen: a lead below this may be lost to rounding.
TIE_NATS = 1.0


def greedy_twice(report: Report, server: Server, _directory: str | None) -> None:
    """Does the same greedy request give the same answer twice?"""
    first, second = server.complete(PROMPTS[0]), server.complete(PROMPTS[0])
    compare(report, "greedy-differs", first, second, "asked twice", "state leaks from one request into the next.")


def finite_and_greedy(report: Report, server: Server, _directory: str | None) -> None:
    """Are logprobs finite, and is temperature 0 the best token?"""
    answer = server.complete(PROMPTS[1])
    if not answer.logprobs:
        report.fact("logprobs", "not decided: the server gives none")
        return
    bad = [at for at, value in enumerate(answer.logprobs) if value is None or not math.isfinite(value)]
    if bad:
        report.fault(
            "logprobs-not-finite",
            f"the logprob of token {bad[0]} is {answer.logprobs[bad[0]]} ({len(bad)} of {len(answer.logprobs)}); "
            "all must be finite",
            "NaN or infinity reached the head.",
            "Find the first layer with doctor layers.",
        )
        return
    for at, (value, top) in enumerate(zip(answer.logprobs, answer.tops)):
        best = max((v for v in top.values() if v is not None), default=value)
        if best > value + 1e-3:
            report.fault(
                "temperature-0-is-not-greedy",
                f"token {at} has logprob {value:.3f} and the best had {best:.3f}; at temperature 0 they are the same",
                "the sampler does not get the temperature, or something changes logits behind the logprobs.",
                "Look at the server's default sampling parameters (--generation-config) and logits processors.",
            )
            return


def alone_and_in_a_batch(report: Report, server: Server, _directory: str | None) -> None:
    """Does a request get the answer in a batch that it gets alone?"""
    alone = [server.complete(prompt) for prompt in PROMPTS]
    for prompt, before, after in zip(PROMPTS, alone, server.together(PROMPTS)):
        what = f"{prompt!r} alone and among {len(PROMPTS)}"
        if compare(
            report, "batch-differs", before, after, what, "rows of a batch are mixed up, or are not independent."
        ):
            return


def with_and_without_cache(report: Report, server: Server, _directory: str | None) -> None:
    """Does the prefix cache change the answer?"""
    prompt = " ".join(PROMPTS * 4)
    server.complete(prompt, tokens=1)
    cached = server.complete(prompt)
    salted = server.complete(prompt, cache_salt=os.urandom(8).hex())  # no other request's blocks fit
    compare(report, "prefix-cache-differs", cached, salted, "cached and salted", "a cached block is not this prompt's.")


def long_prompt(report: Report, server: Server, _directory: str | None) -> None:
    """Is a long prompt the same when its prefill is cut into chunks beside others?"""
    words = min(1500, server.max_model_len // 4)
    prompt = " ".join(f"{PROMPTS[n % len(PROMPTS)]} {n}" for n in range(max(1, words // 8)))
    alone = server.complete(prompt, cache_salt=os.urandom(8).hex())
    salts = [f"{n} {prompt}" for n in range(3)]
    beside = server.together([prompt, *salts], cache_salt=os.urandom(8).hex())[0]
    compare(
        report, "long-prompt-differs", alone, beside, "long, alone and beside 3", "chunked prefill changes the answer."
    )


def compare(report: Report, name: str, first: Answer, second: Answer, what: str, means: str) -> bool:
    """A finding if two greedy answers differ: a fault where the first token that differs had a clear lead."""
    at = next((at for at, (a, b) in enumerate(zip(first.tokens, second.tokens)) if a != b), None)
    if at is None:
        at = min(len(first.tokens), len(second.tokens))
        if len(first.tokens) == len(second.tokens):
            return False
    margin = first.margin(at)
    a, b = (answer.tokens[at] if at < len(answer.tokens) else "nothing" for answer in (first, second))
    lead = "unknown" if margin is None else f"{margin:.3f} nats"
    tied = margin is not None and margin <= TIE_NATS
    (report.note if tied else report.fault)(
        name,
        f"{what}: token {at} is {a!r} and {b!r}, with a lead of {lead}; rounding moves up to {TIE_NATS}",
        "the two were tied, and engines round by batch." if tied else means,
        "Nothing to do."
        if tied
        else "Try --enforce-eager, --no-enable-prefix-caching, and NVFP4_MOE_DISABLE=1, one by one.",
    )
    return True
