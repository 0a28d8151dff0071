# SPDX-License-Identifier: Apache-2.0
"""`doctor stop DIR`: where does an answer end, who says so, and did a bad answer go past its end?"""

import re
from typing import NamedTuple

from . import canonical, contracts
from .directory import Directory
from .finding import Report, counted, some
from .loops import tail_loop
from .prompt import FAMILY, numbers
from .tokenizer import Tokenizer, report_of

ANSWER, QUESTION = "Zebra crossing.", "And then?"
# Names that models give to the end of a turn.
END = re.compile(r"^(</s>|\[/?EOS\]|<\|?(im_end|eot_id|eom_id|end|endoftext|return|user_end)\|?>|<end_of_turn>|<eos>)$")


class Source(NamedTuple):
    """A place that names ends."""

    name: str
    ids: list[int]


def run(arguments) -> int:
    """Print the places, the set to use, and what is wrong; 1 if anything is."""
    return check(arguments).finish(arguments.json)


def check(arguments) -> Report:
    """Of a directory, and of a bad answer if one is given."""

    def of(report: Report, directory: Directory, tokenizer: Tokenizer) -> None:
        sources = places(report, directory, tokenizer)
        stops = judge(report, directory, tokenizer, sources, after_answer(directory, tokenizer))
        if arguments.output_ids is not None:
            output(report, numbers(arguments.output_ids, "--output-ids"), stops, tokenizer)

    return report_of("stop", arguments.model, of)


def places(report: Report, directory: Directory, tokenizer: Tokenizer) -> list[Source]:
    """Every file that names an end."""
    generation, special = directory.json("generation_config.json"), directory.json("special_tokens_map.json") or {}
    named = special.get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    found = [
        Source("generation_config.json", ids_in((generation or {}).get("eos_token_id"))),
        Source("config.json", ids_in(directory.config.get("eos_token_id"))),
        Source(
            "tokenizer_config.json", spelled(report, tokenizer, "tokenizer_config.json", tokenizer.named("eos_token"))
        ),
        Source("special_tokens_map.json", spelled(report, tokenizer, "special_tokens_map.json", named)),
    ]
    for source in found:
        report.fact(source.name, ", ".join(shown(tokenizer, number) for number in source.ids) or "names no end")
    if generation is None:
        report.note(
            "no-generation-config",
            "there are 0 of 1 generation_config.json",
            "temperature, top_p and ends are the engine's defaults.",
            "Copy the model's own, or set them in requests.",
        )
    else:
        given = {
            name: generation[name] for name in ("temperature", "top_p", "repetition_penalty") if name in generation
        }
        report.fact("sampling", ", ".join(f"{name} {value}" for name, value in given.items()) or "engine's defaults")
    return found


def ids_in(value: object) -> list[int]:
    """One id, or a list of them; whatever else is there is none."""
    values = value if isinstance(value, list) else [value]
    return [number for number in values if isinstance(number, int) and not isinstance(number, bool)]


def spelled(report: Report, tokenizer: Tokenizer, file: str, text: object) -> list[int]:
    """The id of a token that a file spells out."""
    if not isinstance(text, str):
        return []
    number = tokenizer.id_of(text)
    if number is None:
        report.fault(
            "eos-is-no-token",
            f"{file} ends with {text!r}, which is {len(tokenizer.encode(text))} ids; it must be 1",
            "nothing that the model writes ever equals it.",
            "Copy tokenizer.json and its companions of one model.",
        )
        return []
    return [number]


def shown(tokenizer: Tokenizer, number: int) -> str:
    """`1 '<eos>'`"""
    return f"{number} {tokenizer.piece(number)}"


def after_answer(directory: Directory, tokenizer: Tokenizer) -> Source | None:
    """The special token that a rendered conversation has behind an answer."""
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": QUESTION},
    ]
    template = canonical.chat_template(directory, tokenizer)
    if template:
        rendered = canonical.by_template(template, tokenizer, messages)
        text, name = ("" if isinstance(rendered, str) else rendered[0].text), "chat template"
    elif directory.config.get("model_type") in FAMILY:
        text, name = contracts.encode(messages, "official"), "DeepSeek-V4's encoding"
    else:
        return None
    _, answer, behind = text.partition(ANSWER)
    behind = behind.partition(QUESTION)[0]
    specials = set(tokenizer.added.values())
    found = [number for number in tokenizer.encode(behind) if number in specials]
    return Source(name, found[:1]) if answer else None


