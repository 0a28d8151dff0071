# SPDX-License-Identifier: Apache-2.0
"""A vLLM of names only, for tests of the plugin where none is installed: every module is there, every name is a class.

import fake_vllm
fake_vllm.install()      # before nvfp4_moe.plugin.* is imported; does nothing where vLLM is installed
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType


class Names(type):
    """The type of vLLM's names: each has any name below it, the same each time. What is derived from one has not."""

    def __getattr__(cls, name):
        if name.startswith("__") or not cls.__module__.startswith("vllm"):
            raise AttributeError(name)
        made = named(name, cls.__module__)
        setattr(cls, name, made)
        return made


class Anything(metaclass=Names):
    """Stands for a class of vLLM: takes any arguments, and its objects have any attribute."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        if name.startswith("__") or not type(self).__module__.startswith("vllm"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def named(name: str, module: str) -> type:
    return Names(name, (Anything,), {"__module__": module})


class Module(ModuleType):
    """A module of vLLM."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = named(name, self.__name__)
        setattr(self, name, made)
        return made


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes vllm and all modules below it."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] == "vllm":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        module = Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


def install() -> None:
    """From now on `import vllm...` finds the names, unless a real vLLM is there."""
    found = importlib.util.find_spec("vllm") if "vllm" not in sys.modules else None
    # tests/vllm is a folder of that name on the path, without an __init__.py: no origin.
    if "vllm" not in sys.modules and (found is None or found.origin is None):
        sys.meta_path.insert(0, Finder())


def remove() -> None:
    """Undo `install`, and forget the plugin's modules, which were imported over it."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
    for name in [name for name in sys.modules if name.startswith(("vllm", "nvfp4_moe.plugin."))]:
        module, parent = sys.modules.pop(name), sys.modules.get(name.rpartition(".")[0])
        if vars(parent or object).get(name.rpartition(".")[2]) is module:
            delattr(parent, name.rpartition(".")[2])
