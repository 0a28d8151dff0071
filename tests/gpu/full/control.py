# SPDX-License-Identifier: Apache-2.0
"""Is a model that loses bits anyway served as well with our experts as with vLLM's own? The judge has a control.

DeepSeek-V4 has fp8 linears, an fp8 cache and an fp8 index, so it is far from the float32 reference whatever its experts
do. So each layout is served twice, with our experts and with vLLM's, and both decode the same texts (forced.py). In
each context the reference's logits say how far each is from it, in standard deviations of those logits:

    deficit  how far the reference's logit of the token that an engine finds best lies below the reference's best
    error    root mean square of an engine's logprobs less the reference's, over those that the engine gives

Ours are as good as the control if, on the same contexts,

    - tokens that only ours get wrong are not more than those that only the control does, but by chance: a coin that is
      thrown for each of them lands so with a probability of UNLIKELY at least;
    - the median of errors is at most WORSE times the control's, and of the tenth of all errors that are largest, ours
      are not more, by such a coin (another expert is chosen there, and which engine it meets is chance);
    - no token that only ours get wrong has a deficit above FAR times the control's largest: a fault would;
    - two GPUs are no farther from one, by the same two, than the control's two from its one.

And of free texts: tokens that are the reference's are not fewer than the control's, but by chance as above, each run a
draw from both.
"""

import math
from dataclasses import dataclass

import numpy

UNLIKELY = 0.01
WORSE = 1.25
FAR = 2.0
Said = list[list[dict[int, float]]]
"""Of each prompt, of each token of its text: logprobs by id."""


def coins(count: int, of: int) -> float:
    """Probability of so many heads or more."""
    return sum(math.comb(of, heads) for heads in range(count, of + 1)) / 2**of


def drawn(good: int, of: int, other_good: int, other_of: int) -> float:
    """Probability of so few good ones or fewer among `of`, drawn from both together."""
    total, all_good = of + other_of, good + other_good
    ways = sum(math.comb(all_good, n) * math.comb(total - all_good, of - n) for n in range(good + 1))
    return ways / math.comb(total, of)


@dataclass
class Judged:
    """A value for each context, in order of prompts and tokens."""

    best: numpy.ndarray
    deficit: numpy.ndarray
    error: numpy.ndarray

    @property
    def wrong(self) -> numpy.ndarray:
        """Where another token is best."""
        return self.deficit > 0


def judged(reference: numpy.ndarray, said: Said) -> Judged:
    """`reference`: logits, [prompts, tokens, vocabulary]."""
    found = []
    for rows, steps in zip(reference.astype(numpy.float64), said, strict=True):
        for row, step in zip(rows, steps, strict=True):
            ids, values = numpy.array(list(step)), numpy.array(list(step.values()))
            logprobs, deviation = row - numpy.logaddexp.reduce(row), row.std(ddof=1)
            best = ids[values.argmax()]
            error = numpy.sqrt(numpy.mean((values - logprobs[ids]) ** 2))
            found.append((best, (row.max() - row[best]) / deviation, error / deviation))
    best, deficit, error = map(numpy.array, zip(*found, strict=True))
    return Judged(best, deficit, error)


def distances(said: Said, other: Said) -> numpy.ndarray:
    """Of two engines, in each context, over the ids that both give; in nats."""
    found = []
    for steps, others in zip(said, other, strict=True):
        for step, beside in zip(steps, others, strict=True):
            found.append(math.sqrt(numpy.mean([(step[id] - beside[id]) ** 2 for id in step.keys() & beside.keys()])))
    return numpy.array(found)


def shown(values: numpy.ndarray) -> str:
    """The middle, the 90th of 100, and the largest."""
    return " / ".join(f"{value:.3f}" for value in numpy.quantile(values, (0.5, 0.9, 1.0)))


def no_larger(mine: numpy.ndarray, control: numpy.ndarray) -> tuple[bool, str]:
    """The second rule, and what it saw."""
    far = numpy.quantile(numpy.concatenate([mine, control]), 0.9)
    only_mine, only_other = (int(((a > far) & (b <= far)).sum()) for a, b in ((mine, control), (control, mine)))
    chance = coins(only_mine, only_mine + only_other)
    good = bool(numpy.median(mine) <= WORSE * numpy.median(control)) and chance >= UNLIKELY
    return good, (
        f"middle / 90 % / largest {shown(mine)}, the control's {shown(control)}; "
        f"only ours are among the largest in {only_mine}, only the control's in {only_other}, chance {chance:.3f}"
    )


def where(places: numpy.ndarray, judged: Judged, per_prompt: int) -> str:
    """Tokens by prompt.token, the largest deficit first."""
    order = sorted(places, key=lambda place: -judged.deficit[place])
    return ", ".join(f"{place // per_prompt}.{place % per_prompt} {judged.deficit[place]:.2f}" for place in order)


def compare(reference: numpy.ndarray, ours: Said, control: Said) -> list[tuple[bool, str]]:
    """The first three rules."""
    mine, other = judged(reference, ours), judged(reference, control)
    only_mine, only_other = ((a.wrong & ~b.wrong) for a, b in ((mine, other), (other, mine)))
    count, beside, of = int(only_mine.sum()), int(only_other.sum()), len(mine.best)
    errors = no_larger(mine.error, other.error)
    chance, largest = coins(count, count + beside), float(other.deficit.max())
    faults = numpy.flatnonzero(only_mine & (mine.deficit > FAR * largest))
    listed = where(numpy.flatnonzero(only_mine), mine, reference.shape[1])
    return [
        (
            chance >= UNLIKELY,
            f"of {of} tokens of the same texts {of - mine.wrong.sum()} are the reference's, the control's "
            f"{of - other.wrong.sum()}; only ours are wrong in {count}, only the control in {beside}, "
            f"chance {chance:.3f}",
        ),
        (errors[0], f"errors: {errors[1]}"),
        (
            len(faults) == 0,
            f"{len(faults)} tokens that only ours get wrong are above {FAR:g} times the control's largest deficit, "
            f"{largest:.2f}; by prompt.token and deficit: {listed or 'none'}",
        ),
    ]


def compare_layouts(ours: tuple[Said, Said], control: tuple[Said, Said]) -> tuple[bool, str]:
    """The fourth: one GPU and two."""
    good, seen = no_larger(distances(*ours), distances(*control))
    return good, f"from one GPU on the same texts, nats: {seen}"


def compare_free(mine: list[dict], other: list[dict]) -> tuple[bool, str]:
    """The last: judged tokens of reference_logits.py, of texts that each engine chose."""
    good, beside = (sum(not token["deficit"] for token in tokens) for tokens in (mine, other))
    chance = drawn(good, len(mine), beside, len(other))
    return chance >= UNLIKELY, (
        f"{good} of {len(mine)} tokens are the float32 reference's, the control's {beside} of {len(other)}, "
        f"chance {chance:.3f}; largest deficits {max(t['deficit'] for t in mine):.2f} and "
        f"{max(t['deficit'] for t in other):.2f}"
    )
