# SPDX-License-Identifier: Apache-2.0
"""What serve_two.py claims of its cases: a line each, PASS or FAIL."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy

sys.path.append(str(Path(__file__).resolve().parents[2] / "vllm"))

import agreement
from serve import text

from . import control
from .case import PROMPTS

# Of agreement.py, for these models. MARGIN is three times what rounding did to the tiny Qwen3-MoE of this folder under
# vLLM's CPU build: the margin of a token that differed was up to 0.085. Its experts weigh more than tests/vllm's,
# and where one of them changes at an earlier token, a short prompt's later logits move. How many tokens are the same is
# counted, not gated: behind the first that differs the texts are others, and the reference judges each case's own.
RULE = {"MARGIN": 0.25, "ENOUGH_DECIDED": 0.2, "MOST_SAME": 0.0}
vars(agreement).update(RULE)
CONTROL = "-control"
"""Behind the name of a case that is served by vLLM's own experts."""
LOSSY = [f"dsv4-{layout}" for layout in ("one", "tp2", "pp2", "dp2", "mtp")]
LAYERS = {"qwen3": 3, "dsv4": 4}
HELD_MORE = 16 << 20
"""Bytes that a rank may hold after weights were loaded again; a copy of its experts would be more."""
LONGEST = 400


@dataclass
class Claim:
    """One line of the answer."""

    good: bool
    text: str

    def __str__(self):
        shown = self.text if len(self.text) <= LONGEST else f"{self.text[:LONGEST]} ..."
        return f"{'PASS' if self.good else 'FAIL'} {shown}"


def is_forced(name: str) -> bool:
    """Does a case decode given texts, too? vLLM forces none where it drafts tokens."""
    return name.removesuffix(CONTROL) in LOSSY and "mtp" not in name


