# SPDX-License-Identifier: Apache-2.0
"""Print `torch's version;its folder;its CUDA;nvidia/cu13` of this Python for CMake, "none" for what is not there."""

import os
import re
import site
import sys
import sysconfig
from pathlib import Path


def site_packages() -> list[Path]:
    """Where packages are: also those that pip's isolation hides, and the active environment's, which others hide."""
    folders = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()]
    active = [Path(os.environ[name]) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if name in os.environ]
    return [*map(Path, folders), *(path for folder in active for path in folder.glob("lib/python3*/site-packages"))]


def find_package(relative: str) -> Path | None:
    """The first `relative` there is."""
    return next((folder / relative for folder in site_packages() if (folder / relative).exists()), None)


def versions(torch: Path) -> tuple[str, str]:
    """Of torch and of its CUDA, without importing it, which takes seconds: `__version__ = '2.11.0+cu130'`, cut."""
    text = (torch / "version.py").read_text()
    version = re.search(r"^__version__ = '([^+']+)", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b.*= '([^']+)'", text, re.MULTILINE)
    return version[1], cuda[1] if cuda else "none"


if __name__ == "__main__":
    torch = find_package("torch/version.py")
    version, cuda = versions(torch.parent) if torch else ("none", "none")
    print(version, torch.parent if torch else "none", cuda, find_package("nvidia/cu13") or "none", sep=";")
