# SPDX-License-Identifier: Apache-2.0
"""How the repository is built: dependencies run one way, files stay readable, nothing names a machine."""

import re
import subprocess
from pathlib import Path

import pytest

from bench import gpu_parts

ROOT = Path(__file__).parents[1]
MAX_LINES = 400
SOURCES = {".rs", ".c", ".h", ".hpp", ".cpp", ".cu", ".cuh", ".py"}
MADE_BY_A_TOOL = ROOT / "rust/bindings"

# vllm_plugin -> cpp -> include <- rust -> kernels: what each folder may not name. The patterns are uses (an include,
# an import, a path in code), not words: comments may speak of anything.
FORBIDDEN = {
    "include": r"#\s*include\s*[<\"](cuda|torch|ATen|c10)",
    "kernels": r"#\s*include\s*[<\"](torch|ATen|c10|nvfp4_moe\.h)|\bat::Tensor|\btorch::",
    "rust": r"\b(torch|tch|pyo3|vllm)::|^\s*use (torch|tch|pyo3)\b",
    "cpp": r"^\s*(import|from) vllm\b|#\s*include\s*[<\"](Python\.h|pybind11|cuda_runtime|kernels/)|vllm::",
    "vllm_plugin": r"ctypes|cffi",
}
# Hosts of package registries and mirrors, and homes and mounts of one machine. Split, so that this file passes.
MACHINE = "|".join(
    [
        r"(?:index-url|find-links)[ =]|registry\s*=\s*[\"']",
        r"(?:pypi|files\.pythonhosted|static\.crates|index\.crates|deb\.debian|registry\.npmjs)" + r"\.(?:org|io)",
        r"(?<![\w.$}])/(?:work|root|home)" + r"/\w",
        r"(?<![\w.$}])/tmp" + r"/\w",
    ]
)


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def text_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except UnicodeDecodeError:
        return []


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_dependencies_run_one_way(folder):
    pattern = re.compile(FORBIDDEN[folder])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked()
        if path.is_relative_to(ROOT / folder) and path.suffix in SOURCES
        for number, line in enumerate(text_lines(path), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_library_needs_no_framework():
    manifest = (ROOT / "Cargo.toml").read_text()
    assert not re.search(r"^(torch-sys|tch|pyo3|numpy)\b", manifest, re.MULTILINE)


def test_files_are_readable_at_one_sitting():
    long = [
        f"{path.relative_to(ROOT)}: {len(text_lines(path))} lines"
        for path in tracked()
        if path.suffix in SOURCES and len(text_lines(path)) > MAX_LINES and path.parent != MADE_BY_A_TOOL
    ]
    assert not long, f"over {MAX_LINES} lines; a file that needs a table of contents is two files:\n" + "\n".join(long)


def test_nothing_names_a_registry_or_a_machine():
    pattern = re.compile(MACHINE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in tracked()
        if path.suffix != ".lock" and path != Path(__file__)
        for number, line in enumerate(text_lines(path), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_changelog_knows_the_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    assert re.search(rf"^## .*\b{re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("part", gpu_parts.PARTS)
def test_what_the_benchmark_of_parts_takes_out_is_there(part, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts, "BUILD", tmp_path)
    gpu_parts.changed_kernels(part, 48)
