# SPDX-License-Identifier: Apache-2.0
"""`doctor attention MODEL`: does each layer's attention see what the config says, and the same in decoding?

Black-box experiments on real vLLM; no reference implementation. A token that enters one layer's attention is exchanged,
and the positions whose outputs move are those that see it.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from . import attention_sinks
from .directory import Directory
from .engine import Engine
from .finding import Report, WrongUse, progress

LENGTH, FILLER = 320, 128  # more than two blocks of 128; a filler is a whole number of all blocks
EXCHANGED = (5, 100, 130, 150, 190, 255)
MOVED = 1e-6  # nothing but the exchange differs; what does not see it keeps its bits, or nearly
SAME = 0.03  # bf16, and another order of sums
LEAST_MOVED = 0.5  # of positions that see a token, its weight may round away in some


class Rule(NamedTuple):
    """Who sees whom in one layer."""

    window: int | None
    ratio: int  # compressed blocks of so many tokens; 0: none

    def sees(self, query: int, key: int) -> bool:
        """By the config: the past, in the window, or in a block that ends before the query does."""
        if key > query:
            return False
        if self.window is None or query - key < self.window:
            return True
        return bool(self.ratio) and key // self.ratio < (query + 1) // self.ratio

    def text(self) -> str:
        """For people."""
        window = "all before" if self.window is None else f"a window of {self.window}"
        return f"{window}, blocks of {self.ratio}" if self.ratio else window


def rule_of(config: dict[str, Any], layer: int) -> Rule:
    """Of a layer; where the config says nothing, all that is before."""
    ratios, types, window = (config.get(key) for key in ("compress_ratios", "layer_types", "sliding_window"))
    window = window if isinstance(window, int) and config.get("use_sliding_window", True) else None
    if isinstance(ratios, list) and layer < len(ratios):
        return Rule(window, int(ratios[layer]))
    if isinstance(types, list) and layer < len(types):
        return Rule(window if "sliding" in str(types[layer]) else None, 0)
    if types is None and config.get("model_type") == "gpt_oss":  # says so in code, if not in its config
        return Rule(window if layer % 2 == 0 else None, 0)
    return Rule(window, 0)


EXPERIMENTS = ("range", "decode", "shift", "sinks")


def run(arguments) -> int:
    """Print what was found; 1 if a layer's attention breaks a rule."""
    report = Report("attention", arguments.model)
    skip = tuple(arguments.skip or ())
    unknown = [name for name in skip if name not in EXPERIMENTS]
    if unknown:
        raise WrongUse(f"--skip {unknown[0]} is no experiment; there are {', '.join(EXPERIMENTS)}.")
    examine(report, Engine(arguments.model, arguments.options), skip)
    return report.finish(arguments.json)


def examine(report: Report, engine: Engine, skip: tuple[str, ...] = ()) -> None:
    """On an engine that is there already, every experiment that is not left out."""
    directory = Directory(engine.model) if Path(engine.model).is_dir() else None
    config = directory.config if directory else {}
    prompt = [(37 * number) % 230 + 20 for number in range(LENGTH)]
    whole = list(range(LENGTH))
    engine.workers("attention_install")
    try:
        ask(engine, prompt, [None], whole)
        control = ask(engine, prompt, [whole], whole)
        layers = {found["layer"]: rule_of(config, found["layer"]) for found in control}
        for rule in sorted({rule.text() for rule in layers.values()}):
            of = [layer for layer, each in layers.items() if each.text() == rule]
            report.fact(f"{len(of)} layers see", rule)
        repeatable(report, control)
        for key in EXCHANGED if "range" not in skip else ():
            progress(f"token {key} of {LENGTH} exchanged in every layer")
            rows = [*whole[:key], (key + 7) % LENGTH, *whole[key + 1 :]]
            judge_range(report, ask(engine, prompt, [rows], whole), layers, key)
        if "decode" not in skip:
            progress("the last token decoded behind a prefill of the others")
            decoded = ask(engine, prompt[:-1], [whole[:-1], [LENGTH - 1]], [LENGTH - 1], forward=1)
            means = "the cache holds something else: DECODE"
            judge_same(report, decoded, "decode-differs", "decoded and prefilled", means)
        if "shift" not in skip:
            progress("positions shifted")
            shifted = [whole[0]] * FILLER + whole
            later = ask(engine, prompt[:FILLER] + prompt, [shifted], [0] * FILLER + whole)
            judge_shift(report, later, layers)
        if "sinks" not in skip:
            attention_sinks.examine(report, engine, directory)
    finally:
        engine.workers("attention_remove")


def ask(
    engine: Engine, prompt: list[int], plan: list[list[int] | None], against: list[int], forward: int = 0
) -> list[dict[str, Any]]:
    """One request under a plan; the first rank's changes by layer, in order."""
    engine.workers("attention_start", json.dumps(plan))
    engine.ask(prompt, forward + 1)
    return sorted(engine.workers("attention_changes", forward, against)[0], key=lambda found: found["layer"])


