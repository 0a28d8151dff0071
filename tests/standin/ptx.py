# SPDX-License-Identifier: Apache-2.0
"""Text of PTX: functions, statements, operands, where a line came from, and how a call is written."""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


class Refused(Exception):
    """The PTX has something that the stand-in does not know; the text names its line."""


def without_comments(text: str) -> str:
    """The same lines with blanks in the place of comments and of all that -lineinfo adds."""
    blanks = lambda match: re.sub(r"[^\n]", " ", match.group(0))  # noqa: E731
    text = re.sub(r"^\s*\.(loc|file)\b[^\n]*|^\s*\.section\s+\.debug[^{]*\{[^}]*\}", blanks, text, flags=re.MULTILINE)
    return re.sub(r"//[^\n]*|/\*.*?\*/", blanks, text, flags=re.DOTALL)


def operands(text: str) -> list[str]:
    """Split at commas outside brackets and braces."""
    found, depth, current = [], 0, ""
    for char in text:
        depth += (char in "[{(") - (char in "]})")
        if char == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += char
    return [*found, current.strip()] if current.strip() else found


def vector(operand: str) -> list[str]:
    """The registers of `{a, b, c}`, or of a lone one."""
    return [register.strip() for register in operand.strip("{} ").split(",")]


@dataclass
class Statement:
    """An instruction with its guard, somewhere in a function."""

    text: str
    start: int
    end: int
    line: int
    guard: str  # "@%p1", "@!%p1" or ""
    name: str  # the opcode with all that is joined to it by dots
    operands: list[str]


@dataclass
class Function:
    """A function with a body, from its opening brace to the closing one."""

    name: str
    is_entry: bool
    begin: int  # after the opening brace
    end: int  # before the closing brace


FUNCTION = re.compile(r"\.(entry|func)\b\s*(?:\([^)]*\)\s*)?([\w$]+)\s*(?:\([^)]*\))?[^;{]*([;{])")
INSTRUCTION = re.compile(
    r"(?<![\w.$%:])(?P<guard>@!?%?[\w$]+\s+)?"
    r"(?P<name>[a-z][a-z0-9_]*(?:(?:\.|::)[\w]+)*)(?P<rest>\s*;|(?:\s+|(?=[\[{]))[^;]*;)"
)


def functions(text: str) -> Iterator[Function]:
    """Functions of PTX without comments."""
    at = 0
    while found := FUNCTION.search(text, at):
        at = found.end()
        if found.group(3) == ";":
            continue
        depth, begin = 1, at
        while depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        yield Function(found.group(2), found.group(1) == "entry", begin, at - 1)


def statements(text: str, function: Function) -> Iterator[Statement]:
    """Instructions of a function. Directives begin with a dot and are none."""
    line, counted = 1, 0
    for found in INSTRUCTION.finditer(text, function.begin, function.end):
        line += text.count("\n", counted, found.start("name"))
        counted = found.start("name")
        rest = found.group("rest").strip().rstrip(";").strip()
        guard = (found.group("guard") or "").strip()
        yield Statement(found.group(0), found.start(), found.end(), line, guard, found.group("name"), operands(rest))


def source_lines(text: str) -> dict[int, str]:
    """The first line of PTX of each place in the source, `file:line`, where nvcc's -lineinfo says so."""
    files = dict(re.findall(r"^\s*\.file\s+(\d+)\s+\"([^\"]+)\"", text, re.MULTILINE))
    found, current = {}, ""
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line):
            place = f"{Path(files.get(match[1], '?')).name}:{match[2]}"
            if place != current:
                current = place
                found[number + 1] = place
    return found


# ---- Calls

_serial = itertools.count(1)


def fresh(prefix: str) -> str:
    """A name that no other has."""
    return f"{prefix}{next(_serial)}"


@dataclass
class Value:
    """An argument: bits and an operand, a register, an immediate or an address in brackets."""

    bits: int
    operand: str

    def load(self, register: str) -> str:
        """Instructions that put it into a register of its bits."""
        text = self.operand.strip("[] ")
        if match := re.fullmatch(r"(.+?)\s*\+\s*(-?\w+)", text):
            return f"add.s{self.bits} {register}, {match[1]}, {match[2]};"
        return f"mov.b{self.bits} {register}, {text};"


@dataclass
class Predicate(Value):
    """A predicate, as 0 or 1."""

    def __init__(self, operand: str):
        super().__init__(32, operand)

    def load(self, register: str) -> str:
        """As of a value; `!%p1` is the other way."""
        ones = (0, 1) if self.operand.startswith("!") else (1, 0)
        return f"selp.b32 {register}, {ones[0]}, {ones[1]}, {self.operand.lstrip('!')};"


@dataclass
class Bytes:
    """A struct of 32-bit words, passed by value."""

    registers: list[str]
    align: int


def call(function: str, arguments: Iterable[Value | Bytes], *, uniform: bool = False) -> str:
    """A call without result."""
    return _call(function, arguments, uniform, "", "", [])


def call_for(
    function: str, arguments: Iterable[Value | Bytes], bits: int, then: list[str], *, uniform: bool = False
) -> str:
    """A call whose result of so many bits is `$R` in the instructions that follow."""
    result, register = fresh("stR"), fresh("%stR")
    after = [f".reg .b{bits} {register};", f"ld.param.b{bits} {register}, [{result}];"]
    after += [line.replace("$R", register) for line in then]
    return _call(function, arguments, uniform, f".param .b{bits} {result};", f"({result}), ", after)


def call_for_words(function: str, arguments: Iterable[Value | Bytes], registers: list[str]) -> str:
    """A call that returns a struct of as many words."""
    result = fresh("stR")
    after = [f"ld.param.b32 {register}, [{result}+{4 * i}];" for i, register in enumerate(registers)]
    declaration = f".param .align 16 .b8 {result}[{4 * len(registers)}];"
    return _call(function, arguments, True, declaration, f"({result}), ", after)


def _call(function, arguments, uniform, declaration, result, after) -> str:
    lines, parameters = ["{"], []
    for argument in arguments:
        parameter = fresh("stP")
        parameters.append(parameter)
        if isinstance(argument, Bytes):
            size = 4 * len(argument.registers)
            lines.append(f".param .align {argument.align} .b8 {parameter}[{size}];")
            lines += [f"st.param.b32 [{parameter}+{4 * i}], {it};" for i, it in enumerate(argument.registers)]
            continue
        register = fresh("%stV")
        lines += [f".reg .b{argument.bits} {register};", argument.load(register)]
        lines.append(f".param .b{argument.bits} {parameter};")
        lines.append(f"st.param.b{argument.bits} [{parameter}], {register};")
    if declaration:
        lines.append(declaration)
    suffix = ".uni" if uniform else ""
    lines.append(f"call{suffix} {result}{function}, ({', '.join(parameters)});")
    return "\n".join([*lines, *after, "}"])
