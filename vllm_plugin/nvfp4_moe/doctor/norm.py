# SPDX-License-Identifier: Apache-2.0
"""`doctor norm MODEL`: are norms there and applied, and is the size of the last residual innocent?"""

from typing import Any

from .engine import PROMPT, Engine
from .finding import Report, some
from .norms import TOLERANCE

HEAD_TOLERANCE = 0.05
ALIKE = 0.999
SAME_SIZE = 0.05
TIED = 0.05  # standard deviations of the logits, between the best and the other run's best


def run(arguments) -> int:
    """Print what was found; 1 if a norm is missing or misapplied."""
    report = Report("norm", arguments.model)
    engine = Engine(arguments.model, arguments.options)
    engine.watch(PROMPT)
    judge(report, engine.workers("norms")[0])
    return report.finish(arguments.json)


def judge(report: Report, found: dict[str, Any]) -> None:
    """Every norm against its definition; the head on the residual and on a hundredth of it."""
    errors = found["errors"]
    report.fact("norms", f"{len(errors)} ran, largest error {max(errors.values(), default=0.0):.1e}")
    ill = {name: error for name, error in errors.items() if not error <= TOLERANCE}
    if ill:
        first = next(iter(ill))
        report.fault(
            "norm-misapplied",
            f"{first} gives what is off by {ill[first]:.2g} from x / rms(x) * weight; {TOLERANCE} is rounding "
            f"({len(ill)} of {len(errors)} norms: {some(ill)})",
            "the norm is skipped, has another weight or eps, or is applied twice.",
            "Compare its weight with the file's, and look at who replaced its class or kernel.",
        )
    if found["final"] is None or not found["ran"]:
        seen = "there is no norm outside the layers" if found["final"] is None else f"{found['final']} never ran"
        report.fault(
            "final-norm-missing",
            f"{seen}; a decoder has 1 before its head",
            "logits are those of an unnormalised residual.",
            "See doctor checkpoint (is norm.weight in the files?), and the model's forward.",
        )
        return
    differs = found.get("head_differs")
    if differs is not None and not differs <= HEAD_TOLERANCE:
        report.fault(
            "final-norm-bypassed",
            f"what enters the head is off by {differs:.2g} from what {found['final']} gave; at most {HEAD_TOLERANCE}",
            "the head does not get the final norm's output.",
            "Look at the model's compute_logits.",
        )
    if "cosine" in found:
        size(report, found)


def size(report: Report, found: dict[str, Any]) -> None:
    """Equal argmax (or tied), a cosine near 1, logits of one size: nothing depends on how large the residual is.

    A head without a norm before it is linear: then only the logits' size tells, and temperature and penalties suffer.
    """
    one, other = found["argmax"]
    ratio = found["sizes"][1] / max(found["sizes"][0], 1e-30)
    same = found["behind"] < TIED
    innocent = same and found["cosine"] > ALIKE and abs(ratio - 1) < SAME_SIZE
    scaled = "X/100" if found["factor"] < 1 else "100 X"
    tied = f" ({found['behind']:.3f} deviations apart)" if one != other else ""
    text = f"argmax {one} and {other}{tied}, cosine {found['cosine']:.6f}, size {ratio:.3g} to 1"
    report.fact("residual", f"rms {found['residual_rms']:.3g} before {found['final']}")
    report.fact(f"logits of X and {scaled}", text + (": the residual's size is innocent" if innocent else ""))
    if not innocent:
        report.fault(
            "residual-size-matters",
            f"logits of the last residual X and of {scaled} have {text}; healthy: equal, above {ALIKE}, 1 to 1",
            "the final norm is missing, or its eps is of the residual's size.",
            "Look at the final norm; a residual that small comes from a wrong scale before it.",
        )
