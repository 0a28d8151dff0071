# SPDX-License-Identifier: Apache-2.0
"""A `vllm serve` command as words: which model, which flags, which settings before it. Nothing is run."""

import json
import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from .finding import WrongUse
from .model import printable

SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
SHORT = {
    "-tp": "tensor-parallel-size",
    "-pp": "pipeline-parallel-size",
    "-dp": "data-parallel-size",
    "-ep": "enable-expert-parallel",
    "-cc": "compilation-config",
    "-O": "optimization-level",
    "-q": "quantization",
}
EXAMPLE = "doctor command -- vllm serve MODEL_DIR --tensor-parallel-size 2"


@dataclass
class Serve:
    """What was asked for."""

    model: str = ""
    flags: dict[str, str] = field(default_factory=dict)
    """Without dashes in front, `_` as `-`; the last one counts, and one without a value has none."""
    environment: dict[str, str] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Is a switch on?"""
        return name in self.flags and self.flags[name].lower() != "false"

    def number(self, name: str, default: int = 1) -> int:
        """Of a flag; WrongUse if it is none."""
        value = self.flags.get(name, str(default))
        if not value.isascii() or not value.isdecimal() or int(value) < 1:
            raise WrongUse(f"--{name} is {printable(value)}; it must be a number, 1 or more.")
        return int(value)

    def of_json(self, name: str, key: str) -> Any:
        """A key of a flag that is JSON, or of its dotted spelling; None if it is not given."""
        dotted = self.flags.get(f"{name}.{key}")
        if dotted is not None:
            return dotted
        try:
            value = json.loads(self.flags.get(name) or "{}")
        except (ValueError, RecursionError) as error:
            raise WrongUse(f"--{name} is no JSON ({error}); it must be an object.") from None
        return value.get(key) if isinstance(value, dict) else None


def parse(words: list[str]) -> Serve:
    """`[NAME=VALUE ...] vllm serve MODEL [--flag [value] ...]`, as words or as one text."""
    words = shlex.split(words[0]) if len(words) == 1 else list(words)
    serve = Serve()
    words = words[1:] if words[:1] == ["env"] else words
    while words and SETTING.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        serve.environment[name] = value
    if len(words) < 2 or words[0].rpartition("/")[2] != "vllm" or words[1] != "serve":
        raise WrongUse(f"{printable(' '.join(words[:3])) or 'nothing'} is no vllm serve. As in: {EXAMPLE}")
    rest = words[2:]
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            serve.model = serve.model or word
            continue
        name, equals, value = flag_of(word)
        if not equals and rest and not rest[0].startswith("-") and not (name in SWITCHES and rest[0] not in TRUTHS):
            value = rest.pop(0)
        if name.startswith("no-") and name.removeprefix("no-") in SWITCHES:
            name, value = name.removeprefix("no-"), "false"
        serve.flags[name] = value
    serve.model = serve.flags.get("model", serve.model)
    return serve


# Of those that are looked at: a word behind them is no value of theirs, but may be the model.
SWITCHES = {
    *("enable-expert-parallel", "enforce-eager", "enable-lora", "enable-auto-tool-choice", "trust-remote-code"),
    *("enable-prefix-caching", "enable-chunked-prefill", "async-scheduling", "enable-eplb"),
}
TRUTHS = {"true", "false", "True", "False"}


def flag_of(word: str) -> tuple[str, str, str]:
    """(name, "=" or nothing, value) of a word that begins with a dash."""
    head, equals, value = word.partition("=")
    optimisation = re.fullmatch(r"-O(\d)", head)
    if optimisation:
        return SHORT["-O"], "=", optimisation[1]
    dotted = re.match(r"(-O|-cc)\.(.+)", head)
    if dotted:
        return f"compilation-config.{dotted[2]}", equals, value
    name = SHORT.get(head) or head.lstrip("-")
    stem, dot, below = name.partition(".")
    return stem.replace("_", "-") + dot + below, equals, value
