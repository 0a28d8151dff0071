# SPDX-License-Identifier: Apache-2.0
"""No Rust file of the library depends, through others, on itself: reading goes downwards.

An import is a `use` line, or a path through a child module in a `mod.rs`. A name that a `mod.rs` only passes on
(`pub use`) counts as an import of the file that has it. Test modules may look anywhere.
"""

import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "rust"
FILES = [path for path in sorted(ROOT.rglob("*.rs")) if path.name not in {"build.rs", "build_kernels.rs", "tests.rs"}]


def module_of(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] in {"mod", "lib"} else parts


MODULES = {module_of(path): path for path in FILES}


@cache
def source(path: Path) -> str:
    """Its code without comments and without test modules."""
    text = re.sub(r"//.*", "", path.read_text())
    return re.split(r"#\[cfg\(test\)\]\s*(?:pub )?mod \w+ \{", text)[0]


def expand(tree: str) -> list[list[str]]:
    """`a::{b, c::{d, e}}` as its paths."""
    match = re.match(r"(?s)(.*?)\{(.*)\}$", tree.strip())
    if not match:
        return [[part.strip() for part in re.sub(r"\s+as\s+\w+$", "", tree.strip()).split("::")]]
    head = [part for part in match[1].split("::") if part]
    items, depth, item = [], 0, ""
    for char in match[2] + ",":
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            items.append(item)
            item = ""
        else:
            item += char
    return [head + tail for item in items if item.strip() for tail in expand(item)]


def uses(path: Path) -> list[tuple[bool, list[str]]]:
    """(is it passed on?, path) of each `use`."""
    found = re.findall(r"(?m)^\s*(pub(?:\([\w ]+\))? )?use ([^;]+);", source(path))
    return [(bool(public), names) for public, tree in found for names in expand(tree)]


def absolute(module: tuple[str, ...], names: list[str]) -> tuple[str, ...] | None:
    """The path from the crate's root; None for other crates."""
    if names[0] == "crate":
        return tuple(names[1:])
    while names and names[0] in {"super", "self"}:
        module = module[:-1] if names[0] == "super" else module
        names = names[1:]
        if not names or names[0] not in {"super", "self"}:
            return (*module, *names)
    return (*module, *names) if (*module, names[0]) in MODULES else None


def file_of(path: tuple[str, ...]) -> Path:
    """The file that a path's last name is in, passed on or not."""
    for length in range(len(path), -1, -1):
        if path[:length] in MODULES:
            module, rest = path[:length], path[length:]
            break
    if rest:
        for passed_on, names in uses(MODULES[module]):
            target = absolute(module, names)
            if passed_on and target and target != path and (names[-1] in {rest[0], "*"}):
                found = file_of(target if names[-1] == rest[0] else (*target[:-1], *rest))
                if names[-1] == rest[0] or re.search(rf"\b{rest[0]}\b", source(found)):
                    return found
    return MODULES[module]


def imports(path: Path) -> set[Path]:
    module = module_of(path)
    found = {
        file_of(target)
        for passed_on, names in uses(path)
        if not (passed_on and path.name in {"mod.rs", "lib.rs"}) and (target := absolute(module, names)) is not None
    }
    if path.name == "mod.rs":
        children = re.findall(r"(?<![\w:])(\w+)::\w+", re.sub(r"(?m)^\s*(?:pub.*)?use [^;]+;", "", source(path)))
        found |= {MODULES[(*module, child)] for child in children if (*module, child) in MODULES}
    return found - {path}


def test_paths_are_read_as_rust_reads_them():
    assert expand("a::{b, c::{d, e as f}}") == [["a", "b"], ["a", "c", "d"], ["a", "c", "e"]]
    kernels = ("cuda", "hopper", "kernels")
    assert absolute(("cuda", "hopper", "forward"), ["super", "kernels", "gemm"]) == (*kernels, "gemm")
    assert absolute(("cuda", "layer"), ["half", "bf16"]) is None
    assert file_of(("cpu", "CpuLayer")) == ROOT / "cpu" / "layer.rs"
    assert ROOT / "cuda" / "family.rs" in imports(ROOT / "cuda" / "layer.rs")
    assert ROOT / "cuda" / "hopper" / "forward.rs" in imports(ROOT / "cuda" / "hopper" / "mod.rs")


def test_no_file_imports_itself_through_others():
    graph = {path: imports(path) for path in FILES}
    assert sum(map(len, graph.values())) > 2 * len(FILES), "imports were found"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " -> ".join(str(path.relative_to(ROOT)) for path in error.args[1])
        raise AssertionError(f"a circle of imports: {circle}") from None


def test_cudarc_is_named_in_one_folder():
    naming = {path.parent for path in FILES if "cudarc" in source(path)}
    assert naming == {ROOT / "cuda" / "driver"}