def merged(ranks: list[list[list]]) -> list[list]:
    """Tokens, or what is said of them, in the order of the prompts, which ranks took in turn."""
    return [ranks[n % len(ranks)][n // len(ranks)] for n in range(sum(map(len, ranks)))]


def moved(before: list[list[int]], after: list[list[int]]) -> int:
    """Places that have another expert."""
    return sum(a != b for row, other in zip(before, after, strict=True) for a, b in zip(row, other, strict=True))


def ruled(rule, *arguments) -> Claim:
    """What agreement.py says, and why."""
    try:
        rule(*arguments)
    except AssertionError as broken:
        return Claim(False, f"{agreement.measured[-1]} {str(broken)[:300]}".rstrip())
    return Claim(True, agreement.measured[-1])


def same_tokens(label: str, judged: list[list[dict]], mine: list[list[int]], others: list[list[int]]) -> Claim:
    """The rule between one GPU and several; where others ask for fewer tokens, on those."""
    lengths = [len(tokens) for tokens in others]
    mine = [tokens[:length] for tokens, length in zip(mine, lengths, strict=True)]
    flat = [token for tokens, length in zip(judged, lengths, strict=True) for token in tokens[:length]]
    return ruled(agreement.check_same, label, flat, mine, others)


def of_ranks(case, found: list[dict], on_gpu: bool) -> list[Claim]:
    """Whose experts served on every rank, in CUDA graphs: ours, or in a control none of ours."""
    ranks = [rank for report in found for rank in report["seen"]]
    ours = [seen["experts"].get("Nvfp4MoeExperts", 0) for seen in ranks]
    wanted = LAYERS[case.model] * (1 if case.layout == "pp2" else len(ranks)) + (case.layout == "mtp")
    only = all(set(seen["experts"]) <= {"Nvfp4MoeExperts"} for seen in ranks)
    active = text(case.log).count("ACTIVE for NVFP4 MoE")
    good = only and all(ours) and sum(ours) == wanted and active == len(ranks)
    if case.is_control:
        good = not any(ours)
    claims = [Claim(good, f"{case.name}: layers of ours by rank {ours}, ACTIVE in {active} logs")]
    if on_gpu:
        replays, busy, replayed = (
            [seen.get(n, 0) for seen in ranks] for n in ("replays", "busy steps", "busy replays")
        )
        good = all(replays) and 2 * sum(replayed) > sum(busy)
        counts = f"replays of CUDA graphs by rank {replays}, in {replayed} of {busy} steps"
        claims.append(Claim(good, f"{case.name}: {counts}"))
    if case.layout == "dp2":
        idle = ranks[-1].get("idle steps", 0)
        replayed = ranks[-1].get("idle replays", 0)
        good = idle > 0 and (replayed > 0 or not on_gpu)
        claims.append(
            Claim(good, f"{case.name}: steps in which a rank had no token {idle}, {replayed} of them in padded graphs")
        )
    return claims


def of_moves(case, report: dict) -> list[Claim]:
    """That experts changed places while tokens were made."""
    places = report["places"]
    moves = [moved(*pair) for pair in zip(places, places[1:])]
    of = sum(map(len, places[0]))
    return [Claim(sum(count > 0 for count in moves) >= 2, f"{case.name}: places of {of} with another expert {moves}")]


def of_reload(case, report: dict) -> list[Claim]:
    """That a layer computes with the weights that it was given last, and keeps no others."""
    first, other, *again = case.rounds()
    same, changed = [tokens == first for tokens in again], sum(a != b for a, b in zip(first, other, strict=True))
    held = [
        [now - at_first for now, at_first in zip(ranks, report["held"][0], strict=True)] for ranks in report["held"]
    ]
    good = all(more <= HELD_MORE for ranks in held for more in ranks)
    return [
        Claim(changed > 0, f"{case.name}: prompts whose tokens other weights change {changed} of {len(first)}"),
        Claim(all(same), f"{case.name}: after the first weights came again, and sleep, the first tokens {same}"),
        Claim(good, f"{case.name}: bytes that ranks hold more than at first {held}"),
    ]


def of(case, judged: dict[str, list[list[dict]]], on_gpu: bool) -> list[Claim]:
    """All of a case that ran: its tokens beside the reference's, and beside those of one GPU."""
    found, one = case.found(), f"{case.model}-one"
    made = of_ranks(case, found, on_gpu)
    if case.is_control or (on_gpu and case.name in LOSSY):
        return made
    if case.layout.startswith("eplb"):
        made += of_moves(case, found[0])
    if case.layout == "reload":
        made += of_reload(case, found[0])
    flat = [token for tokens in judged[case.name] for token in tokens]
    made.append(against(case.name, flat))
    rounds = case.rounds()
    first = rounds[0] if case.name == one else json.loads(text(case.report.with_name(f"{one}.json")))["rounds"][0]
    for number, tokens in enumerate(rounds):
        if (case.name == one and number == 0) or case.model_of(number) != case.model:
            continue
        label = case.name + (f", round {number + 1}" if len(rounds) > 2 else "")
        what = "alone, as in the batch" if case.name == one else "as one GPU"
        made.append(same_tokens(f"{label}: {what}", judged[one][: len(PROMPTS)], first, tokens))
    return made


def beside_control(cases: dict, judged: dict[str, list[list[dict]]], work: Path) -> list[Claim]:
    """Of the cases that lose bits: full/control.py's rules, wherever both have served."""
    made, logits = [], work / "dsv4-texts.npy"
    said = {name: case.said() for name, case in cases.items() if name in judged and is_forced(name)}
    for name in (name for name in LOSSY if name in cases):
        beside, one = name + CONTROL, LOSSY[0]
        if name not in judged or beside not in judged or not logits.exists():
            made.append(Claim(False, f"{name}: there is no control, or no reference, to compare with"))
            continue
        mine, other = ([token for tokens in judged[n][: len(PROMPTS)] for token in tokens] for n in (name, beside))
        found = [control.compare_free(mine, other)]
        if is_forced(name):
            found += control.compare(numpy.load(logits), said[name], said[beside])
        if is_forced(name) and name != one and {one, one + CONTROL} <= said.keys():
            pairs = (said[one], said[name]), (said[one + CONTROL], said[beside])
            found.append(control.compare_layouts(*pairs))
        made += [Claim(good, f"{name}: {line}") for good, line in found]
    return made


def against(label: str, judged: list[dict]) -> Claim:
    """The rule beside the float32 reference."""
    return ruled(agreement.check, label, judged)
