# SPDX-License-Identifier: Apache-2.0
"""The NVFP4 linear behind vLLM's linear kernel interface."""

import contextlib

import torch
from vllm.config import get_current_vllm_config_or_none, set_current_vllm_config
from vllm.model_executor.kernels import linear as vllm_linear
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearKernel
from vllm.platforms import current_platform

from . import linear_parameters, log, settings, support
from .lifetime import refuse_change
from .linear_bf16 import Bf16Linear
from .linear_library import Nvfp4Linear


class Nvfp4MoeLinearKernel(NvFp4LinearKernel):
    """out = x * weight^T; fused projections keep a global scale for each part.

    vLLM chooses a kernel before there is a layer to ask about, so the layer is looked at when its weights have come:
    one that is not certainly ours goes to the kernel that vLLM would have chosen alone, untouched.

    This name is what VLLM_DISABLED_KERNELS takes. --linear-backend with any other backend leaves it out.
    """

    left_out = False

    def __init__(self, config):
        super().__init__(config)
        self.vllm_config = get_current_vllm_config_or_none()
        self.instead: NvFp4LinearKernel | None = None

    def input_quant_key(self):
        """None: the library quantises, if at all."""
        return None

    @classmethod
    def is_supported(cls, compute_capability=None):
        """(can the library run here, why not)."""
        if cls.left_out:
            return False, "vLLM is asked what it would choose alone"
        refusal = support.load_refusal() or support.device_refusal(current_platform.device_type)
        return refusal is None, refusal

    @classmethod
    def can_implement(cls, config):
        """Any NVFP4 linear: the config says nothing about the layer."""
        return True, None

    def process_weights_after_loading(self, layer):
        """Take the weights of one linear; vLLM has brought the names of all checkpoint formats to one by now.

        Who serves it is decided once: weights that are loaded again go the same way.
        """
        runner = getattr(layer, "nvfp4_moe_linear", None)
        if runner is None and self.instead is None:
            self.instead = self.chosen_instead(layer)
        if self.instead is not None:
            self.instead.process_weights_after_loading(layer)
            return
        wanted = Bf16Linear if settings.wants_bf16(linear_parameters.name(layer)) else Nvfp4Linear
        if runner is None:
            log.linears_active(type(self).__name__)
            runner = wanted()
        refuse_change(linear_parameters.name(layer), {"kind": type(runner).__name__}, {"kind": wanted.__name__})
        runner.prepare(layer)
        # Not a submodule: a kernel's state is no part of the model.
        object.__setattr__(layer, "nvfp4_moe_linear", runner)

    def chosen_instead(self, layer) -> NvFp4LinearKernel | None:
        """vLLM's own kernel, where the library must not serve the linear."""
        if refusal := linear_refusal(layer):
            log.linears_refused(refusal)
            return self.vllms_own(refusal)
        return None

    def apply_weights(self, layer, x, bias=None):
        """bf16 [..., in_features] to bf16 [..., out_features]."""
        if self.instead is not None:
            return self.instead.apply_weights(layer, x, bias)
        out = layer.nvfp4_moe_linear(x)
        return out if bias is None else out + bias

    def vllms_own(self, refusal: str) -> NvFp4LinearKernel:
        """What vLLM chooses without us; where it has nothing, the error says both."""
        cls = type(self)
        known = set_current_vllm_config(self.vllm_config) if self.vllm_config else contextlib.nullcontext()
        cls.left_out = True
        try:
            with known:
                return vllm_linear.init_nvfp4_linear_kernel()
        except ValueError as error:
            raise ValueError(f"{refusal}; without nvfp4_moe, vLLM says: {error}") from error
        finally:
            cls.left_out = False


def linear_refusal(layer) -> str | None:
    """Why the library must not serve this linear; None if it may."""
    if not linear_parameters.are_kept(layer):
        method = type(getattr(layer, "scheme", None) or getattr(layer, "quant_method", None)).__name__
        return f"{method} is a quantisation method that this plugin does not know"
    dtype = getattr(layer, "params_dtype", None)
    if dtype != torch.bfloat16:
        return f"dtype is {dtype}; it must be torch.bfloat16. Pass --dtype bfloat16"
    mode, _ = support.resolved_linear_mode(settings.mode())
    return support.layer_refusal(
        str(layer.weight.device),
        in_features=layer.input_size_per_partition,
        out_features=layer.output_size_per_partition,
        num_parts=len(linear_parameters.global_scales(layer)),
        mode=mode,
    )
