"""What a model directory holds, from tensor names alone: no weights are read."""

import json
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

EXPERT = re.compile(r"^(?P<layer>.*\.experts)\.\d+\.\w+$")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")

# A module's quantisation by the tensors beside its weight. The first match counts.
FORMATS = (
    ("nvfp4", {"weight", "weight_scale", "weight_scale_2"}),  # ModelOpt
    ("nvfp4", {"weight_packed", "weight_scale", "weight_global_scale"}),  # compressed-tensors
    ("fp8 or mxfp4", {"weight", "scale"}),
    ("fp8 or mxfp4", {"weight", "weight_scale_inv"}),
    ("other quantisation", {"weight", "weight_scale"}),
    ("unquantised", {"weight"}),
)


@dataclass(frozen=True, order=True)
class Group:
    """Modules that differ only in their layer number."""

    name: str
    kind: str  # "moe" or "linear"
    format: str
    input_scale: bool


def tensor_names(directory: Path) -> list[str]:
    """Names in every safetensors file, from the headers."""
    names: list[str] = []
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            names += [name for name in json.loads(stream.read(length)) if name != "__metadata__"]
    return names


def groups(names: list[str]) -> Counter[Group]:
    """Every module with a matrix, experts folded into their layer, layers folded into one line, with their number."""
    parts: dict[str, set[str]] = {}
    for name in names:
        module, _, part = name.rpartition(".")
        parts.setdefault(module, set()).add(part)
    modules: dict[str, Group] = {}
    for module, tensors in parts.items():
        format = next((label for label, needed in FORMATS if needed <= tensors), None)
        if format is None:
            continue
        expert = EXPERT.match(module)
        name = expert["layer"] if expert else module
        if not expert and (format == "unquantised" and not name.endswith(("proj", "head", "embed", "gate"))):
            continue  # norms and the like
        scales = bool({"input_scale", "input_global_scale"} & tensors)
        modules[name] = Group(NUMBER.sub("*", name), "moe" if expert else "linear", format, scales)
    return Counter(modules.values())
