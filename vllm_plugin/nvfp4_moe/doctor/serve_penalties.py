# SPDX-License-Identifier: Apache-2.0
"""Do penalties reach the sampler? By experiments whose outcome no model can spoil.

One token gets a logit bias of 100 and another one of 90: every model answers with the first alone. A repetition penalty
of 1.5 makes 67 of its 100, once it was seen: then the other one comes. So with it the second token of the answer is the
other one; and if the first one stands in the prompt, the first token is. Needs an engine that adds biases before it
divides, as vLLM does; on another one only a change of a loop is asked for.
"""

from .client import Server
from .finding import Report
from .loops import repetition

FIRST, OTHER = 264, 276  # any two: within every vocabulary, behind the special tokens that stand first
START = [40, 41, 42]
PENALTY = 1.5
ENOUGH = 80
LOOP = "one two three one two three one two three one two three one two three one two three"
NOT_APPLIED = "the penalty never reaches the sampler: nothing stops a loop."
REMEDY = "See whether the server drops unknown parameters, and whether its model runner applies penalties."


def repetition_penalty(report: Report, server: Server, _directory: str | None) -> None:
    """Does a repetition penalty reach the sampler, and does it see the prompt?"""
    for first, other in ((FIRST, OTHER), (OTHER, FIRST)):  # a model may prefer one by more than 10
        biases = {"logit_bias": {str(first): 100, str(other): 90}, "tokens": 4}
        base = server.complete(START, **biases).tokens
        if (
            len(set(base)) == 1
            and server.complete(START, **biases | {"repetition_penalty": PENALTY}).tokens[1] != base[1]
        ):
            report.fact("repetition_penalty", f"{PENALTY} reaches the sampler")
            sees_the_prompt(report, server, [*START, first], base[0], biases)
            return
    if server.is_vllm and len(set(base)) == 1:
        report.fault(
            "penalty-not-applied",
            f"{base[0]!r}, with a logit of about 100, is repeated with repetition_penalty {PENALTY}; "
            f"{100 / PENALTY:.0f} must be left of it, below another's 90",
            NOT_APPLIED,
            REMEDY,
        )
        return
    change_of_a_loop(report, server)


def sees_the_prompt(report: Report, server: Server, prompt: list[int], first: str, biases: dict) -> None:
    """The token `first` stands in the prompt: with the penalty, it must not be the answer's first."""
    answer = server.complete(prompt, **biases | {"repetition_penalty": PENALTY}).tokens
    if answer[0] == first:
        report.fault(
            "penalty-does-not-see-the-prompt",
            f"with {first!r} in the prompt the penalised answer still begins with {answer[0]!r}; its logit must "
            f"fall from 100 to {100 / PENALTY:.0f}, below another's 90",
            "the penalty counts the answer's tokens alone: a loop that began in the prompt goes on.",
            "Update the engine, or use frequency_penalty.",
        )
    else:
        report.fact("repetition_penalty and the prompt", "it sees the prompt's tokens")


def change_of_a_loop(report: Report, server: Server) -> None:
    """Where biases do not decide: a loop must change with the penalty."""
    base, changed = server.complete(LOOP), server.complete(LOOP, repetition_penalty=PENALTY)
    if repetition(base.tokens, 1) < 0.3:
        report.fact("repetition_penalty", "not decided: biases do not decide here, and the model does not loop")
    elif base.tokens == changed.tokens:
        report.fault(
            "penalty-not-applied",
            f"a loop ({repetition(base.tokens, 1):.0%} repeated tokens) is the same with repetition_penalty "
            f"{PENALTY} as with 1",
            NOT_APPLIED,
            REMEDY,
        )
    else:
        report.fact("repetition_penalty", f"{PENALTY} changes a loop")


def other_penalties(report: Report, server: Server, _directory: str | None) -> None:
    """Do frequency and presence penalties reach the sampler?"""
    one = {str(FIRST): 100}
    base = server.complete(START, tokens=6, logit_bias=one)
    if len(set(base.tokens)) != 1:
        report.fact("other penalties", "not decided: no bias reaches the sampler")
        return
    # Each time counts 2 against it: after some 50 of 80 its lead of 100 is gone.
    answer = server.complete(START, tokens=ENOUGH, logit_bias=one, frequency_penalty=2.0)
    if set(answer.tokens) == set(base.tokens) and len(answer.tokens) == ENOUGH:
        report.fault(
            "penalty-not-applied",
            f"with a lead of 100 and frequency_penalty 2 a token is {ENOUGH} of {ENOUGH}; about 50 are right",
            NOT_APPLIED,
            "See whether the server drops the parameter.",
        )
    else:
        report.fact("frequency_penalty", "reaches the sampler")
    # Of eight tokens that lead by 100, the best two are hardly more than 2 apart: 2 less for the first shows.
    eight = {str(FIRST + number): 100 for number in range(8)}
    base, answer = (server.complete(START, tokens=6, logit_bias=eight, presence_penalty=value) for value in (0, 2.0))
    decided = "reaches the sampler" if base.tokens != answer.tokens else "not decided: one token leads by more than 2"
    report.fact("presence_penalty", decided)
