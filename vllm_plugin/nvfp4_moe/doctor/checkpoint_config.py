# SPDX-License-Identifier: Apache-2.0
"""DeepSeek-V4's config against itself and its tensors: what an engine would take without a word."""

import struct
from typing import Any

from .directory import Directory
from .finding import Report, some

RATIOS = (0, 4, 128)  # sliding window alone, compressed sparse, heavily compressed attention
COPY = "Copy the model's own config.json."


def check(report: Report, directory: Directory) -> None:
    """Only for the family whose rules these are."""
    config = directory.config
    if config.get("model_type") not in ("deepseek_v4", "deepseek_v41"):
        return
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int):
        report.fault("config", f"num_hidden_layers is {layers!r}; it must be a number", "nothing fits it.", COPY)
        return
    ratios(report, config, layers)
    values(report, config)
    hash_layers(report, directory, layers)
    head(report, directory)


def ratios(report: Report, config: dict[str, Any], layers: int) -> None:
    """What each layer's attention sees."""
    given = config.get("compress_ratios")
    if not isinstance(given, list):
        return  # newer configs say layer_types
    extra = config.get("num_nextn_predict_layers")
    extra = extra if isinstance(extra, int) else 0
    if len(given) not in (layers, layers + extra):
        report.fault(
            "config-ratios",
            f"compress_ratios has {len(given)} entries; the model has {layers} layers and {extra} for prediction",
            "layers get another one's attention.",
            COPY,
        )
    strange = [f"layer {at}: {ratio!r}" for at, ratio in enumerate(given) if ratio not in RATIOS]
    if strange:
        report.fault(
            "config-ratios", f"{some(strange)}; a ratio is one of {list(RATIOS)}", "there is no such attention.", COPY
        )


def values(report: Report, config: dict[str, Any]) -> None:
    """Numbers that all models of the family share."""
    scaling = config.get("rope_scaling") if isinstance(config.get("rope_scaling"), dict) else {}
    for name, value, wanted in (
        ("swiglu_limit", config.get("swiglu_limit"), (10.0,)),
        ("hc_mult", config.get("hc_mult", 4), (4,)),
        ("rope_theta", config.get("rope_theta", 10000.0), (10000.0,)),
        ("compress_rope_theta", config.get("compress_rope_theta", 160000.0), (160000.0,)),
        ("rope_scaling.attention_factor", scaling.get("attention_factor", 1.0), (1.0, None)),
        ("sliding_window", config.get("sliding_window", 128), (128,)),
    ):
        if value not in wanted:
            report.fault(
                "config-value",
                f"{name} is {value!r} in config.json; every released DeepSeek-V4 has {wanted[0]!r}",
                "clamp, positions or streams differ from those of training.",
                COPY,
            )


def hash_layers(report: Report, directory: Directory, layers: int) -> None:
    """Tables of token to experts: exactly in the first layers, with ids that exist."""
    num_hashed = directory.config.get("num_hash_layers")
    num_experts = directory.config.get("n_routed_experts")
    if not isinstance(num_hashed, int) or not directory.tensors:
        return
    for layer in range(min(layers, 1000)):
        name = next(
            (
                n
                for n in (f"layers.{layer}.ffn.gate.tid2eid", f"model.layers.{layer}.mlp.gate.tid2eid")
                if n in directory.tensors
            ),
            None,
        )
        if (name is not None) != (layer < num_hashed):
            report.fault(
                "hash-layer",
                f"layer {layer} has {'a' if name else 'no'} table tid2eid; num_hash_layers is {num_hashed}",
                "an engine routes this layer's tokens by something that is not there.",
                "Export the model again.",
            )
        elif name and isinstance(num_experts, int):
            table(report, directory, name, num_experts)


def table(report: Report, directory: Directory, name: str, num_experts: int) -> None:
    """Ids of one table."""
    tensor = directory.tensors[name]
    size = {"I32": 4, "I64": 8}.get(tensor.dtype)
    if size is None or tensor.num_bytes > 1 << 27:
        return
    data = directory.bytes(tensor)
    ids = struct.unpack(f"<{len(data) // size}{'i' if size == 4 else 'q'}", data)
    bad = [value for value in ids if not 0 <= value < num_experts]
    if bad:
        report.fault(
            "hash-table",
            f"{len(bad)} of {len(ids)} ids of {name} are outside [0, {num_experts}) (the first is {bad[0]})",
            "tokens are sent to experts that there are not.",
            "Export the model again.",
        )


def head(report: Report, directory: Directory) -> None:
    """The four streams become one before the final norm, by three small f32 tensors."""
    names = directory.tensors
    prefix = "" if "norm.weight" in names else "model."
    heads = [f"{prefix}hc_head_{part}" for part in ("fn", "base", "scale")]
    if not any("hc_" in name for name in names):
        return
    missing = [name for name in heads if name not in names]
    other = [f"{name} is {names[name].dtype}" for name in heads if name in names and names[name].dtype != "F32"]
    if missing:
        report.fault(
            "hyper-connection-head",
            f"{len(missing)} of 3 tensors are missing: {some(missing)}",
            "the streams are summed wrongly before the final norm.",
            "Export the model again.",
        )
    if other:
        report.fault(
            "hyper-connection-head",
            f"{some(other)}; it must be F32",
            "mixing weights lose the bits that they need.",
            "Export the model again.",
        )
