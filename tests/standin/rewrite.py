#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns PTX for Blackwell into PTX for Hopper: `rewrite.py KERNEL.ptx STANDIN.ptx OUT.ptx`.

Each instruction that Hopper lacks becomes a call of a function of device/standin.cu; everything else stays word for
word. Prints how many of each were replaced. Refuses what it does not know, with its line. Beside OUT.ptx, OUT.lines
says which line of the source each line of the PTX came from, where the PTX was compiled with -lineinfo.
"""

import argparse
import collections
import re
import sys
import zlib
from pathlib import Path

import forms
from forms import Options
from ptx import (
    Function,
    Refused,
    Statement,
    Value,
    call_for,
    fresh,
    functions,
    source_lines,
    statements,
    without_comments,
)


def check_loads_are_waited_for(found: list[Statement]) -> None:
    """A register of tcgen05.ld means nothing before tcgen05.wait::ld; no instruction between may name it.

    But for plain copies, which nvcc may make of registers at once: the copy is pending as well. (CUTLASS's kernel for
    sm_100 multiplies what it loaded before it waits. The chip seems to bear it; PTX does not promise that.)
    """
    pending: dict[str, Statement] = {}
    for statement in found:
        if statement.name.startswith("tcgen05.wait::ld"):
            pending.clear()
            continue
        registers = re.findall(r"%\w+", statement.text)
        if statement.name.startswith("tcgen05.ld."):
            pending |= dict.fromkeys(registers[:-1], statement)  # the last one is the address
            continue
        loads = [pending[register] for register in registers if register in pending]
        if loads and re.fullmatch(r"mov\.[a-z]\d+", statement.name) and not statement.guard:
            pending |= dict.fromkeys(re.findall(r"%\w+", statement.operands[0]), loads[0])
        elif loads:
            register = next(it for it in registers if it in pending)
            raise Refused(
                f"line {statement.line}: {register} is used before tcgen05.wait::ld; line {loads[0].line} loads it"
            )


def guarded(statement: Statement, text: str) -> str:
    """The replacement runs where the instruction did."""
    if not statement.guard:
        return text
    inverse = "@" + statement.guard[2:] if statement.guard.startswith("@!") else "@!" + statement.guard[1:]
    skip = fresh("$STANDIN_")
    return f"{inverse} bra {skip};\n{text}\n{skip}:"


class Rewriter:
    """Rewrites one module."""

    def __init__(self, text: str, options: Options):
        self.text = without_comments(text)
        self.options = options
        self.counts: collections.Counter[str] = collections.Counter()
        self.edits: list[tuple[int, int, str]] = []  # start, end, text

    def run(self) -> str:
        bodies = [(function, list(statements(self.text, function))) for function in functions(self.text)]
        names = {statement.name for _, found in bodies for statement in found}
        # A module with nothing of Blackwell's is left alone; of another, kernels without it are watched, too.
        if any(forms.form_of(name) and not forms.HOPPER_HAS.match(name) for name in names):
            for function, found in bodies:
                self.function(function, found)
        text, at = "", 0
        for start, end, replacement in sorted(self.edits):
            text += self.text[at:start] + replacement
            at = end
        text += self.text[at:]
        if left := re.search(r"\btcgen05\.[^\n;]*|[^\n]*\.block_scale[^\n;]*", text):
            raise Refused(f"line {self.text.count(chr(10), 0, self.text.find(left[0])) + 1}: {left[0].strip()} is left")
        return text

    def function(self, function: Function, found: list[Statement]) -> None:
        of_ours = [(statement, form) for statement in found if (form := forms.form_of(statement.name))]
        if not of_ours:
            return
        if not function.is_entry:
            raise Refused(
                f"line {of_ours[0][0].line}: {of_ours[0][0].name} in function {function.name}, which is no kernel; "
                "it must be inlined"
            )
        if self.options.strict:
            check_loads_are_waited_for(found)
        of_ours += [(it, forms.leave) for it in found if forms.ENDS.fullmatch(it.name)]
        for statement, form in of_ours:
            self.counts[statement.name] += 1
            self.edits.append((statement.start, statement.end, guarded(statement, form(statement, self.options))))
        kernel = Value(32, str(zlib.crc32(function.name.encode())))
        enter = call_for("standin_enter", [kernel], 32, [f"mov.b32 {forms.SLOT}, $R;"], uniform=True)
        self.edits.append((function.begin, function.begin, f"\n.reg .b32 {forms.SLOT};\n{enter}\n"))


def declarations(standin: str) -> str:
    """Of the functions of device/standin.cu, whose PTX this is."""
    heads = re.findall(r"^\.visible (\.func[^{;]*\bstandin_\w+\s*\([^{;]*)\{", without_comments(standin), re.MULTILINE)
    return "".join(f".extern {head.strip()};\n" for head in heads)


def rewrite(kernel: str, standin: str, options: Options | None = None) -> tuple[str, collections.Counter[str]]:
    """PTX of a kernel with the stand-in in it, and how many of each instruction were replaced."""
    rewriter = Rewriter(kernel, options or Options())
    text = re.sub(r"\.target\s+sm_\w+", ".target sm_90a", rewriter.run(), count=1)
    if rewriter.counts:
        text = re.sub(r"\.address_size\s+64\s*\n", lambda match: match[0] + declarations(standin), text, count=1)
    return text, rewriter.counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("kernel", "standin", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--u4-loads", action="store_true", help="2D tensor copies are of 4-bit elements")
    parser.add_argument("--u4-maps", default="", help="which tensormap.replace groups are of 4-bit maps: 0,2")
    args = parser.parse_args()
    options = Options(args.u4_loads, tuple(int(it) for it in args.u4_maps.split(",") if it))
    kernel = args.kernel.read_text()
    try:
        text, counts = rewrite(kernel, args.standin.read_text(), options)
    except Refused as refusal:
        print(f"{args.kernel}: {refusal}", file=sys.stderr)
        return 1
    args.out.write_text(text)
    lines = source_lines(kernel)
    args.out.with_suffix(".lines").write_text("".join(f"{number} {place}\n" for number, place in lines.items()))
    for name, count in sorted(counts.items()):
        print(f"{count:5d} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
