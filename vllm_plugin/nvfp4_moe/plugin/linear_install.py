# SPDX-License-Identifier: Apache-2.0
"""How our linear kernel gets into vLLM: registered by vLLM's function, moved to the front, and two methods patched.

Of each method what makes the parameters, to mark them, and what processes them.
"""

from functools import wraps

import torch
from vllm.model_executor.kernels import linear as vllm_linear
from vllm.model_executor.layers.quantization import modelopt
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import compressed_tensors_w4a4_nvfp4
from vllm.platforms import PlatformEnum

from . import dummy, loaded
from .linear import Nvfp4MoeLinearKernel
from .linear_parameters import data, keep, name


def install() -> None:
    """Register the kernel, first in vLLM's selection on both platforms."""
    for platform in (PlatformEnum.CPU, PlatformEnum.CUDA):
        vllm_linear.register_linear_kernel(Nvfp4MoeLinearKernel, platform, "nvfp4")
        place_first(vllm_linear._POSSIBLE_NVFP4_KERNELS[platform])
    for method, names in known_methods().items():
        mark_parameters(method)
        keep_part_scales(method, *names, encodes=names[0].endswith("_global_scale"))


def known_methods() -> dict[type, tuple[str, str]]:
    """vLLM's methods whose linears we serve: names of their weight's and their input's global scales."""
    # 0.26 has a method for each ModelOpt format; later versions have one for all.
    modelopt_method = getattr(modelopt, "ModelOptNvFp4LinearMethod", None) or modelopt.ModelOptLinearMethod
    compressed_method = compressed_tensors_w4a4_nvfp4.CompressedTensorsW4A4Fp4
    return {
        modelopt_method: ("weight_scale_2", "input_scale"),
        compressed_method: ("weight_global_scale", "input_global_scale"),
    }


def place_first(kernels: list[type]) -> None:
    """Move the kernel that was registered last to the front.

    Touches a private list. Why: registration appends, behind an emulation that supports everything, so that a kernel
    registered there is never reached. Delete when `register_linear_kernel` takes a priority.
    """
    kernels.insert(0, kernels.pop())


def mark_parameters(method: type) -> None:
    """Mark what was never loaded, as in a MoE layer.

    Patches `create_weights` of vLLM's NVFP4 linear methods. Why: vLLM takes uninitialised memory for what a checkpoint
    lacks. Delete when vLLM refuses a checkpoint without one of a layer's tensors.
    """
    original = method.create_weights
    if getattr(original, "marks_parameters", False):
        return

    @wraps(original)
    def create_weights(self, layer, *args, **kwargs):
        if kwargs.get("weight_loader"):
            kwargs["weight_loader"] = loaded.marking(kwargs["weight_loader"])
        original(self, layer, *args, **kwargs)
        if isinstance(self.kernel, Nvfp4MoeLinearKernel):
            loaded.mark(layer, layer.logical_widths)

    create_weights.marks_parameters = True
    method.create_weights = create_weights


def keep_part_scales(method: type, weight_scale: str, input_scale: str, *, encodes: bool) -> None:
    """Remember the scales of all parts of a fused linear before vLLM reduces each kind to one.

    Patches `process_weights_after_loading` of vLLM's NVFP4 linear methods. Why: where q, k and v (or wq_a and wkv) have
    different global scales, the maximum decodes all but one of them wrongly, and the maximum of compressed-tensors'
    encoding input scales saturates all but one; vLLM warns and goes on. The method still does its own work afterwards.
    Delete when vLLM hands all parts' scales to the kernel.
    """
    original = method.process_weights_after_loading
    if getattr(original, "keeps_part_scales", False):
        return

    def decoding(layer, scale: str) -> torch.Tensor:
        stored = data(getattr(layer, scale)).float().flatten().contiguous()
        return 1.0 / stored if encodes else stored

    @wraps(original)
    def process_weights_after_loading(self, layer):
        if isinstance(self.kernel, Nvfp4MoeLinearKernel) and hasattr(layer, weight_scale):
            missing = loaded.missing(layer)
            if (missing or dummy.looks_dummy(layer.weight_scale)) and dummy.is_dummy(layer.weight_scale):
                dummy.make_usable(layer, ("weight_scale",), (weight_scale,), (input_scale,))
            else:
                loaded.refuse_missing(name(layer), missing, "part")
            inputs = decoding(layer, input_scale).tolist() if hasattr(layer, input_scale) else []
            keep(layer, decoding(layer, weight_scale), {f"part {part}": scale for part, scale in enumerate(inputs)})
        original(self, layer)

    process_weights_after_loading.keeps_part_scales = True
    method.process_weights_after_loading = process_weights_after_loading
