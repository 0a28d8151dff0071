# SPDX-License-Identifier: Apache-2.0
"""`doctor checkpoint DIR`: what of a model's files can make its answers wrong, out of the files alone."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from types import SimpleNamespace

from . import checkpoint_config, checkpoint_scales, env
from .directory import Directory
from .finding import Report, WrongUse, counted, some, without_numbers
from .model import Module

# Sentences of the reader that ask for nothing, or that matter to callers of the library alone.
HARMLESS = re.compile(r"Nothing to do|^model_type in config.json is llama4|^num_experts_per_tok is missing")
SAID_BELOW = re.compile(r"^layer \d+: |^\d+ linears outside the routed experts are NVFP4")


def run(arguments) -> int:
    """Print what was found; 1 if any of it explains wrong answers."""
    return examine(arguments.model, blocks=not arguments.quick).finish(arguments.json)


def examine(path: str, *, blocks: bool = True) -> Report:
    """Of a directory; without `blocks` no block scale is read."""
    report = Report("checkpoint", path)
    directory = Directory(path)
    try:
        survey = read(path, blocks)
    except ImportError as error:
        raise WrongUse(f"the reader needs torch and the built package ({error}). Install nvfp4-moe.") from None
    except RuntimeError as error:
        report.sentence("no-checkpoint", str(error).splitlines()[0])
        return report
    modules = [Module(**module) for module in survey["modules"]]
    facts(report, survey, modules)
    of_reader(report, survey)
    of_layers(report, survey["layers"])
    try:
        checkpoint_scales.check(report, directory, survey, blocks)
        checkpoint_config.check(report, directory)
        coverage(report, directory)
    except ValueError as error:  # a file of the directory that cannot be read
        report.sentence("unreadable-file", str(error))
    return report


def read(path: str, blocks: bool) -> dict:
    """The report of the library's own reader."""
    from nvfp4_moe.checkpoint import Checkpoint

    checkpoint = Checkpoint(path)
    return json.loads(checkpoint.inspect(as_json=True)) if blocks else checkpoint.survey


def facts(report: Report, survey: dict, modules: list[Module]) -> None:
    """What of the model is quantised how, and which kernels take each part where the plugin is active."""
    config = survey["config"]
    quantisation = config["quant_method"] or config["quant_algo"] or "not quantised"
    report.fact("model", f"{config['model_type'] or 'no model_type'}, {quantisation}")
    report.fact("files", f"{survey['num_files']} with {survey['file_bytes'] / 1e9:.2f} GB")
    question = SimpleNamespace(moe_backend="auto", linear_backend="auto")
    ours = [
        (m, *env.backend_of(m, config["dtype"] or "bfloat16", [], question)) for m in modules if m.format == "nvfp4"
    ]
    counts = Counter((m.pattern, f"nvfp4, by {backend}: {reason}") for m, backend, reason in ours)
    for (pattern, text), count in sorted(counts.items()):
        report.fact(f"{count} x {pattern}", text)
    for format in sorted({m.format for m in modules} - {"nvfp4"}):
        others = [m for m in modules if m.format == format]
        patterns = sorted({m.pattern for m in others})
        report.fact(f"{len(others)} x {format}", f"by the engine: {some(patterns, shown=6)}")


def of_reader(report: Report, survey: dict) -> None:
    """What it refused, skipped and warned of, but for single layers' warnings: those are counted below."""
    refused = [(layer["layer"], layer["error"]) for layer in survey["refused"]]
    for error, layers in alike(refused):
        report.sentence("refused-layer", f"layer {some(layers)}: {error}")
    for reason, stems in alike([(group["stem"], group["reason"]) for group in survey["skipped"]]):
        report.note(
            "skipped", f"{some(stems)}: {reason}", "they are no NVFP4 layer that this library reads.", "Nothing to do."
        )
    quantised = any(module["format"] != "unquantised" for module in survey["modules"])
    for text in survey["warnings"]:
        if not SAID_BELOW.match(text) and (quantised or not text.startswith("quantization_config is missing")):
            report.sentence("reader", text, is_fault=not HARMLESS.search(text))


def alike(pairs: Iterable[tuple[object, str]]) -> list[tuple[str, list]]:
    """(text, those who have it): texts that differ in numbers alone are one, the first."""
    groups: dict[str, tuple[str, list]] = {}
    for who, text in pairs:
        groups.setdefault(without_numbers(text), (text, []))[1].append(who)
    return list(groups.values())


