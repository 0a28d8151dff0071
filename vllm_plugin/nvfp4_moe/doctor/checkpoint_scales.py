# SPDX-License-Identifier: Apache-2.0
"""Scales and norms that cannot be right: against what weights allow, and against those of the other layers."""

import math
import statistics
from collections import defaultdict
from typing import NamedTuple

from .directory import Directory
from .finding import Report, counted, some, without_numbers
from .model import printable

AMAX_OF_SCALE = 6 * 448  # an input scale decodes this many times itself
TOO_SMALL, TOO_LARGE = 100, 1000  # against the median over layers; massive activations are real, vanishing ones are not
ROUNDING = 0.9  # bf16 weights, eps: what a bound may be missed by
# Families whose norms multiply by 1 + weight.
ZERO_CENTRED = ("gemma", "qwen3_next", "qwen3_5")

# A matrix's name -> the norms, one of which feeds it: in its parent module, then in the parent's parent.
MOE_NORMS = ("ffn_norm", "pre_feedforward_layernorm", "post_attention_layernorm", "pre_mlp_layernorm")
ATTENTION_NORMS = ("attn_norm", "input_layernorm")
FED_BY = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "q_a_proj", "kv_a_proj_with_mqa"), ATTENTION_NORMS),
    **dict.fromkeys(("wq_a", "wkv", "in_proj_qkv", "in_proj_qkvz"), ATTENTION_NORMS),
    "q_b_proj": ("q_a_layernorm",),
    "wq_b": ("q_norm",),
    "kv_b_proj": ("kv_a_layernorm",),
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "w1", "w3"), MOE_NORMS),
}
NAN_CODES = bytes([0x7F, *range(0x81, 0x100)])  # e4m3's NaN, and negative scales


class Scale(NamedTuple):
    """An input scale in decode direction: of a linear, or the smallest and largest over a layer's experts."""

    role: str  # the same for all layers
    name: str
    smallest: float
    largest: float
    norm: str | None  # the tensor that feeds it


def check(report: Report, directory: Directory, survey: dict, blocks: bool) -> None:
    """All of it."""
    scales = [*of_experts(directory, survey["layers"]), *of_linears(report, directory)]
    below_norms(report, directory, scales)
    outliers(report, scales)
    identical(report, scales)
    norms(report, directory)
    if blocks:
        block_scales(report, directory, survey)


def of_experts(directory: Directory, layers: list[dict]) -> list[Scale]:
    """Of layers that have any."""
    found = []
    for layer in layers:
        for gemm in ("w13", "w2"):
            scale = layer[f"{gemm}_input_scale"]
            if scale["num_usable"]:
                norm = feeding_norm(directory, layer["stem"], MOE_NORMS) if gemm == "w13" else None
                name = f"{layer['stem']}.experts, {gemm}"
                found.append(Scale(without_numbers(name), name, scale["min"], scale["max"], norm))
    return found


def of_linears(report: Report, directory: Directory) -> list[Scale]:
    """Of linears outside the experts; scales that are no numbers become findings."""
    found, unusable = [], []
    for name in sorted(directory.tensors):
        module, _, part = name.rpartition(".")
        if ".experts." in name or part not in SINGLE:
            continue
        for value in directory.small(name) or []:
            scale = 1 / value if value and "global" in part else value
            if not (math.isfinite(value) and scale > 0):
                unusable.append(f"{name} = {value:g}")
            elif part.startswith("input"):
                parent, _, last = module.rpartition(".")
                norm = feeding_norm(directory, parent, FED_BY.get(last, ()))
                found.append(Scale(without_numbers(module), module, scale, scale, norm))
    if unusable:
        report.fault(
            "unusable-scale",
            f"{len(unusable)} scales of linears are {some(unusable)}; a scale is finite and above 0",
            "what these linears give is NaN, infinite or 0.",
            "Export or download the model again; an input scale may be calibrated instead.",
        )
    return found


SINGLE = ("input_scale", "input_global_scale", "weight_scale_2", "weight_global_scale")


def feeding_norm(directory: Directory, module: str, names: tuple[str, ...]) -> str | None:
    """The first of these norms that lies in the module, or in one of its two parents."""
    places = [module, module.rpartition(".")[0], module.rpartition(".")[0].rpartition(".")[0]]
    candidates = (f"{place}.{name}.weight".lstrip(".") for place in places for name in names)
    return next((name for name in candidates if name in directory.tensors), None)


def least_amax(directory: Directory, norm: str) -> float | None:
    """The least amax that a row can have behind this RMS norm: sqrt(n / sum(1 / w^2)).

    Before its weight w the row's mean square is 1; among all such rows the flattest one, c / |w|, has the least amax.
    """
    weights = directory.small(norm)
    if not weights:
        return None
    if str(directory.config.get("model_type", "")).startswith(ZERO_CENTRED):
        weights = [1 + w for w in weights]
    if not all(map(math.isfinite, weights)):
        return None
    if not all(weights):
        return 0.0
    return math.sqrt(len(weights) / sum(1 / (w * w) for w in weights))


