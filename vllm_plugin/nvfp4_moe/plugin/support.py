# SPDX-License-Identifier: Apache-2.0
"""Which vLLM this plugin knows, and on which devices the library runs here."""

import re
import sys
from functools import cache

from . import settings

# Both ends were tried; what lies between is checked by the same seams. Raise the end after running tests/vllm on it.
OLDEST = (0, 26)
NEWEST = (0, 33)

# Compute capability from which there are FP4 tensor cores.
FIRST_FP4_CAPABILITY = 100

# Those whose own kernels were run by their authors, as PROVED of rust/cuda/families.rs has it.
PROVED_CAPABILITIES = ((9, 0),)

# Only the daemon's own process imports it.
WEIGHT_DAEMON = "vllm.model_executor.model_loader.weight_cache.daemon"


def version_refusal(version: str | None = None) -> str | None:
    """Why the plugin stays out of this vLLM (None: the one that is installed); None if it supports it."""
    if version is None:
        import vllm

        version = vllm.__version__
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and OLDEST <= (int(match[1]), int(match[2])) <= NEWEST:
        return None
    return (
        f"vllm is {version}; it must be {_text(OLDEST)} to {_text(NEWEST)}, the versions whose interfaces were tested. "
        "Install one of these, or a newer nvfp4-moe."
    )


@cache
def device_refusal(device_type: str) -> str | None:
    """Why the library cannot run on torch's `device_type` in this process; None if it can. Tries it, once."""
    if device_type not in ("cpu", "cuda"):
        return f"the device is {device_type}; it must be cpu or cuda"
    try:
        from nvfp4_moe import Layer

        Layer(hidden_size=128, intermediate_size=128, num_experts=1, top_k=1, device=device_type).close()
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).splitlines()[0]
    return None


def layer_refusal(device_type: str, **options) -> str | None:
    """Why the library makes no layer (`in_features`: no linear) of these sizes; None if it does. Tries it."""
    from nvfp4_moe import Layer, Linear

    try:
        (Linear if "in_features" in options else Layer)(device=device_type, **options).close()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def proof(device_type: str) -> str | None:
    """How the kernels in use were verified, where their authors never ran them; None elsewhere.

    The self-test is past: without it the library hands nothing out there.
    """
    import torch

    if device_type != "cuda" or not torch.cuda.is_available():
        return None
    capability = torch.cuda.get_device_capability()
    if capability in PROVED_CAPABILITIES:
        return None
    return (
        f"kernels for compute capability {_text(capability)}: verified by stand-in on Hopper and by layout proofs; not "
        "yet run on this chip by their authors. Their self-test here has passed."
    )


def load_refusal() -> str | None:
    """Why weights would not come to us as a checkpoint has them; None if they do.

    From 0.32 on a daemon may hand out weights as vLLM's own kernels have repacked them.
    """
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    if config is not None and config.load_config.load_format == "ipc_cache":
        return "--load-format is ipc_cache, whose weights are repacked for vLLM's kernels"
    if WEIGHT_DAEMON in sys.modules:
        return "this process is vLLM's weight cache daemon, which hands out what vLLM's kernels have repacked"
    return None


def has_fp4_tensor_cores() -> bool:
    """Does the current device multiply FP4 natively?"""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda() and current_platform.has_device_capability(FIRST_FP4_CAPABILITY))


def resolved_mode(mode: str) -> tuple[str, str]:
    """The mode that runs for a setting, and the reason in words for the log."""
    if mode != "default":
        return mode, "NVFP4_MOE_MODE asks for it"
    if has_fp4_tensor_cores():
        return "nvfp4", "the device has FP4 tensor cores"
    return "bf16", "the device has no FP4 tensor cores, so exact weights cost nothing and input scales are not needed"


def resolved_moe_mode(weights: str) -> tuple[str, str]:
    """The same for MoE layers, by what their weights were when they came: NVFP4 or MXFP4."""
    own = settings.mxfp4_mode() if weights == "MXFP4" else "default"
    if own != "default":
        return own, f"{settings.MXFP4_MODE} asks for it"
    mode, reason = resolved_mode(settings.mode())
    if weights == "MXFP4" and settings.mode() == "default" and mode == "bf16":  # docs/measurements.md
        reason += f" ({settings.MXFP4_MODE}=fp8: faster at many tokens on a GPU, activations rounded to 8 bits)"
    return mode, reason


def resolved_linear_mode(mode: str) -> tuple[str, str]:
    """The same for linears, which have no mode fp8."""
    if mode == "fp8":
        return "bf16", "NVFP4_MOE_MODE is fp8, which is for MoE layers, and bf16 is exact for any weights"
    return resolved_mode(mode)


def batch_invariant() -> bool:
    """Does the user want the same bits for a token, whatever else is in the batch (VLLM_BATCH_INVARIANT)?"""
    import vllm.envs

    return bool(vllm.envs.VLLM_BATCH_INVARIANT)


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
