# SPDX-License-Identifier: Apache-2.0
"""Part of `doctor attention`: do sinks take the weight that they should, each in its head, and padding heads none?

A head alone with one key of logit a and a sink s gives the part p = e^a / (e^a + e^s) of what it gives without a sink,
so p / (1 - p) = e^a / e^s. Behind two rows of zeros, whose logits are 0, it is (e^a + 2) / e^s. The difference,
2 / e^s, tells what a sink weighs, whatever a is: a sink of 0 as one key of logit 0, a sink of ln 4 as four.
"""

import json
import math
from typing import Any

from .attention_probe import ZERO
from .directory import Directory
from .engine import Engine
from .finding import Report, progress, some

ROW = 5  # of the recorded prompt; any will do
SMALL = 2.0**-14  # so small that keys are, and a is near 0; a norm's eps sees to it
ABSENT, DROWNING = -60.0, 60.0  # e^60 is a number in f32
FOUR = math.log(4.0)
KEYS = {"alone": [ROW], "behind zeros": [ZERO, ZERO, ROW]}  # no compressed block has ended by then
MOST_HEADS = 4
NOTHING = 1e-6
VISIBLE = 0.03  # relative change of an output
CLOSE = 1.3  # times
PADDING_ROWS = list(range(8))
ADVICE = "Look at where the kernel adds the sink: once, in the denominator, after scaling, with the exponential's base."


