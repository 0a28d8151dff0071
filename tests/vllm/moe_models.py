# SPDX-License-Identifier: Apache-2.0
"""vLLM's mixture-of-experts models, read from its source: who makes a layer of experts, and with which arguments.

The registry says which class a model is; a class reaches a layer of experts where it, or a class that its body names,
calls vLLM's factory. Nothing is imported but the registry, and the config classes whose defaults an argument names.
"""

import ast
import importlib
import importlib.util
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FACTORIES = ("FusedMoEFactory", "FusedMoE")
PACKAGE = "vllm.model_executor.models"
NOT_OURS = {"amd", "xpu", "cpu", "interfaces", "interfaces_base", "utils", "registry"}
"""Folders of other platforms beside NVIDIA's, and modules that name models without being one."""
ROOT = Path(importlib.util.find_spec("vllm").origin).parent


@dataclass(frozen=True)
class Call:
    """One place that makes layers of experts."""

    file: str
    owner: str
    activations: tuple[str, ...]
    """Every value that the argument can have, as far as the source says; else the expression."""
    limit: bool
    bias: str
    """yes, by the model, or nothing."""
    layer_class: str


@dataclass
class Class:
    names: set[str] = field(default_factory=set)
    """What its body and its bases name, also an architecture by its name in the registry."""
    calls: list[ast.Call] = field(default_factory=list)


@dataclass
class Module:
    path: Path
    tree: ast.Module
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Local name: (module, name there)."""
    classes: dict[str, Class] = field(default_factory=dict)


def path_of(module: str) -> Path | None:
    """The file of a module of vLLM."""
    base = ROOT.joinpath(*module.split(".")[1:])
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None)


@cache
def module(name: str) -> Module | None:
    """A module's classes, and what they name."""
    path = path_of(name)
    if path is None:
        return None
    made = Module(path, ast.parse(path.read_text()))
    here = ["vllm", *path.relative_to(ROOT).with_suffix("").parts]
    for node in ast.walk(made.tree):
        if isinstance(node, ast.ImportFrom):
            origin = ".".join(here[: -node.level] if node.level else [])
            origin = ".".join(filter(None, (origin, node.module)))
            if set(origin.split(".")) & NOT_OURS:
                continue
            for alias in node.names:
                made.imports[alias.asname or alias.name] = origin, alias.name
    for node in made.tree.body:
        names = [node.name] if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
        if isinstance(node, ast.Assign):  # a table of layers by a letter of the config
            names = [name_of(target) for target in node.targets]
        named = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        named |= {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value in registered()}
        calls = [n for n in ast.walk(node) if isinstance(n, ast.Call) and name_of(n.func) in FACTORIES]
        made.classes |= {name: Class(named, calls) for name in names}
    return made


def name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@cache
def calls_of(module_name: str, name: str) -> frozenset[Call]:
    """Of a class and of all that it reaches."""
    found, seen, wanted = set(), set(), [(module_name, name)]
    while wanted:
        at = wanted.pop()
        if at in seen or not at[0].startswith((PACKAGE, "vllm.models")):
            continue
        seen.add(at)
        holder = module(at[0])
        if holder is None:
            continue
        if at[1] not in holder.classes:
            if at[1] in holder.imports:
                wanted.append(holder.imports[at[1]])
            continue
        of = holder.classes[at[1]]
        found |= {call(holder, at[1], node) for node in of.calls}
        wanted += [(at[0], named) for named in of.names if named in holder.classes]
        wanted += [holder.imports[named] for named in of.names if named in holder.imports]
        wanted += [registered()[named] for named in of.names if named in registered()]
    return frozenset(found)


def call(holder: Module, owner: str, node: ast.Call) -> Call:
    body = next(of for of in holder.tree.body if getattr(of, "name", "") == owner)
    given = {}
    for keyword in node.keywords:
        given |= {keyword.arg: keyword.value} if keyword.arg else arguments(body, name_of(keyword.value))

    def text(name: str) -> str:
        return ast.unparse(given[name]) if name in given else ""

    found = set(activations(holder, body, given.get("activation")))
    return Call(
        file=str(holder.path.relative_to(ROOT)),
        owner=owner,
        # Kimi-K3: which of them is a line of its config.
        activations=tuple(sorted(found | ({"situ"} if "activation_situ_beta" in given else set()))),
        limit=text("swiglu_limit") not in ("", "None"),
        bias={"": "", "False": "", "True": "yes"}.get(text("has_bias"), "by the model"),
        layer_class=layer_class(holder, text("routed_experts_cls")),
    )


def arguments(body: ast.ClassDef, name: str) -> dict[str, ast.expr]:
    """What a variable `name = dict(...)` holds, that is passed on as keywords."""
    found = {}
    for node in ast.walk(body):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if name in map(name_of, targets) and name_of(node.value.func) == "dict":
                found |= {keyword.arg: keyword.value for keyword in node.value.keywords if keyword.arg}
    return found


def layer_class(holder: Module, text: str) -> str:
    """The name of a class, or what a class's attribute of that name is."""
    if not text.startswith("self."):
        return text or "RoutedExperts"
    attribute = text.removeprefix("self.")
    for node in ast.walk(holder.tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == attribute for target in targets):
                return ast.unparse(node.value)
    return text


def activations(holder: Module, body: ast.ClassDef, given: ast.expr | None) -> tuple[str, ...]:
    """The factory's default, a constant, the constants that a variable is given, or a config's default."""
    if given is None:
        return ("silu",)
    if isinstance(given, ast.Constant):
        return (given.value,)
    if isinstance(given, ast.Call) and name_of(given.func) == "activation_without_mul":
        return tuple(f"{of}_no_mul" for of in activations(holder, body, given.args[0]))
    if isinstance(given, ast.Name):
        values = {
            constant.value
            for node in ast.walk(body)
            if isinstance(node, ast.Assign) and given.id in map(name_of, node.targets)
            for constant in ast.walk(node.value)
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
        }
        if values:
            return tuple(sorted(values))
    if isinstance(given, ast.Attribute):
        values = {value for value in defaults(holder, given.attr) if isinstance(value, str)}
        if values:
            return tuple(sorted(values))
    return (ast.unparse(given),)


def defaults(holder: Module, name: str) -> list[object]:
    """What the config classes that a file imports have for an attribute."""
    found = []
    for local, (origin, original) in holder.imports.items():
        if local.endswith("Config") and origin.startswith(("transformers", "vllm.transformers_utils")):
            try:
                found.append(getattr(getattr(importlib.import_module(origin), original)(), name, None))
            except Exception:  # a config that cannot be made says nothing
                continue
    return found


@cache
def registered() -> dict[str, tuple[str, str]]:
    """vLLM's registry: (module, class) of each architecture."""
    from vllm.model_executor.models import registry

    full = lambda where: where if where.startswith("vllm.") else f"{PACKAGE}.{where}"  # noqa: E731
    return {architecture: (full(where), name) for architecture, (where, name) in registry._VLLM_MODELS.items()}


def models() -> dict[str, frozenset[Call]]:
    """Architectures of vLLM's registry that reach a layer of experts."""
    reached = {architecture: calls_of(*where) for architecture, where in registered().items()}
    return {architecture: calls for architecture, calls in reached.items() if calls}


def files_with_experts() -> set[str]:
    """Every file of a model that calls vLLM's factory."""
    found = set()
    for folder in ("model_executor/models", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            if not set(path.parts) & NOT_OURS and any(f"{factory}(" in text for factory in FACTORIES):
                calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
                if any(name_of(node.func) in FACTORIES for node in calls):
                    found.add(str(path.relative_to(ROOT)))
    return found
