# SPDX-License-Identifier: Apache-2.0
"""The vLLM plugin: serve NVFP4 mixture-of-experts layers and NVFP4 linears with this library.

vLLM calls `register` (entry point group `vllm.general_plugins`) in its front end, its engine core, every worker and its
registry subprocess. Importing this package imports nothing heavy; `register` does, because vLLM swallows exceptions at
import and passes on those of the function.

    settings    environment variables
    support     which vLLM and which device
    log         which lines say what is ours
    moe         the hook that offers our experts to vLLM, and the methods that hold the weights
    mxfp4       the same for MXFP4, which is cast to NVFP4 when it is loaded
    experts     the experts: one MoE layer of the library behind vLLM's modular interface
    linear*     the kernel, the library's linear, the bf16 override, vLLM's parameters, the registration
    scales      input scales of the activations: static, calibrated, dynamic
"""

import logging

_registered = False


def register() -> None:
    """Offer the library to vLLM; a second call does nothing, and `NVFP4_MOE_DISABLE=1` makes the first do nothing."""
    global _registered
    if _registered:
        return
    _registered = True

    from . import settings, support

    # A child of vLLM's logger, so that vLLM's own handler prints it.
    logger = logging.getLogger("vllm.nvfp4_moe")
    refusal = settings.disabled_reason() or support.version_refusal()
    if refusal:
        logger.warning("nvfp4_moe is NOT active: %s", refusal)
        return
    for sentence in settings.check():
        logger.warning("nvfp4_moe: %s", sentence)
    settings.register_with_vllm()

    from . import linear_install, moe, mxfp4

    moe.install()
    mxfp4.install()
    linear_install.install()