def judge(
    report: Report, directory: Directory, tokenizer: Tokenizer, sources: list[Source], template: Source | None
) -> set[int]:
    """Where they disagree; returns the set that an engine uses: of generation_config or config, and the tokenizer."""
    generation, config, named, _ = (set(source.ids) for source in sources)
    used = (generation or config) | named
    if template is not None:
        report.fact(
            f"{template.name}, behind an answer", some(shown(tokenizer, n) for n in template.ids) or "no marker"
        )
    report.fact("an engine stops at", ", ".join(shown(tokenizer, number) for number in sorted(used)) or "nothing")
    if not used:
        report.fault(
            "no-end",
            "0 of 4 files name an end; an answer has one",
            "every answer runs into max_tokens.",
            "Add eos_token_id to generation_config.json.",
        )
    missing = set(template.ids) - used if template else set()
    if missing:
        report.fault(
            "end-not-in-stop-set",
            f"turns end with {some(shown(tokenizer, n) for n in missing)}; an engine stops at {sorted(used)}",
            "the model ends its answer, nobody stops, and it goes on with filler or with the user's turn.",
            f"Add {sorted(missing)} to eos_token_id in generation_config.json, or send it as stop_token_ids.",
        )
    conflict = [f"{source.name} has {source.ids}" for source in sources if source.ids and not set(source.ids) & used]
    if conflict:
        report.note(
            "ends-disagree",
            f"{some(conflict)}; an engine stops at {sorted(used)}",
            "engines that read another file stop elsewhere.",
            "Make the files agree.",
        )
    wrong_ends(report, directory, tokenizer, used)
    union = used | missing
    report.fact("stop set to use", str(sorted(union)))
    return used


def wrong_ends(report: Report, directory: Directory, tokenizer: Tokenizer, used: set[int]) -> None:
    """Ids that end nothing, or end too early."""
    vocabulary = directory.config.get("vocab_size")
    vocabulary = vocabulary if isinstance(vocabulary, int) else tokenizer.size
    outside = sorted(number for number in used if not 0 <= number < max(vocabulary, tokenizer.size))
    if outside:
        report.fault(
            "end-outside-vocabulary",
            f"{outside} are no ids; the vocabulary has {vocabulary}",
            "the model cannot write them.",
            "Use the tokenizer's id.",
        )
    early = [text for text in ("<think>", "</think>") if tokenizer.id_of(text) in used]
    if early:
        report.fault(
            "thinking-marker-is-an-end",
            f"{some(early)} is among the {len(used)} ends; thinking goes on behind it",
            "answers are empty: they stop before they begin.",
            "Take it out of eos_token_id.",
        )


def output(report: Report, ids: list[int], used: set[int], tokenizer: Tokenizer) -> None:
    """A bad generation: did it pass an end, and where does the loop begin?"""
    known = {number for text, number in tokenizer.added.items() if END.match(text) or text == contracts.EOS} | used
    report.fact("output", f"{counted(len(ids), 'id')}")
    passed = next((at for at, number in enumerate(ids[:-1]) if number in known), None)
    loop = tail_loop(ids)
    if passed is not None:
        number = ids[passed]
        inside = number in used
        report.fault(
            "output-passes-its-end",
            f"token {passed} of {len(ids)} is {shown(tokenizer, number)}, an end; "
            f"{len(ids) - passed - 1} tokens follow. "
            f"It is {'inside' if inside else 'outside'} the stop set {sorted(used)}",
            "the engine did not use this set (ignore_eos, or other files)." if inside else "nobody stops at it.",
            "Look at ignore_eos, min_tokens and the server's --generation-config."
            if inside
            else f"Add {number} to eos_token_id in generation_config.json, or send it as stop_token_ids.",
        )
    elif loop is not None:
        last = shown(tokenizer, ids[loop.start - 1]) if loop.start else "nothing"
        text = tokenizer.decode(ids[loop.start : loop.start + loop.period])
        place = "inside" if loop.start and ids[loop.start - 1] in used else "outside"
        report.fault(
            "output-loops",
            f"from token {loop.start} of {len(ids)} on only {text[:60]!r} follows, {loop.repeats:.0f} times; "
            "the last "
            f"token before is {last}, {place} the stop set {sorted(used)}",
            "no end was written: the model is stuck, and the stop set is not why.",
            "Ask doctor prompt (is it the model's prompt?) and doctor serve (do penalties reach the sampler?).",
        )