def of_layers(report: Report, layers: list[dict]) -> None:
    """Facts that the reader has of each layer, over all layers."""
    different = [layer for layer in layers if layer["gate_up_different"]]
    if different:
        worst = max(different, key=lambda layer: layer["gate_up_ratio"])
        report.note(
            "gate-up-differ",
            f"gate and up of {sum(layer['gate_up_different'] for layer in different)} experts in {len(different)} of "
            f"{len(layers)} layers have different global scales, up to {worst['gate_up_ratio']:.3g} times "
            f"(layer {worst['layer']})",
            "kernels that take the gate's for both are wrong by that factor; this library keeps both.",
            "Where another backend serves, expect wrong answers.",
        )
    zero = [name for layer in layers for name in layer.get("all_zero", [])]
    if zero:
        report.fault(
            "zero-block-scales",
            f"{counted(len(zero), 'block-scale tensor')} of {len(layers)} layers hold zeros alone ({some(zero)}); a "
            "weight that was quantised has others",
            "these experts give 0.",
            "Download or export the files again.",
        )
    for gemm in ("w13", "w2"):
        missing_scales(report, gemm, layers)


def missing_scales(report: Report, gemm: str, layers: list[dict]) -> None:
    """Input scales that are missing, zero, NaN, Inf or placeholders; the reader sorted them out."""
    key = f"{gemm}_input_scale"
    absent = [layer["layer"] for layer in layers if not layer[key]["num_usable"]]
    faulty = [name for layer in layers for name in layer[key]["unusable"]]
    missing = [name for layer in layers if layer[key]["num_usable"] for name in layer[key]["missing"]]
    placeholders = [name for layer in layers for name in layer[key]["left_out"]]
    advice = "In mode nvfp4 use dynamic scales, or calibrate (NVFP4_MOE_SCALES=calibrated)."
    if absent:
        report.note(
            "no-input-scale",
            f"{gemm} of layer {some(absent)} has 0 usable input scales; mode nvfp4 with static scales needs 1",
            "activations are bf16 here, or their scales have to be measured.",
            advice,
        )
    for name, names, what in (
        ("unusable-input-scale", faulty, "are zero, NaN, infinite or negative"),
        ("missing-input-scale", missing, "are missing, though others of their layer are there"),
        ("placeholder-input-scale", placeholders, "are placeholders, or too large to be measured"),
    ):
        if names:
            report.fault(
                name,
                f"{len(names)} of {sum(layer['num_experts'] for layer in layers)} experts' {gemm} input scales {what} "
                f"({some(names)})",
                "calibration never reached them; engines that use them as they are give NaN or noise.",
                advice,
            )


# Tensors of one matrix: what needs what, by the last part of the name.
NEEDS = {
    "weight_scale_2": ("weight", "weight_scale"),
    "weight_global_scale": ("weight_packed", "weight_scale"),
    "weight_packed": ("weight_scale",),
    "weight_scale_inv": ("weight",),
    "input_scale": ("weight",),
    "input_global_scale": ("weight_packed",),
}


def coverage(report: Report, directory: Directory) -> None:
    """Tensors that belong to nothing, codes without scales, and tensors that the index does not list."""
    names = directory.tensors.keys() | (directory.index or {}).keys()
    parts = (name.rpartition(".") for name in sorted(names))
    orphans = [
        f"{module}.{part} without {need}"
        for module, _, part in parts
        for need in NEEDS.get(part, ())
        if f"{module}.{need}" not in names
    ]
    bare = [
        name
        for name, tensor in directory.tensors.items()
        if tensor.dtype in ("U8", "F8_E4M3", "F4") and name.endswith(".weight") and len(tensor.shape) >= 2
        if not any(name.removesuffix("weight") + scale in names for scale in SCALES)
    ]
    for name, found, means in (
        ("orphan-tensor", orphans, "a matrix lacks a part: it is decoded wrongly, or not at all."),
        ("codes-without-scales", bare, "codes without scales decode to nothing meaningful."),
    ):
        if found:
            report.fault(
                name,
                f"{len(found)} of {len(names)} tensors: {some(found)}",
                means,
                "Download or export the files again.",
            )
    if directory.index is not None:
        unlisted = sorted(directory.tensors.keys() - directory.index.keys())
        if unlisted:
            report.fault(
                "unlisted-tensor",
                f"{len(unlisted)} of {len(directory.tensors)} tensors lie in the files and not in the index "
                f"({some(unlisted)})",
                "some engines load them and some do not: files and index are of two exports.",
                "Download both again.",
            )


SCALES = (
    "weight_scale",
    "scale",
    "weight_scale_inv",
    "scales",
    "weight_scale_2",
    "qscale_weight",
    "weight_block_scale",
)