def repeatable(report: Report, control: list[dict[str, Any]]) -> None:
    """The same rows must give the same outputs."""
    for found in control:
        at, change = worst(found["change"])
        if change > SAME:
            report.fault(
                "attention-not-repeatable",
                f"layer {found['layer']}: the same rows give another output at position {at}, by {change:.2g}; "
                f"at most {SAME}",
                "it reads what is not this request's.",
                "Look at the cache's block table and at padding.",
            )
            return


def worst(changes: list[float]) -> tuple[int, float]:
    """Place and size of the largest; NaN counts as such."""
    at = max(
        range(len(changes)), key=lambda place: changes[place] if changes[place] == changes[place] else float("inf")
    )
    return at, changes[at]


def judge_range(report: Report, changed: list[dict[str, Any]], layers: dict[int, Rule], key: int) -> None:
    """Positions that moved against those that see the exchanged token; one finding of a kind is enough."""
    known = {finding.name for finding in report.findings}
    for found in changed:
        rule = layers[found["layer"]]
        moved = [query for query, change in enumerate(found["change"]) if not change <= MOVED]
        future = [query for query in moved if query < key]
        beyond = [query for query in moved if query >= key and not rule.sees(query, key)]
        if future and "sees-the-future" not in known:
            query = future[0]
            block = f": block {key // rule.ratio} of {rule.ratio} does not end before it" if rule.ratio else ""
            report.fault(
                "sees-the-future",
                f"layer {found['layer']}: {len(future)} positions before token {key} move with it, the first is "
                f"{query}{block}; 0 may",
                f"one visible block too many, or no causal mask ({rule.text()}).",
                "Look at how many compressed entries a query sees: those with index < (position + 1) // ratio.",
            )
            return
        if beyond and "sees-too-much" not in known:
            report.fault(
                "sees-too-much",
                f"layer {found['layer']}: position {beyond[0]} moves with token {key}, {beyond[0] - key} before it; "
                f"it sees {rule.text()}",
                f"{len(beyond)} positions see what is out of reach: the window is too wide.",
                "Compare sliding_window with the kernel's (is the query itself counted?).",
            )
            return
        for name, should in parts(rule, key).items():
            there = [query for query in should if query in set(moved)]
            if len(should) > 3 and len(there) < LEAST_MOVED * len(should) and "sees-too-little" not in known:
                report.fault(
                    "sees-too-little",
                    f"layer {found['layer']}: {len(there)} of {len(should)} positions that see token {key} {name} move "
                    f"with it, from {should[0]} on",
                    "one visible block too few, or a window that is too short.",
                    "Look at how many compressed entries a query sees: those with index < (position + 1) // ratio.",
                )
                return


def parts(rule: Rule, key: int) -> dict[str, list[int]]:
    """Positions that see a token, by the way in which they do."""
    seeing = [query for query in range(LENGTH) if rule.sees(query, key)]
    near = [query for query in seeing if rule.window is None or query - key < rule.window]
    far = [query for query in seeing if query not in set(near)]
    return {"in the window": near, "in a block": far}


def judge_same(report: Report, changed: list[dict[str, Any]], name: str, what: str, means: str) -> None:
    """The same token must give the same output by another way."""
    report.fact(what, f"largest difference {max((worst(f['change'])[1] for f in changed), default=0.0):.1e}")
    for found in changed:
        _, change = worst(found["change"])
        if not change <= SAME:
            report.fault(
                name,
                f"layer {found['layer']}: the last token's output {what} differs by {change:.2g}; at most {SAME}",
                means.replace("DECODE", "an entry of another request, a wrong position, or a kernel of decoding."),
                "Look at the slot mapping and at the decoding kernel.",
            )
            return


def judge_shift(report: Report, changed: list[dict[str, Any]], layers: dict[int, Rule]) -> None:
    """Behind a filler that the window does not reach, every position is later and nothing else is."""
    for found in changed:
        rule = layers[found["layer"]]
        if rule.window is None or rule.ratio:
            continue  # it sees the filler
        far = found["change"][FILLER + rule.window :]
        at, change = worst(far)
        report.fact(f"layer {found['layer']}, {FILLER} positions later", f"largest difference {change:.1e}")
        if not change <= SAME:
            report.fault(
                "position-matters",
                f"layer {found['layer']}: {FILLER} positions later the output at {at + rule.window} differs by "
                f"{change:.2g}; at most {SAME}",
                "outputs depend on absolute positions: a rotation is left out, or has another position (where keys are "
                "values, the output must be rotated back).",
                "Look at the rotations of queries, keys and outputs, and at the positions that they get.",
            )
            return
