# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001  the markers are spelled so
"""DeepSeek-V4's prompts. The first release had an encoder in Python instead of a chat template; there are three.

    <BOS> [effort] system <User>text<Assistant></think>answer<EOS> <User>text<Assistant>(<think> or </think>)

They differ in what a reasoning effort puts first, in thinking mode alone:

    preview    April's models     high: nothing         max: "Absolute maximum"
    official   Flash-0731, ...    low: nothing          high: "Absolute maximum"   max: "Beyond maximum"
    v41        V4.1               a number from 1 to 100 behind a system marker

Tool calls are left out: a conversation that has any is refused. Reasoning of earlier turns is dropped, as all three do.
"""

from collections.abc import Iterable

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, SYSTEM = "<｜User｜>", "<｜Assistant｜>", "<｜System｜>"
THINK, END_THINK = "<think>", "</think>"
SPECIAL = {BOS: 0, EOS: 1, USER: 128803, ASSISTANT: 128804, THINK: 128821, END_THINK: 128822}

ABSOLUTE_MAXIMUM = """Reasoning Effort: Absolute maximum with no shortcuts permitted.
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, \
rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.
Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, \
and rejected hypothesis to ensure absolutely no assumption is left unchecked.

"""
BEYOND_MAXIMUM = """Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.
You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the \
problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying cause \
rather than any surface symptom.
Do not stop reasoning until you have independently verified the solution from multiple angles and are certain that no \
assumption remains unchecked and no error remains undiscovered.

"""
BUDGET = "Reasoning Effort: {} (range 1-100, the higher the value, the more thorough the reasoning)\n\n"

# Contract -> reasoning effort -> what stands before the conversation in thinking mode.
EFFORTS = {
    "preview": {"high": "", "max": ABSOLUTE_MAXIMUM},
    "official": {"low": "", "high": ABSOLUTE_MAXIMUM, "max": BEYOND_MAXIMUM},
    "v41": {effort: BUDGET.format(number) for effort, number in (("low", 50), ("high", 75), ("max", 100))},
}
# In the text of an encoder -> the contract that it has; the first that occurs counts.
MARKS = {"range 1-100": "v41", "REASONING_EFFORT_PROMPTS": "official", "REASONING_EFFORT_MAX": "preview"}


def contract_of(texts: Iterable[str]) -> str | None:
    """Of an encoder's sources, which are searched and never run."""
    joined = "\n".join(texts)
    return next((contract for mark, contract in MARKS.items() if mark in joined), None)


def encode(messages: list[dict], contract: str, effort: str | None = None) -> str:
    """The prompt's text. `effort` is one of the contract's; None is chat mode, without thinking.

    ValueError for what is not written here: tools, a system message after the first, an answer at the end.
    """
    first = messages[0] if messages else {}
    system = text_of(first) if first.get("role") == "system" else ""
    turns = messages[1:] if first.get("role") == "system" else messages
    if not turns or turns[-1].get("role") not in ("user", "tool"):
        raise ValueError("the last message must be the user's or a tool's result; an answer is what comes next.")
    prefix = EFFORTS[contract][effort] if effort else ""
    if contract == "v41" and (prefix or first.get("role") == "system"):
        prefix = SYSTEM + prefix
    text, before = BOS + prefix + system, None
    for message in turns:
        text += turn(message, before)
        before = message["role"]
    return text + ASSISTANT + (THINK if effort else END_THINK)


def turn(message: dict, before: str | None) -> str:
    """A message behind one of the role `before`: tools' results stand in a user's turn, and such turns are joined."""
    role = message.get("role")
    if role in ("user", "tool"):
        content = text_of(message) if role == "user" else f"<tool_result>{text_of(message)}</tool_result>"
        return ("\n\n" if before in ("user", "tool") else USER) + content
    if role == "assistant" and before in ("user", "tool") and not message.get("tool_calls"):
        return ASSISTANT + END_THINK + text_of(message) + EOS
    raise ValueError(
        f"a message of role {role!r} behind {before!r}, or tool calls; only chats are compared. Leave it out."
    )


def text_of(message: dict) -> str:
    """Its content; parts are not compared."""
    content = message.get("content")
    if not isinstance(content, str) or message.get("tools"):
        raise ValueError(
            f"content is {type(content).__name__}; only plain text without tools is compared. Make it text."
        )
    return content
