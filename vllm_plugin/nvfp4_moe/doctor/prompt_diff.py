# SPDX-License-Identifier: Apache-2.0
"""What differs between two lists of ids, in words: one structural fault after the other is named and taken away."""

from difflib import SequenceMatcher

from .contracts import END_THINK, THINK
from .finding import Report
from .tokenizer import Tokenizer

SHOWN = 24  # lines of a diff
THINKING = (THINK, END_THINK)


def nearest(ids: list[int], candidates: list[list[int]]) -> int:
    """The index of the candidate that shares most with `ids`."""
    return max(range(len(candidates)), key=lambda at: SequenceMatcher(None, ids, candidates[at], False).ratio())


def diff(given: list[int], wanted: list[int], tokenizer: Tokenizer) -> list[str]:
    """Lines as a diff has them: - of the prompt, + of the canonical one, with position, id and text."""
    lines = []
    for kind, a, b, c, d in SequenceMatcher(None, given, wanted, False).get_opcodes():
        if kind == "equal":
            lines += [f"  {line(given, a, tokenizer)}"] if b - a == 1 else []
            if b - a > 1:
                lines.append(f"  {line(given, a, tokenizer)} ... {line(given, b - 1, tokenizer)}")
            continue
        lines += [f"- {line(given, at, tokenizer)}" for at in range(a, b)]
        lines += [f"+ {line(wanted, at, tokenizer)}" for at in range(c, d)]
    return lines[:SHOWN] + ([f"  and {len(lines) - SHOWN} lines more"] if len(lines) > SHOWN else [])


def line(ids: list[int], at: int, tokenizer: Tokenizer) -> str:
    """`@7 128804 '<｜Assistant｜>'`"""
    return f"@{at} {ids[at]} {tokenizer.piece(ids[at])}"


def explain(report: Report, given: list[int], wanted: list[int], tokenizer: Tokenizer, name: str) -> None:
    """Findings for everything in which `given` is not `wanted`, the canonical prompt called `name`."""
    given = special_as_text(report, given, wanted, tokenizer)
    given = leading_bos(report, given, wanted, tokenizer)
    given = ending(report, given, wanted, tokenizer, name)
    rest(report, given, wanted, tokenizer, name)


def special_as_text(report: Report, given: list[int], wanted: list[int], tokenizer: Tokenizer) -> list[int]:
    """Special tokens that were split into pieces; returns the ids with whole ones."""
    whole = tokenizer.encode(tokenizer.decode(given))
    specials = set(tokenizer.added.values())
    split = [number for number in set(whole) & specials & set(wanted) if whole.count(number) > given.count(number)]
    if not split or len(whole) >= len(given):
        return given
    for number in sorted(split):
        text = tokenizer.decode([number])
        report.fault(
            "special-as-text",
            f"{text} is spelled in pieces: {len(given) - len(whole)} ids too many in all; it is one id, {number}",
            "the model reads its letters and not the marker.",
            "Encode with special tokens parsed (not split_special_tokens, not encode_special_tokens).",
        )
    return whole


def leading_bos(report: Report, given: list[int], wanted: list[int], tokenizer: Tokenizer) -> list[int]:
    """BOS missing or doubled; returns ids with as many as wanted."""
    bos = tokenizer.id_of(tokenizer.named("bos_token"))
    if bos is None:
        return given
    there, should = leading(given, bos), leading(wanted, bos)
    if there == should:
        return given
    missing = there < should
    report.fault(
        "bos-missing" if missing else "bos-doubled",
        f"the prompt begins with {there} of {tokenizer.piece(bos)} (id {bos}); the canonical one has {should}",
        "many models babble without it." if missing else "training never showed two.",
        "Begin with it, or encode with add_special_tokens."
        if missing
        else "The template writes it: encode with add_special_tokens=False.",
    )
    return [bos] * should + given[there:]


def leading(ids: list[int], number: int) -> int:
    """How often it stands first."""
    return next((at for at, value in enumerate(ids) if value != number), len(ids))


def ending(report: Report, given: list[int], wanted: list[int], tokenizer: Tokenizer, name: str) -> list[int]:
    """A generation prompt or a thinking marker that is missing, or the other marker; returns the ids with it."""
    if given == wanted:
        return given
    markers = {tokenizer.id_of(text): text for text in THINKING} if all(map(tokenizer.id_of, THINKING)) else {}
    tail = len(wanted)
    while tail and wanted[:tail] != given[:tail]:
        tail -= 1
    missing = wanted[tail:]
    if tail == len(given) and tokenizer.decode(missing).strip():
        text = tokenizer.decode(missing)
        if len(missing) == 1 and missing[0] in markers:
            report.fault(
                "no-thinking-marker",
                f"the prompt ends with {end_of(given, tokenizer)}; the canonical one ({name}) ends with {text!r}",
                "whether the model thinks is undecided: it answers with nothing, or with its thoughts.",
                "End with </think> for chat, with <think> for thinking.",
            )
        else:
            report.fault(
                "no-generation-prompt",
                f"the prompt ends with {end_of(given, tokenizer)}; the canonical one goes on with {text!r}",
                "the model continues the user's text, or begins with a role marker.",
                "Render with add_generation_prompt=True.",
            )
        return wanted
    if given and wanted and given[:-1] == wanted[:-1] and {given[-1], wanted[-1]} <= markers.keys():
        report.fault(
            "other-thinking-marker",
            f"the prompt ends with {end_of(given, tokenizer)}; {name} ends with {markers[wanted[-1]]!r}",
            "the prompt asks for the other way of thinking.",
            "Ask for the mode that is meant.",
        )
        return wanted
    return given


def end_of(ids: list[int], tokenizer: Tokenizer) -> str:
    """Its last id, readable."""
    return f"{tokenizer.piece(ids[-1])} (id {ids[-1]})" if ids else "nothing"


def rest(report: Report, given: list[int], wanted: list[int], tokenizer: Tokenizer, name: str) -> None:
    """What is left: markers, whitespace, or other text; the first of each kind is shown."""
    specials = set(tokenizer.added.values())
    seen: dict[str, list[str]] = {}
    for kind, a, b, c, d in SequenceMatcher(None, given, wanted, False).get_opcodes():
        if kind == "equal":
            continue
        here, there = given[a:b], wanted[c:d]
        texts = tokenizer.decode(here), tokenizer.decode(there)
        if specials & {*here, *there}:
            what = "role-marker"
        elif "".join(texts[0].split()) == "".join(texts[1].split()):
            what = "whitespace"
        else:
            what = "text-differs"
        seen.setdefault(what, []).append(
            f"at token {a} it has {texts[0]!r}, where the canonical prompt has {texts[1]!r}"
        )
    words = {
        "role-marker": ("turns are not the ones that training showed.", "Write markers as the canonical prompt does."),
        "whitespace": ("a newline or a space is another token, and often another answer.", "Remove or add it."),
        "text-differs": ("the prompt says something else.", "Compare the texts, or pass the right --messages."),
    }
    for what, places in seen.items():
        means, do = words[what]
        more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
        report.fault(what, f"{places[0]}{more}; compared with {name}", means, do)
