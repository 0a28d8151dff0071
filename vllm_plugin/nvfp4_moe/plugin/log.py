# SPDX-License-Identifier: Apache-2.0
"""What the log says: in each process a line for each kind of MoE and for the linears, ACTIVE or NOT active, and why."""

from functools import cache

from vllm.logger import init_logger
from vllm.platforms import current_platform

import nvfp4_moe

from . import settings, support

# A child of vLLM's logger, so that vLLM's own handler prints it.
logger = init_logger("vllm.nvfp4_moe")


@cache
def experts_active(weights: str = "NVFP4") -> None:
    """The MoE is ours; `weights` is what the checkpoint has."""
    mode, reason = support.resolved_moe_mode(weights)
    scale = f", input scales {settings.scale_policy()}" if mode == "nvfp4" else ""
    logger.info(
        "nvfp4_moe %s is ACTIVE for %s MoE on %s (%s): mode %s%s, because %s.%s Off: %s=1 or --moe-backend.",
        nvfp4_moe.__version__,
        weights,
        current_platform.device_type,
        nvfp4_moe.cpu_isa() if current_platform.is_cpu() else current_platform.get_device_name(),
        mode,
        scale,
        reason,
        " VLLM_BATCH_INVARIANT: row tiles of one order for all batches." if support.batch_invariant() else "",
        settings.DISABLE,
    )
    say_proof()


@cache
def say_proof() -> None:
    """How the kernels were verified, where that is not the usual way."""
    if proof := support.proof(current_platform.device_type):
        logger.warning("nvfp4_moe's %s docs/blackwell.md says more.", proof)


def weights_rounded(layer_name: str, error: nvfp4_moe.WeightError) -> None:
    """The experts of a layer were rounded to e4m3, because a setting allows it."""
    logger.info("nvfp4_moe: %s: weights rounded to e4m3, %s (%s).", layer_name, error, settings.FP8_MAX_ERROR)


def experts_refused(reason: str, weights: str = "NVFP4") -> None:
    """The MoE is not ours."""
    logger.warning_once("nvfp4_moe is NOT active for %s MoE: %s", weights, reason)


def linears_refused(reason: str) -> None:
    """Some linears are not ours."""
    logger.warning_once("nvfp4_moe is NOT active for NVFP4 linears: %s", reason)


@cache
def linears_active(kernel: str) -> None:
    """The linears are ours; `kernel` is what VLLM_DISABLED_KERNELS takes."""
    mode, reason = support.resolved_linear_mode(settings.mode())
    logger.info(
        "nvfp4_moe %s is ACTIVE for NVFP4 linears on %s: mode %s, because %s. Off: VLLM_DISABLED_KERNELS=%s.",
        nvfp4_moe.__version__,
        current_platform.device_type,
        mode,
        reason,
        kernel,
    )
    say_proof()
