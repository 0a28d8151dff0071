# SPDX-License-Identifier: Apache-2.0
"""`doctor serve URL`: experiments on a running server, of any engine, each of which decides something."""

import os

from . import serve_penalties, serve_same
from .canonical import Variant
from .client import Refused, Server
from .directory import Directory
from .finding import Report, WrongUse, progress
from .loops import repetition, tail_loop
from .prompt import compare, examine, variants_of
from .tokenizer import Tokenizer

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
LONG_ENOUGH = 512


def run(arguments) -> int:
    """Print what was found; 1 if any of it explains wrong answers."""
    return check(arguments).finish(arguments.json)


def check(arguments) -> Report:
    """Every experiment that is not left out, in order of cost."""
    unknown = [name for name in (arguments.skip or []) if name not in EXPERIMENTS]
    if unknown:
        raise WrongUse(f"--skip {unknown[0]} is no experiment; there are {', '.join(EXPERIMENTS)}.")
    report = Report("serve", arguments.url)
    try:
        server = Server(arguments.url, os.environ.get("OPENAI_API_KEY"))
    except (OSError, ValueError, Refused) as error:
        report.fault(
            "no-server", f"{error}; a server answers /v1/models", "nothing can be asked.", "Start it, or mend the URL."
        )
        return report
    report.fact("model", server.model)
    for number, (name, experiment) in enumerate(EXPERIMENTS.items(), 1):
        if name in (arguments.skip or []):
            report.fact(name, "skipped")
            continue
        progress(f"{number} of {len(EXPERIMENTS)}: {experiment.__doc__.splitlines()[0]}")
        try:
            experiment(report, server, arguments.model_dir)
        except Refused as error:
            refused(report, name, error)
        except (OSError, ValueError) as error:
            report.fault(
                "server-fails", f"{name}: {error}", "the server broke off, or speaks another protocol.", "See its log."
            )
    return report


def refused(report: Report, name: str, error: Refused) -> None:
    """An engine may lack a feature; it may not fail inside."""
    if error.status < 500:
        report.fact(name, f"not decided: {error}")
        return
    nan = "JSON compliant" in str(error) or "nan" in str(error).lower()
    report.fault(
        "logprobs-not-finite" if nan else "server-error",
        f"{name}: {error}",
        "NaN reached the sampler." if nan else "the engine failed inside.",
        "Find its first layer with doctor layers." if nan else "See the server's log.",
    )


def finish(report: Report, server: Server, _directory: str | None) -> None:
    """Does a short answer end by itself?"""
    body = {"messages": QUESTION, "max_tokens": LONG_ENOUGH, "temperature": 0}
    choice = server.post("/v1/chat/completions", body)["choices"][0]
    message = choice.get("message") or {}
    text, thoughts = message.get("content") or "", message.get("reasoning_content") or message.get("reasoning") or ""
    words = (thoughts + " " + text).split()
    report.fact(
        "answer",
        f"{choice.get('finish_reason')}, {len(words)} words, repetition {repetition(words):.2f}: {text[:80]!r}",
    )
    loop = tail_loop(words) or tail_loop(thoughts + text)
    if choice.get("finish_reason") == "length":
        report.fault(
            "answer-does-not-end",
            f"finish_reason is length after {LONG_ENOUGH} tokens for a question with a short answer; it must be stop",
            "no end was written, or nobody stops at it." if not loop else "the answer is a loop.",
            "Ask doctor stop (is the end in the stop set?) and doctor prompt (is it the model's prompt?).",
        )
    elif not text.strip():
        report.fault(
            "answer-is-empty",
            f"0 words of answer and {len(thoughts.split())} of thought, finish_reason {choice.get('finish_reason')}",
            "the model ended at once: a wrong thinking marker, or a reasoning parser that took the answer.",
            "Ask doctor prompt; try without --reasoning-parser.",
        )
    elif loop:
        report.fault(
            "answer-loops",
            f"the answer repeats its last part {loop.repeats:.0f} times; 1 is right",
            "the model is stuck.",
            "Ask doctor prompt and doctor layers.",
        )


def tokenized(report: Report, server: Server, directory: str | None) -> None:
    """Is the server's prompt the canonical one?"""
    said = server.post("/tokenize", {"messages": QUESTION, "add_generation_prompt": True})
    ids = said.get("tokens")
    if not isinstance(ids, list) or not all(isinstance(number, int) for number in ids):
        raise ValueError("/tokenize gave no list of ids in `tokens`; it must, as vLLM's does.")
    report.fact("prompt of the server", f"{len(ids)} ids: {ids[:16]}")
    if directory is None:
        report.fact("canonical prompt", "not compared: no --model-dir")
        return
    inner = Report("prompt", directory)
    files = Directory(directory)
    tokenizer = Tokenizer(files)
    examine(inner, files, tokenizer)
    variants: list[Variant] = variants_of(inner, files, tokenizer, QUESTION, trust=False)
    compare(report, ids, variants, tokenizer)


EXPERIMENTS = {
    "greedy": serve_same.greedy_twice,
    "logprobs": serve_same.finite_and_greedy,
    "batch": serve_same.alone_and_in_a_batch,
    "prefix-cache": serve_same.with_and_without_cache,
    "long-prompt": serve_same.long_prompt,
    "repetition-penalty": serve_penalties.repetition_penalty,
    "other-penalties": serve_penalties.other_penalties,
    "finish": finish,
    "tokenize": tokenized,
}