def examine(report: Report, engine: Engine, directory: Directory | None) -> None:
    """On an engine whose attention is watched, and that has recorded a prompt."""
    ranks = engine.workers("sinks_table")
    layers = ranks[0]
    if not layers:
        report.fact("attention sinks", "none")
        return
    heads, padding = min(len(layer["values"]) for layer in layers), layers[0]["padding"]
    report.fact("attention sinks", f"{len(layers)} layers, {heads} heads and {padding} of padding on a rank")
    if directory is not None:
        of_files(report, ranks, directory)
    progress(f"sinks of {min(heads, MOST_HEADS)} of {heads} heads in every layer")
    try:
        judge_padding(report, engine, padding)
        biased = has_biases(engine)
        keys = ["alone"] if biased else list(KEYS)
        times = 1.0 if biased else SMALL
        engine.workers("sinks_set", DROWNING, None, DROWNING)
        for place in keys:
            ask(engine, f"{place} {DROWNING}", KEYS[place], times)
        chosen = sorted({at * (heads - 1) // max(MOST_HEADS - 1, 1) for at in range(MOST_HEADS)})
        measured = [judge_head(report, weigh(engine, head, keys, times), head) for head in chosen]
        ones = [mass for each in measured for mass in each]
        if ones:
            report.fact("a sink of 0 weighs", f"{min(ones):.3f} to {max(ones):.3f} keys of logit 0")
    finally:
        engine.workers("sinks_restore")


def of_files(report: Report, ranks: list[list[dict[str, Any]]], directory: Directory) -> None:
    """Each layer's sinks against its tensor in the files, rank behind rank."""
    for at, found in enumerate(ranks[0]):
        layer = f"layers.{found['layer']}."
        names = [n for n in directory.tensors if layer in n and n.endswith((".attn_sink", ".sinks")) and "mtp" not in n]
        stored = directory.small(names[0]) if len(names) == 1 else None
        loaded = [value for rank in ranks for value in rank[at]["values"]]
        if stored is None or len(stored) != len(loaded):
            continue
        wrong = [
            head for head, pair in enumerate(zip(loaded, stored)) if abs(pair[0] - pair[1]) > 0.01 + 0.01 * abs(pair[1])
        ]
        if wrong:
            report.fault(
                "sinks-not-the-files",
                f"layer {found['layer']}: the sink of head {wrong[0]} is {loaded[wrong[0]]:.4g}; {names[0]} has "
                f"{stored[wrong[0]]:.4g} ({len(wrong)} of {len(stored)} heads: {some(wrong)})",
                "sinks were not loaded, or are another rank's.",
                "Look at the loader's slice of them.",
            )
            return


def ask(engine: Engine, label: str, rows: list[int], times: float = 1.0) -> None:
    """One request of chosen rows; each layer's last output is kept under the label."""
    engine.workers("attention_start", json.dumps([rows]), times)
    engine.ask(list(range(20, 20 + len(rows))), 1)
    engine.workers("attention_keep", label)


def judge_padding(report: Report, engine: Engine, padding: int) -> None:
    """Garbage in heads that are none must change nothing."""
    if not padding:
        return
    for value in (ABSENT, DROWNING):
        engine.workers("sinks_padding", value)
        ask(engine, f"padding {value}", PADDING_ROWS)
    engine.workers("sinks_restore")
    found = engine.workers("attention_parts", [], f"padding {ABSENT}", f"padding {DROWNING}")[0]
    for layer in found:
        moved, size = layer["sizes"]
        if not moved <= NOTHING * size:
            report.fault(
                "padding-head-leaks",
                f"layer {layer['layer']}: garbage in {padding} padding heads moves the output by {moved / size:.2g}; "
                "0 is right",
                "what is computed for heads that are none reaches the output, or is read for one that is.",
                "Look at the slice of the heads behind the kernel, and at its stride.",
            )
            return


def has_biases(engine: Engine) -> bool:
    """Does a row of zeros give anything? Then a row of zeros has a logit of its own."""
    engine.workers("sinks_set", ABSENT, None, ABSENT)
    ask(engine, "zeros", [ZERO])
    ask(engine, "a row", [ROW])
    return any(
        layer["sizes"][1] > NOTHING * layer["sizes"][0]
        for layer in engine.workers("attention_parts", [], "a row", "zeros")[0]
    )


def weigh(engine: Engine, head: int, keys: list[str], times: float) -> list[dict[str, Any]]:
    """By layer, parts of one head's output under a sink of 0 and of ln 4: alone, and behind zeros."""
    for value in (ABSENT, 0.0, FOUR):
        engine.workers("sinks_set", value, head, DROWNING)
        for place in keys:
            ask(engine, f"{place} {value}", KEYS[place], times)
    layers: dict[int, dict[str, Any]] = {}
    for place in keys:
        labels = [f"{place} {value}" for value in (0.0, FOUR)]
        for found in engine.workers("attention_parts", labels, f"{place} {ABSENT}", f"{place} {DROWNING}")[0]:
            layers.setdefault(found["layer"], {"layer": found["layer"]})[place] = found
    return list(layers.values())


def judge_head(report: Report, layers: list[dict[str, Any]], head: int) -> list[float]:
    """The first layer whose sink takes another weight than its own; returns what a sink of 0 weighs by layer."""
    masses = []
    for found in layers:
        moved, drowned = found["alone"]["sizes"]
        if not moved > VISIBLE * drowned:
            once(
                report,
                "sink-ignored",
                f"layer {found['layer']}, head {head}: sinks of {ABSENT:.0f} and {DROWNING:.0f} give outputs that "
                f"differ by {moved / max(drowned, 1e-30):.2g}; the second leaves 0 of the head's",
                "the kernel does not get this head's sink, or does not use it.",
            )
            continue
        one, four = masses_of(found)
        if one is not None:
            masses.append(one)
        if not fits(one, 1.0) or not fits(four, 4.0):
            once(
                report,
                "sink-misapplied",
                f"layer {found['layer']}, head {head}: a sink of 0 weighs as much as {shown(one)} keys of logit 0, one "
                f"of ln 4 as much as {shown(four)}; 1 and 4 are right",
                meaning(one, four),
            )
    return masses


def once(report: Report, name: str, seen: str, means: str) -> None:
    """The first of its kind."""
    if name not in {finding.name for finding in report.findings}:
        report.fault(name, seen, means, ADVICE)


def masses_of(found: dict[str, Any]) -> tuple[float | None, float | None]:
    """What sinks of 0 and of ln 4 weigh; of one key that has a logit of its own the second is known by the first."""
    alone = [odds(part) for part in found["alone"]["parts"]]
    if "behind zeros" not in found:
        return None, alone[0] / alone[1]
    behind = [odds(part) for part in found["behind zeros"]["parts"]]
    differences = [b - a for a, b in zip(alone, behind)]
    return tuple(2.0 / difference if difference > NOTHING else math.inf for difference in differences)


def odds(part: float) -> float:
    """e^a / e^s of the part that is left."""
    return part / (1.0 - part) if 0.0 <= part < 1.0 else math.inf


def fits(mass: float | None, right: float) -> bool:
    """Within what rounding leaves."""
    return mass is None or right / CLOSE < mass < right * CLOSE


def shown(mass: float | None) -> str:
    """For people."""
    return "an unknown number of" if mass is None else f"{mass:.3g}"


def meaning(one: float | None, four: float | None) -> str:
    """What gives these two numbers."""
    if one is None or four is None or not math.isfinite(one * four):
        return "it is in the wrong place."
    growth = four / one
    if fits(growth, 4.0):
        return f"it is added {one:.2g} times." if one > 1 else "another value is added."
    if fits(growth, 16.0):
        return "its logit is doubled: it is added twice."
    return "it is in the wrong place: scaled as logits are, or under another base." if growth < 4 else "it is scaled."