def below_norms(report: Report, directory: Directory, scales: list[Scale]) -> None:
    """Calibrated on less than any row has."""
    floors = {norm: least_amax(directory, norm) for norm in {scale.norm for scale in scales} if norm}
    for attribute, what in (("largest", "every token"), ("smallest", "every token of one expert")):
        below = []
        for scale in scales:
            floor, amax = floors.get(scale.norm) or 0.0, getattr(scale, attribute) * AMAX_OF_SCALE
            if amax < ROUNDING * floor and (
                attribute == "largest" or scale.largest * AMAX_OF_SCALE >= ROUNDING * floor
            ):
                below.append((amax / floor, scale, amax, floor))
        if not below:
            continue
        _, worst, amax, floor = min(below, key=lambda item: item[0])
        # Several engines, this library among them, take the largest over all experts.
        add = report.fault if attribute == "largest" else report.note
        add(
            "input-scale-below-norm",
            f"the input scale of {worst.name} decodes an amax of {amax:.3g}; rows behind {worst.norm} have at least "
            f"{floor:.3g}, {floor / amax:.3g} times as much ({counted(len(below), 'such scale')})",
            f"in mode nvfp4 with static scales {what} saturates.",
            "Use mode bf16 or dynamic scales, or calibrate.",
        )


def outliers(report: Report, scales: list[Scale]) -> None:
    """Against the median of the same matrix over layers."""
    by_role = defaultdict(list)
    for scale in scales:
        by_role[scale.role].append(scale)
    for same in by_role.values():
        if len(same) < 3:
            continue
        median = statistics.median(scale.largest for scale in same)
        for scale in same:
            quotient = median / scale.largest
            if quotient > TOO_SMALL or quotient < 1 / TOO_LARGE:
                word, factor = ("smaller", quotient) if quotient > 1 else ("larger", 1 / quotient)
                report.fault(
                    "input-scale-outlier",
                    f"the input scale of {scale.name} is {scale.largest:.3g}; the median over {len(same)} layers is "
                    f"{median:.3g}: {factor:.3g} times {word}",
                    "nearly every block saturates." if quotient > 1 else "nearly every activation rounds to 0.",
                    "Use mode bf16 or dynamic scales, or calibrate; then export the model again.",
                )


def identical(report: Report, scales: list[Scale]) -> None:
    """One value everywhere was never measured."""
    values = {f"{value:.5g}" for scale in scales for value in (scale.smallest, scale.largest)}
    if len(scales) > 1 and len(values) == 1:
        report.note(
            "input-scales-identical",
            f"all {len(scales)} input scales are {values.pop()}; measured ones differ from layer to layer",
            "they were never calibrated; it matters in mode nvfp4 with static scales.",
            "Use mode bf16 or dynamic scales, or calibrate.",
        )


def norms(report: Report, directory: Directory) -> None:
    """A final norm that is missing, and norms that are no norms."""
    ill = []
    names = [name for name in directory.tensors if name.endswith("norm.weight")]
    zero_centred = str(directory.config.get("model_type", "")).startswith(ZERO_CENTRED)
    for name in sorted(names):
        values = directory.small(name) or [1.0]
        bad = next((at for at, value in enumerate(values) if not math.isfinite(value)), None)
        if bad is not None:
            ill.append(f"{name}[{bad}] = {values[bad]}")
        elif not any(values) and not zero_centred:
            ill.append(f"{name} = 0 everywhere")
    if ill:
        report.fault(
            "ill-norm",
            f"{len(ill)} of {len(names)} norms: {some(ill)}",
            "all that passes them is NaN or 0.",
            "Download or export the model again.",
        )
    layers = [name for name in directory.tensors if ".layers." in f".{name}"]
    if layers and not any(name.endswith("norm.weight") and ".layers." not in f".{name}" for name in names):
        report.fault(
            "no-final-norm",
            f"0 of {len(names)} norms lie outside the layers; a decoder has 1 before its head",
            "logits are those of an unnormalised residual: tokens repeat or make no sense.",
            "Export the model again with model.norm.weight (DeepSeek's own naming: norm.weight).",
        )


def block_scales(report: Report, directory: Directory, survey: dict) -> None:
    """NaN, negative or only zeros in linears; the reader checks the experts'."""
    linears = {
        module["name"] for module in survey["modules"] if module["kind"] == "linear" and module["format"] == "nvfp4"
    }
    for module in sorted(linears):
        tensor = directory.tensors.get(f"{module}.weight_scale")
        if tensor is None or tensor.dtype != "F8_E4M3":
            continue
        bad = total = above = 0
        for data in directory.pieces(tensor):
            bad += len(data) - len(data.translate(None, NAN_CODES))
            above, total = above + any(data), total + len(data)
        if bad or (total and not above):
            what = f"{bad} of {total} are NaN or negative" if bad else f"all {total} are 0"
            report.fault(
                "bad-block-scales",
                f"block scales of {printable(module)}: {what}",
                "its rows are NaN, or it gives 0.",
                "Download or export the files again.",
            )
