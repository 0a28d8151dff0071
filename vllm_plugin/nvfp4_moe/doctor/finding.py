# SPDX-License-Identifier: Apache-2.0
"""What every command says: findings, facts beside them, one printer for people and for programs."""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from .model import printable

HEALTHY, FOUND, WRONG_USE = 0, 1, 2

SHOWN = 600  # characters of a sentence: names and texts are their author's, and may be long


class WrongUse(Exception):
    """The question cannot be asked like this; its text says what to do."""


@dataclass(frozen=True)
class Finding:
    """One outcome of one experiment."""

    name: str
    """What a program matches: "input-scale-outlier"."""
    seen: str
    """With both numbers: the one that is there and the one that should be."""
    means: str
    do: str
    is_fault: bool = True
    """A note explains and does not make a model ill; the exit status is that of the faults."""


@dataclass
class Report:
    """Of one command on one subject (a directory, a URL, a model)."""

    command: str
    subject: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    numbers: dict = field(default_factory=dict)
    """For programs alone: more keys of the JSON."""

    def fact(self, name: str, text: object) -> None:
        """What is, without a judgement."""
        self.facts.append((name, str(text)))

    def fault(self, name: str, seen: str, means: str, do: str) -> None:
        """It explains wrong answers."""
        self.findings.append(Finding(name, seen, means, do))

    def note(self, name: str, seen: str, means: str, do: str) -> None:
        """It may matter to somebody; the model is healthy with it."""
        self.findings.append(Finding(name, seen, means, do, is_fault=False))

    def sentence(self, name: str, text: str, *, is_fault: bool = True) -> None:
        """One of this project's sentences, `<seen>; <rule>. <what to do>`, as a finding."""
        seen, _, rest = text.partition("; ")
        means, _, do = rest.partition(". ")
        self.findings.append(Finding(name, seen, means.rstrip(".") + "." if means else "", do, is_fault))

    @property
    def faults(self) -> list[Finding]:
        """Those that make the subject ill."""
        return [finding for finding in self.findings if finding.is_fault]

    @property
    def status(self) -> int:
        """The process's exit status."""
        return FOUND if self.faults else HEALTHY

    def to_dict(self) -> dict:
        """As JSON has it."""
        findings = [
            {key: printable(value, SHOWN) if isinstance(value, str) else value for key, value in asdict(each).items()}
            for each in self.findings
        ]
        facts = [[printable(name), printable(text, SHOWN)] for name, text in self.facts]
        return {
            "command": self.command,
            "subject": printable(self.subject),
            "healthy": not self.faults,
            "facts": facts,
            "findings": findings,
            **self.numbers,
        }

    def lines(self) -> Iterable[str]:
        """As people read it: facts, faults, notes, and the verdict last."""
        shown = self.to_dict()
        yield f"doctor {self.command}  {shown['subject']}"
        width = min(max((len(name) for name, _ in shown["facts"]), default=0), 34)
        yield from (f"  {name:{width}}  {text}" for name, text in shown["facts"])
        for finding in sorted(shown["findings"], key=lambda finding: not finding["is_fault"]):
            yield ""
            yield f"{'FAULT' if finding['is_fault'] else 'note '}  {finding['name']}"
            parts = (("seen", "seen"), ("means", "means"), ("do", "do"))
            yield from (f"  {label:5}  {finding[key]}" for label, key in parts if finding[key])
        faults, notes = len(self.faults), len(self.findings) - len(self.faults)
        yield ""
        yield f"{'no fault' if not faults else counted(faults, 'fault')} found, {counted(notes, 'note')}"

    def finish(self, as_json: bool) -> int:
        """Print; returns the exit status."""
        print(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) if as_json else "\n".join(self.lines()))
        return self.status


def counted(number: int, thing: str) -> str:
    """`1 fault`, `2 faults`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def some(things: Iterable[object], shown: int = 3) -> str:
    """The first few of a list, and how many more there are."""
    texts = [printable(str(thing)) for thing in things]
    more = len(texts) - shown
    return ", ".join(texts[:shown]) + (f" and {more} more" if more > 0 else "")


def without_numbers(name: str) -> str:
    """`layers.3.attn.wq_a` as `layers.*.attn.wq_a`: what all layers have in common."""
    return re.sub(r"\d+", "*", name)


def progress(text: str) -> None:
    """What is going on, for somebody who waits; never part of the report."""
    print(f"  ... {text}", file=sys.stderr, flush=True)
