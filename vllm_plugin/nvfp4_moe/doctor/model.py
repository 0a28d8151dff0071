# SPDX-License-Identifier: Apache-2.0
"""What a model directory holds, as the library's own reader tells it: no weights are read, and rules are one."""

import re
from dataclasses import dataclass

NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")

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


@dataclass(frozen=True)
class Module:
    """A linear, or all experts of a layer: an element of `modules` in the report of `nvfp4-moe inspect --json`."""

    name: str
    kind: str  # "moe" or "linear"
    format: str
    num_matrices: int
    num_input_scales: int
    refusal: str | None  # why the library does not serve it, though it is NVFP4 or MXFP4

    @property
    def pattern(self) -> str:
        """The name with a star for every number: modules of all layers have one."""
        return printable(NUMBER.sub("*", self.name))

    @property
    def vllm_name(self) -> str:
        """The name under which vLLM serves it, up to a prefix."""
        parent, dot, last = self.name.rpartition(".")
        return f"{parent}{dot}{FUSED.get(last, last)}"


@dataclass(frozen=True)
class Model:
    """A checkpoint that could be opened."""

    model_type: str
    quantisation: str
    dtype: str
    modules: list[Module]
    findings: list[str]
    """What was refused, skipped or is to be watched, in sentences."""


def look(directory: str) -> Model:
    """Open a directory; ImportError without torch, RuntimeError with the reader's sentence if it is no checkpoint."""
    from nvfp4_moe.checkpoint import Checkpoint

    report = Checkpoint(directory).survey
    config = report["config"]
    refused = [f"REFUSED layer {layer['layer']}: {layer['error']}" for layer in report["refused"]]
    skipped = [f"skipped {printable(group['stem'])}: {group['reason']}." for group in report["skipped"]]
    return Model(
        model_type=printable(config["model_type"] or "no model_type"),
        quantisation=printable(config["quant_method"] or config["quant_algo"] or "not quantised"),
        dtype=config["dtype"] or "bfloat16",
        modules=[Module(**(module | {"refusal": refusal_of(module, config)})) for module in report["modules"]],
        findings=[*refused, *skipped, *(f"warning: {text}" for text in report["warnings"])],
    )


def refusal_of(module: dict, config: dict) -> str | None:
    """The library's, or the plugin's: of the methods that vLLM has for MXFP4 experts it knows two."""
    method, algorithm = config["quant_method"], config["moe_quant_algo"]
    if module["refusal"] or module["format"] != "mxfp4" or method in ("mxfp4", "compressed-tensors"):
        return module["refusal"]
    if method == "fp8" and config["model_type"] in ("deepseek_v4", "deepseek_v41") and algorithm != "NVFP4":
        return None
    under = f"quant_method {method}" + (f" with moe_quant_algo {algorithm}" if algorithm else "")
    return f"this plugin leaves MXFP4 alone under {printable(under)}"


def printable(text: str, shown: int = 200) -> str:
    """What a terminal would obey or hide is written out, and what is long is cut: names are their author's."""
    cut = text if len(text) <= shown else f"{text[:shown]}... ({len(text) - shown} more characters)"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut)
