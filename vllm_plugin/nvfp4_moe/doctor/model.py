"""What a model directory holds, from the headers of its files: no weights are read."""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path

EXPERT = re.compile(r"^(?P<layer>.*\.experts)\.\d+\.\w+$")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")

UNQUANTISED = "unquantised"

# A module's quantisation by the tensors beside its weight. The first match counts.
FORMATS = (
    ("nvfp4", {"weight", "weight_scale", "weight_scale_2"}),  # ModelOpt
    ("nvfp4", {"weight_packed", "weight_scale", "weight_global_scale"}),  # compressed-tensors
    ("fp8 or mxfp4", {"weight", "scale"}),
    ("fp8 or mxfp4", {"weight", "weight_scale_inv"}),
    ("other quantisation", {"weight", "weight_scale"}),
    (UNQUANTISED, {"weight"}),
)


# Linears that vLLM fuses, by the parts' names in checkpoints. Globs of the override list are over vLLM's names.
FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "wq_a": "fused_wqa_wkv",
    "wkv": "fused_wqa_wkv",
}


@dataclass(frozen=True, order=True)
class Module:
    """A linear, or all experts of a layer."""

    name: str
    kind: str  # "moe" or "linear"
    format: str
    input_scale: bool

    @property
    def pattern(self) -> str:
        """The name with a star for every number: modules of all layers have one."""
        return NUMBER.sub("*", self.name)

    @property
    def vllm_name(self) -> str:
        """The name under which vLLM serves it, up to a prefix."""
        parent, dot, last = self.name.rpartition(".")
        return f"{parent}{dot}{FUSED.get(last, last)}"


def tensor_dims(directory: Path) -> dict[str, int]:
    """Every tensor's name and number of dimensions, from the headers of all safetensors files."""
    dims: dict[str, int] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        dims |= {name: len(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    return dims


def modules(dims: dict[str, int]) -> list[Module]:
    """Every module with a matrix, experts folded into their layer."""
    parts: dict[str, set[str]] = {}
    for name in dims:
        module, _, part = name.rpartition(".")
        parts.setdefault(module, set()).add(part)
    found: dict[str, Module] = {}
    for module, tensors in parts.items():
        format = next((label for label, needed in FORMATS if needed <= tensors), None)
        if format is None or (format == UNQUANTISED and dims[f"{module}.weight"] < 2):  # a norm
            continue
        expert = EXPERT.match(module)
        name = expert["layer"] if expert else module
        scales = bool({"input_scale", "input_global_scale"} & tensors)
        found[name] = Module(name, "moe" if expert else "linear", format, scales)
    return sorted(found.values())
