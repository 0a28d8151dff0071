# SPDX-License-Identifier: Apache-2.0
"""`doctor layers MODEL`: where in the model does it go wrong, down to the expert; one forward of real vLLM, watched."""

from pathlib import Path

from . import layers_verdict
from .engine import PROMPT, Engine
from .finding import Report, WrongUse, progress
from .prompt import numbers


def run(arguments) -> int:
    """Print the table and the verdict; 1 if a layer is ill."""
    report = Report("layers", arguments.model)
    prompt = numbers(arguments.ids, "--ids") if arguments.ids else PROMPT
    if arguments.against and not Path(arguments.against).is_file():
        raise WrongUse(f"{arguments.against} is no file; --against takes one that --save wrote.")
    engine = Engine(arguments.model, arguments.options)
    examine(
        report,
        engine,
        prompt,
        arguments.tokens,
        arguments.save,
        arguments.against,
        arguments.threshold,
        arguments.picture,
    )
    return report.finish(arguments.json)


def examine(
    report: Report,
    engine: Engine,
    prompt: list[int] = PROMPT,
    num_tokens: int = 8,
    save: str | None = None,
    against: str | None = None,
    threshold: float = 0.99,
    picture: str | None = None,
) -> None:
    """On an engine that is there already; `num_tokens` of the prompt are computed by the reference."""
    progress(f"one forward of {len(prompt)} tokens, watched")
    engine.watch(prompt, keep=bool(save or against))
    tables = engine.workers("boundaries")
    progress(f"our MoE layers against the files' experts in float64, {num_tokens} tokens")
    experts = engine.workers("experts", engine.model, num_tokens)
    layers_verdict.table(report, tables[0], experts)
    layers_verdict.first_not_finite(report, tables, experts)
    layers_verdict.moe(report, experts)
    layers_verdict.counters(report, experts)
    layers_verdict.growth(report, tables[0])
    if picture:
        layers_verdict.drawn(report, tables[0], experts, picture)
    if save or against:
        # Ranks that each have a part of a sum have no output of the model there.
        ranks = engine.workers("kept")
        whole = [name for name in ranks[0] if len({kept.get(name) for kept in ranks}) == 1]
    if against:
        layers_verdict.against(report, engine.workers("compare", against, whole)[0], against, threshold)
    if save:
        engine.workers("save", save, whole)
        report.fact("saved", f"{len(whole)} outputs in {save}")
