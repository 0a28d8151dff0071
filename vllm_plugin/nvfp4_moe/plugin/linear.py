"""The NVFP4 linear behind vLLM's linear kernel interface."""

from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearKernel
from vllm.platforms import current_platform

from . import log, settings, support
from .linear_bf16 import Bf16Linear
from .linear_library import LibraryLinear


class Nvfp4MoeLinearKernel(NvFp4LinearKernel):
    """out = x * weight^T; fused projections keep a global scale for each part.

    This name is what VLLM_DISABLED_KERNELS takes. --linear-backend with any other backend leaves it out.
    """

    @classmethod
    def is_supported(cls, compute_capability=None):
        """(can the library run here, why not)."""
        refusal = support.device_refusal(current_platform.device_type)
        return refusal is None, refusal

    @classmethod
    def can_implement(cls, config):
        """Any NVFP4 linear: the config says nothing about shapes, which prepare checks."""
        return True, None

    def process_weights_after_loading(self, layer):
        """Take the weights of one linear; vLLM has brought the names of all checkpoint formats to one by now."""
        log.linears_active(type(self).__name__)
        name = layer.prefix
        runner = Bf16Linear(layer) if settings.wants_bf16(name) else LibraryLinear(layer)
        # Not a submodule: a kernel's state is no part of the model.
        object.__setattr__(layer, "nvfp4_moe_linear", runner)

    def apply_weights(self, layer, x, bias=None):
        """bf16 [..., in_features] to bf16 [..., out_features]."""
        out = layer.nvfp4_moe_linear(x)
        return out if bias is None else out + bias
