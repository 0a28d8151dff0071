# SPDX-License-Identifier: Apache-2.0
"""`doctor command -- vllm serve ...`: what of it makes answers wrong, or leaves this plugin out? Nothing is run."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

from nvfp4_moe.mxfp4 import MX_BLOCK_SIZE
from nvfp4_moe.plugin import settings, support

from . import canonical, contracts, env
from .command_line import Serve, parse
from .directory import Directory
from .finding import Report, WrongUse, some
from .prompt import FAMILY
from .prompt import engine as contract_in_vllm
from .stop import ids_in

TESTED_GRAPHS = ("FULL_DECODE_ONLY", "NONE")


def run(arguments) -> int:
    """Print what was found; 1 if the command is wrong for its model."""
    return check(arguments).finish(arguments.json)


def check(arguments) -> Report:
    """Of the words behind `--`."""
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    serve = parse(words)
    path = arguments.model_dir or serve.model
    if not path or not Path(path).is_dir():
        raise WrongUse(
            f"{path or 'the model'} is no directory here; its config says which flags are right. Add --model-dir DIR."
        )
    directory = Directory(path)
    report = Report("command", path)
    try:
        report.fact("flags", some((f"--{name} {value}".rstrip() for name, value in serve.flags.items()), 20) or "none")
        family(report, serve, directory)
        ends(report, serve, directory)
        with environment(serve):
            if plugin(report, serve):
                parallel(report, serve, path)
                graphs(report, serve)
    except ValueError as error:
        report.sentence("unreadable-file", str(error))
    return report


@contextlib.contextmanager
def environment(serve: Serve) -> Iterator[None]:
    """This process's variables and the command's own, as the server would have them."""
    before = dict(os.environ)
    os.environ.update(serve.environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def family(report: Report, serve: Serve, directory: Directory) -> None:
    """DeepSeek-V4's flags, and its contract against vLLM's. A model with another vocabulary has another tokenizer."""
    kind, vocabulary = directory.config.get("model_type"), directory.config.get("vocab_size")
    if kind not in FAMILY or not isinstance(vocabulary, int) or vocabulary <= max(contracts.SPECIAL.values()):
        return
    flag(
        report,
        serve,
        "tokenizer-mode",
        kind,
        "vLLM 0.26 to 0.33 choose it by the architecture; others render the chat template, or nothing.",
        accepted=("auto",),
        needed=False,
    )
    flag(report, serve, "reasoning-parser", kind, "thoughts, and </think>, are part of the answer.")
    tools = serve.has("enable-auto-tool-choice")
    flag(report, serve, "tool-call-parser", kind, "tool calls reach the client as text.", needed=tools)
    contract = canonical.contract_of(directory)
    report.fact("encoding", contract or "no encoding/ folder: which of DeepSeek-V4's contracts is unknown")
    if contract:
        contract_in_vllm(report, contract)


def flag(
    report: Report,
    serve: Serve,
    name: str,
    right: str,
    means: str,
    *,
    accepted: tuple[str, ...] = (),
    needed: bool = True,
) -> None:
    """A flag that must have one value; if it is not needed, to leave it out is a note."""
    given = serve.flags.get(name)
    do = f"Add --{name} {right}."
    if given is None:
        (report.fault if needed else report.note)("flag-missing", f"--{name} is not given; {right} is right", means, do)
    elif given != right and given not in accepted:
        report.fault("flag-wrong", f"--{name} is {given!r}; {right} is right", f"it is another model's: {means}", do)


def ends(report: Report, serve: Serve, directory: Directory) -> None:
    """`--generation-config vllm` drops the model's ends."""
    if serve.flags.get("generation-config") != "vllm":
        return
    generation = directory.json("generation_config.json") or {}
    lost = sorted(set(ids_in(generation.get("eos_token_id"))) - set(ids_in(directory.config.get("eos_token_id"))))
    if lost:
        report.fault(
            "ends-dropped",
            f"--generation-config is vllm, which drops generation_config.json; it names {lost} as ends, config.json "
            "names none of them",
            "answers go on behind their end.",
            "Leave --generation-config out.",
        )


def plugin(report: Report, serve: Serve) -> bool:
    """Settings that are misspelt or wrong, and what leaves the experts to vLLM; True if they are ours."""
    try:
        for sentence in settings.check():
            report.sentence("setting-unknown", sentence.replace(", and is no setting.", "; it is no setting."))
        mode = settings.mode()
    except ValueError as error:
        report.sentence("setting-wrong", str(error))
        return False
    allowed = os.environ.get("VLLM_PLUGINS")
    dtype, backend = serve.flags.get("dtype", "auto"), serve.flags.get("moe-backend", "auto")
    disabled = settings.disabled_reason()
    left_out = {
        disabled or "": disabled is not None,
        f"VLLM_PLUGINS is {allowed!r}": allowed is not None and "nvfp4_moe" not in allowed.split(","),
        f"--dtype is {dtype}; experts take bfloat16": dtype not in ("auto", "bfloat16"),
        f"--moe-backend is {backend}": backend != "auto",
        "--enable-lora is given, which needs the experts' intermediate values": serve.has("enable-lora"),
        "--load-format is ipc_cache, whose weights are repacked": serve.flags.get("load-format") == "ipc_cache",
    }
    reasons = [reason for reason, holds in left_out.items() if holds]
    for reason in reasons:
        report.note("left-to-vllm", reason, "vLLM serves the experts as it would alone.", "Nothing, if that is meant.")
    if not reasons:
        report.fact("experts", f"by nvfp4_moe, mode {mode}")
        calibration(report, serve, mode)
    return not reasons


