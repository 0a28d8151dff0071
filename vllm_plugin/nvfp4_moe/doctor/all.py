# SPDX-License-Identifier: Apache-2.0
"""`doctor all MODEL|URL`: every command that applies, cheapest first; it stops at the first that finds a fault."""

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib.util import find_spec

from . import attention, checkpoint, layers, norm, prompt, serve, stop
from .finding import FOUND, HEALTHY, Report, WrongUse

NOTHING_GIVEN = {"messages": None, "user": None, "ids": None, "text": None, "trust": False, "output_ids": None}


def run(arguments) -> int:
    """Print each report; the exit status is that of the worst."""
    reports = []
    for ask in steps(arguments):
        reports.append(ask())
        if not arguments.json:
            print("\n".join(reports[-1].lines()) + "\n", flush=True)
        if reports[-1].faults and not arguments.keep_going:
            break
    if arguments.json:
        print(json.dumps([report.to_dict() for report in reports], indent=1, ensure_ascii=False))
    else:
        print(verdict(reports))
    return FOUND if any(report.faults for report in reports) else HEALTHY


def steps(arguments) -> Iterator[Callable[[], Report]]:
    """Offline ones first; the model is loaded once, for those that need it, and only when they are reached."""
    if arguments.model.startswith(("http://", "https://")):
        yield lambda: serve.check(Namespace(url=arguments.model, model_dir=None, skip=None))
        return
    directory = Namespace(model=arguments.model, **NOTHING_GIVEN)
    yield lambda: checkpoint.examine(arguments.model)
    yield lambda: asked("prompt", arguments.model, lambda: prompt.check(directory))
    yield lambda: asked("stop", arguments.model, lambda: stop.check(directory))
    if arguments.offline or find_spec("vllm") is None:
        return
    from .engine import PROMPT, Engine

    engine = Engine(arguments.model, arguments.options)

    def watched_norms() -> Report:
        report = Report("norm", arguments.model)
        engine.watch(PROMPT)
        norm.judge(report, engine.workers("norms")[0])
        return report

    def watched_layers() -> Report:
        report = Report("layers", arguments.model)
        layers.examine(report, engine, picture=arguments.picture)
        return report

    def watched_attention() -> Report:
        report = Report("attention", arguments.model)
        attention.examine(report, engine)
        return report

    yield watched_norms
    yield watched_layers
    yield watched_attention


def asked(name: str, model: str, ask: Callable[[], Report]) -> Report:
    """A command that cannot be asked here, for want of a file or a package, is a note and no end."""
    try:
        return ask()
    except WrongUse as error:
        report = Report(name, model)
        report.note("not-asked", str(error), "this was not looked at.", "")
        return report


def verdict(reports: list[Report]) -> str:
    """One sentence."""
    ill = [report for report in reports if report.faults]
    if not ill:
        return f"{', '.join(report.command for report in reports)}: no fault found."
    first = ill[0]
    return f"doctor {first.command} found {first.faults[0].name}: {first.faults[0].means}"
