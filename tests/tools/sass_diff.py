#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Do two builds compute by the same instructions? Compares the machine code of all kernels of two sets of fat binaries.

    python3 tests/tools/sass_diff.py OLD NEW [--show KERNEL]

OLD and NEW are folders of *.fatbin (`target/release/build/nvfp4-moe-*/out` of two commits) or single ones. A kernel is
known by name and GPU, whichever file holds it, so files may be renamed and kernels moved. Verdicts:

    equal       the same bytes
    offsets     the same instructions, but for where they read parameters (c[0x0][...]): a struct's fields have moved
    different   anything else

Needs cuobjdump and nvdisasm on PATH (pip: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm). Ends with 1 if a kernel is
different, or in one set only.
"""

import argparse
import collections
import difflib
import re
import subprocess
import sys
from pathlib import Path

# One instruction: its text, and its encoding in two words on two lines.
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;?\s+/\* (0x[0-9a-f]+) \*/$")
SECOND_WORD = re.compile(r"^\s+/\* (0x[0-9a-f]+) \*/$")
PARAMETER = re.compile(r"c\[0x0\]\[[^]]*\]")

Code = list[tuple[str, str]]  # text, encoding


def kernels_of(path: Path) -> dict[tuple[str, str], Code]:
    """Instructions by (kernel, GPU)."""
    kernels = {}
    files = [path] if path.is_file() else sorted(path.glob("*.fatbin"))
    if not files:
        sys.exit(f"{path} holds no *.fatbin; build with nvcc first.")
    for file in files:
        sass = subprocess.run(["cuobjdump", "-sass", file], check=True, capture_output=True, text=True).stdout
        gpu, code = "", []
        for line in sass.splitlines():
            if line.startswith("arch = "):
                gpu = line.removeprefix("arch = ")
            elif "Function : " in line:
                code = kernels[line.split("Function : ")[1], gpu] = []
            elif match := INSTRUCTION.match(line):
                code.append((match[1], match[2]))
            elif (match := SECOND_WORD.match(line)) and code:
                code[-1] = (code[-1][0], code[-1][1] + match[1])
    return kernels


def without_offsets(code: Code) -> list[str]:
    return [PARAMETER.sub("c[0x0][parameter]", text) for text, _ in code]


def verdict(old: Code, new: Code) -> str:
    if old == new:
        return "equal"
    return "offsets" if without_offsets(old) == without_offsets(new) else "different"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--show", help="print how the instructions of this kernel differ, offsets left out")
    args = parser.parse_args()
    old, new = kernels_of(args.old), kernels_of(args.new)
    counts = collections.Counter()
    for key in sorted(old.keys() | new.keys()):
        if key not in old or key not in new:
            found = f"only in {args.old if key in old else args.new}"
        else:
            found = verdict(old[key], new[key])
        counts["in one set only" if found.startswith("only") else found] += 1
        if found != "equal":
            print(f"{found:10} {' '.join(key)} ({len(old.get(key, []))} and {len(new.get(key, []))} instructions)")
        if args.show == key[0] and key in old and key in new:
            print(
                *difflib.unified_diff(*(without_offsets(code) for code in (old[key], new[key])), lineterm="", n=1),
                sep="\n",
            )
    print(", ".join(f"{count} {found}" for found, count in sorted(counts.items())))
    return int(counts["different"] + counts["in one set only"] > 0)


if __name__ == "__main__":
    sys.exit(main())
