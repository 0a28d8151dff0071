# SPDX-License-Identifier: Apache-2.0
"""Print `torch version;torch folder;libclang folder` of this Python for CMake, "none" for what is not installed."""

import site
import sys
import sysconfig
from pathlib import Path


def find_package(relative: str) -> Path | None:
    """The first `relative` under sys.path, or under the site-packages that pip's build isolation hides."""
    folders = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()]
    return next((Path(folder, relative) for folder in folders if Path(folder, relative).exists()), None)


def torch_version(torch: Path) -> str:
    """Without importing it, which takes seconds: `__version__ = '2.11.0+cu130'`, cut at the plus sign."""
    lines = (torch / "version.py").read_text().splitlines()
    text = next(line for line in lines if line.startswith("__version__"))
    return text.split("'")[1].split("+")[0]


torch, libclang = find_package("torch"), find_package("clang/native")
print(torch_version(torch) if torch else "none", torch or "none", libclang or "none", sep=";")