def calibration(report: Report, serve: Serve, mode: str) -> None:
    """Measuring input scales happens on the host, at every step of every rank."""
    file = settings.scales_file()
    if mode not in ("nvfp4", "default") or settings.scale_policy() != "calibrated" or (file and Path(file).exists()):
        return
    ranks = serve.number("data-parallel-size")
    if not serve.has("enforce-eager") or ranks > 1:
        (report.fault if mode == "nvfp4" else report.note)(
            "calibration-refused",
            f"{settings.SCALES} is calibrated, --enforce-eager {'given' if serve.has('enforce-eager') else 'missing'}, "
            f"--data-parallel-size {ranks}; calibrating needs it given, and 1",
            "in mode nvfp4 the server stops while it loads.",
            f"Serve once with --enforce-eager and {settings.SCALES_FILE}, then as you like with that file.",
        )


def parallel(report: Report, serve: Serve, path: str) -> None:
    """Every rank's part of every layer, asked of the library."""
    tensor, data = serve.number("tensor-parallel-size"), serve.number("data-parallel-size")
    experts_apart = serve.has("enable-expert-parallel")
    ranks = tensor * data
    device = env.default_device()
    report.fact(
        "experts on",
        f"{ranks} ranks, {'experts dealt out' if experts_apart else 'each expert split'}, asked of {device}",
    )
    config = Directory(path).config
    heads = config.get("num_attention_heads")
    if isinstance(heads, int) and heads % tensor:
        report.fault(
            "heads-not-divisible",
            f"num_attention_heads is {heads}; --tensor-parallel-size {tensor} must divide it",
            "vLLM stops while it loads.",
            f"Use {math.gcd(heads, tensor)} ranks.",
        )
    for layer in survey(report, path):
        refusal = refusal_of(layer, ranks, experts_apart, device)
        if refusal:
            report.sentence("layer-refused", f"layer {layer['layer']} on each of {ranks} ranks: {refusal}")
            return


def survey(report: Report, path: str) -> list[dict]:
    """The MoE layers that the library's reader sees, one of each size."""
    from .checkpoint import read

    try:
        layers = read(path, blocks=False)["layers"]
    except (ImportError, RuntimeError) as error:
        report.note("weights-not-read", str(error).splitlines()[0], "sizes of the layers were not asked.", "")
        return []
    keys = ("hidden_size", "intermediate_size", "num_experts", "top_k", "has_bias", "format")
    return list({tuple(layer[key] for key in keys): layer for layer in reversed(layers)}.values())


def refusal_of(layer: dict, ranks: int, experts_apart: bool, device: str) -> str | None:
    """Why a rank's part cannot be served by us; None if it can."""
    whole, experts = layer["intermediate_size"], layer["num_experts"]
    if not experts_apart and whole % ranks:
        return f"intermediate_size is {whole}; the {ranks} ranks must divide it. Pass --enable-expert-parallel."
    if not experts_apart and ranks > 1 and layer["has_bias"]:
        return (
            "has_bias is True; each tensor-parallel rank would add w2's, so it must be False. Pass "
            "--enable-expert-parallel."
        )
    part = whole if experts_apart else whole // ranks
    refusal = support.layer_refusal(
        device,
        hidden_size=layer["hidden_size"],
        intermediate_size=part,
        num_experts=experts,
        num_local_experts=-(-experts // ranks) if experts_apart else experts,
        top_k=layer["top_k"] or 1,
    )
    if refusal is None and layer["format"] == "mxfp4" and part % MX_BLOCK_SIZE:
        return f"intermediate_size is {part}; it must be a multiple of {MX_BLOCK_SIZE}, MXFP4's block. Use fewer ranks."
    return refusal and refusal + ("" if experts_apart or ranks == 1 else " Or pass --enable-expert-parallel.")


def graphs(report: Report, serve: Serve) -> None:
    """Which CUDA graphs; ours are tested in one mode."""
    mode = "NONE" if serve.has("enforce-eager") else serve.of_json("compilation-config", "cudagraph_mode")
    report.fact("cudagraph_mode", mode or "vLLM's default")
    if mode == "NONE":
        report.note(
            "no-graphs",
            "cudagraph_mode is NONE, or --enforce-eager is given; FULL_DECODE_ONLY is fast",
            "answers are the same, and decoding waits for the host.",
            "Leave it to find a fault, not to serve.",
        )
    elif mode not in TESTED_GRAPHS:
        report.note(
            "graphs-not-tested",
            f"cudagraph_mode is {mode or 'not given'}; FULL_DECODE_ONLY is what this plugin is tested in on GPUs",
            "if answers are wrong, this is one of the things that may be why.",
            """Add --compilation-config '{"cudagraph_mode": "FULL_DECODE_ONLY"}'.""",
        )
