# SPDX-License-Identifier: Apache-2.0
"""README's commands work from a bare clone: each ```sh block runs in one, without this checkout's environment.

The clone is of the last commit. It sees cargo, a C compiler, cmake, pkg-config and a Python with torch, but no libclang
of `.venv` and no LIBCLANG_PATH. What cargo built stays in build/readme/target for the next run.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BUILD = ROOT / "build/readme"
OP = "vllm_plugin/nvfp4_moe/nvfp4_moe_torch.so"
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

# Commands that need what a test has not: why, by how they begin. After a check of their form they are skipped, visibly.
NOT_RUN = {
    "pip install nvfp4_moe-": "tests/test_wheel.py installs the wheel where nothing can be compiled",
    "pip install .": "builds under isolation for minutes; make test-torch-new and make test-vllm install the wheel",
    "vllm serve": "needs vLLM and a model of full size; tests/vllm serves tiny ones",
    "make test": "is what runs this test",
    "make layertest": "takes minutes; a step of its own",
    "make gpu-test": "needs a GPU",
}
# What the others must print, and their exit status where it is not 0.
PRINTS = {
    "python -m nvfp4_moe doctor": "vllm is not installed",  # vLLM has environments of its own: tests/vllm
    "cc examples/layer.c": "layer.c: correct",
    "c++ -std=c++17 examples/layer.cpp": "layer.cpp: correct",
    "cargo run --release --example layer": "layer.rs: correct",
    "python examples/layer.py": "layer.py: correct",
    "cargo run --release --bin nvfp4-moe -- inspect": "NVFP4",
}
STATUS = {"python -m nvfp4_moe doctor": 1}


def beginning(table: dict, command: str) -> str | None:
    return next((start for start in table if command.startswith(start)), None)


def blocks(language: str) -> list[list[str]]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text.replace("\\\n", " ").splitlines() for text in found]


COMMANDS = [line for block in blocks("sh") for line in block]
SKIPPED = [command for command in COMMANDS if beginning(NOT_RUN, command)]
RUN = [[command for command in block if command not in SKIPPED] for block in blocks("sh")]


@pytest.fixture(scope="session")
def clone() -> Path:
    """The repository at its last commit, with a tiny checkpoint under README's name and the op that was built here."""
    path = BUILD / "clone"
    shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(BUILD / "home", ignore_errors=True)
    for folder in ("home", "target", "tools"):
        (BUILD / folder).mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, path], check=True)
    (path / "target").symlink_to(BUILD / "target")
    if (ROOT / OP).exists():
        (path / OP).symlink_to(ROOT / OP)
    make = [sys.executable, path / "tests/checkpoints/make_checkpoint.py", path / "DeepSeek-V4-Flash-NVFP4"]
    subprocess.run(make, check=True, capture_output=True)
    return path


def environment(clone: Path) -> dict[str, str]:
    """What a user has: the system's tools, cargo, and a Python that can import torch."""
    tools, home = BUILD / "tools", Path.home()
    for name, program in {"python": sys.executable, "cmake": CMAKE}.items():
        wrapper = tools / name
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(str(program))} "$@"\n')
        wrapper.chmod(0o755)
    cargo = Path(shutil.which("cargo") or "cargo").parent
    return {
        "PATH": f"{tools}:{cargo}:{os.defpath}",
        "HOME": str(BUILD / "home"),
        "CARGO_HOME": os.environ.get("CARGO_HOME", str(home / ".cargo")),
        "RUSTUP_HOME": os.environ.get("RUSTUP_HOME", str(home / ".rustup")),
        # The commands as they stand, in less time: nobody measures this build.
        "CARGO_PROFILE_RELEASE_LTO": "off",
        "CARGO_PROFILE_RELEASE_OPT_LEVEL": "0",
        "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
        "CARGO_PROFILE_RELEASE_DEBUG": "0",
        "PYTHONPATH": str(clone / "vllm_plugin"),
        **{name: value for name, value in os.environ.items() if name.endswith(("_NUM_THREADS", "_JOBS"))},
    }


def bash(script: str, clone: Path) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=clone,
        env=environment(clone),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout


def script_of(block: list[str]) -> str:
    """One shell for the block, so that what it exports lasts; a command that must fail ends with its own status."""
    lines = []
    for command in block:
        start = beginning(STATUS, command)
        check = f"\n}} || [ $? = {STATUS[start]} ]" if start else "\n}"
        lines.append(f"{{ {command}{check}")
    return "\n".join(lines)


@pytest.mark.parametrize("block", [block for block in RUN if block], ids=lambda block: block[0][:40])
def test_the_commands_of_a_block_work(block, clone):
    if any("pkg-config" in command for command in block) and not (CMAKE and shutil.which("pkg-config")):
        pytest.skip("cmake or pkg-config is not installed")
    status, output = bash(script_of(block), clone)
    assert status == 0, output[-6000:]
    for command in block:
        wanted = PRINTS.get(beginning(PRINTS, command) or "")
        assert wanted is None or wanted in output, f"`{command}` does not print {wanted!r}:\n{output[-6000:]}"


@pytest.mark.parametrize("command", SKIPPED)
def test_a_command_that_is_not_run_is_well_formed(command, clone):
    assert bash(f"bash -n <<'EOF'\n{command}\nEOF", clone)[0] == 0
    if command.startswith("make "):
        status, output = bash(f"make --dry-run {command.removeprefix('make ')}", clone)
        assert status == 0, output[-3000:]
    pytest.skip(NOT_RUN[beginning(NOT_RUN, command)])


def test_no_exception_is_left_over():
    for table in (NOT_RUN, PRINTS, STATUS):
        unused = [start for start in table if not any(command.startswith(start) for command in COMMANDS)]
        assert not unused, f"README has no command that begins with {unused}"


def test_excerpts_are_of_the_examples():
    shown = {
        file: blocks(language) for language, file in {"c": "layer.c", "rust": "layer.rs", "python": "layer.py"}.items()
    }
    assert any(shown.values()), "README shows no example"
    for file, excerpts in shown.items():
        example = (ROOT / "examples" / file).read_text()
        missing = [line for block in excerpts for line in block if line.strip() and line not in example]
        assert not missing, f"not in {file}: {missing}"


def test_the_minima_are_those_of_the_build():
    from nvfp4_moe.plugin import support

    def said(file: str, pattern: str) -> str:
        return re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)[1]

    cargo = said("Cargo.toml", r'^rust-version = "(.+)"')
    wanted = [
        f"cargo {cargo}",
        f"Python {said('pyproject.toml', 'requires-python = .>=([0-9.]+)')} or later",
        f"torch {said('pyproject.toml', 'torch>=([0-9.]+)')} or later",
        f"cmake {said('CMakeLists.txt', r'cmake_minimum_required.VERSION ([0-9.]+)')} or later",
        " to ".join(".".join(map(str, version)) for version in (support.OLDEST, support.NEWEST)),
    ]
    assert [text for text in wanted if text not in README] == []
    assert f"Rust {cargo} or later" in (ROOT / "CMakeLists.txt").read_text()
