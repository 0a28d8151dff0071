"""How our experts get into vLLM: one out-of-tree class, one function replaced for the length of a call, two methods."""

import contextlib

import torch
import vllm.model_executor.layers.fused_moe.oracle.nvfp4 as oracle
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_w4a4_nvfp4,
)
from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4FusedMoE
from vllm.model_executor.utils import replace_parameter
from vllm.platforms import current_platform

from . import log
from .experts import Nvfp4MoeExperts

CompressedTensorsMethod = compressed_tensors_moe_w4a4_nvfp4.CompressedTensorsW4A4Nvfp4MoEMethod

# A shard's intermediate size is rounded up to this: the block of one scale along GEMM2's reduction.
INTERMEDIATE_TILE = 16

# Parameters in the checkpoint's naming; an expert that the files lack leaves NaN, which prepare refuses by name.
GLOBAL_SCALES = (
    "w13_weight_scale_2",
    "w2_weight_scale_2",
    "w13_input_scale",
    "w2_input_scale",
    "w13_weight_global_scale",
    "w2_weight_global_scale",
    "w13_input_global_scale",
    "w2_input_global_scale",
)


def library_method(base: type) -> type:
    """What both methods below do alike: parameters that the library can use, and our experts in vLLM's kernel.

    A function of the base, not a mixin: with one base the layout stays vLLM's, and `specialise` may swap the class.
    """

    class LibraryMethod(base):
        def maybe_roundup_sizes(self, hidden_size, intermediate_size_per_partition, act_dtype, moe_parallel_config):
            """Pad a tensor-parallel shard to the tile; vLLM's loader then fills gate half and up half separately."""
            hidden_size, intermediate = super().maybe_roundup_sizes(
                hidden_size, intermediate_size_per_partition, act_dtype, moe_parallel_config
            )
            if intermediate % 16:
                raise ValueError(
                    f"intermediate_size_per_partition is {intermediate}; it must be a multiple of 16, since two ranks "
                    "cannot share a block scale. Use a smaller tensor-parallel size, or --enable-expert-parallel."
                )
            return hidden_size, -(-intermediate // INTERMEDIATE_TILE) * INTERMEDIATE_TILE

        def create_weights(self, layer, *args, **kwargs):
            """vLLM's parameters; padding is zero, which adds nothing, and missing scales are NaN, not old memory."""
            super().create_weights(layer, *args, **kwargs)
            for name, parameter in layer.named_parameters(recurse=False):
                if name in GLOBAL_SCALES:
                    parameter.data.fill_(torch.nan)
                elif name.startswith(("w13_weight", "w2_weight")):
                    parameter.data.as_subclass(torch.Tensor).view(torch.uint8).zero_()

        def get_fused_moe_quant_config(self, layer):
            """None of vLLM's: the library quantises activations itself."""
            return FusedMoEQuantConfig.make()

        @property
        def supports_eplb(self):
            """Experts lie one after the other, as vLLM's parameters or the library's slices: moving them is enough."""
            return True

        def make_kernel(self, layer):
            """vLLM's kernel (data- and expert-parallel exchange) around our experts, and the weights handed over."""
            self.moe_quant_config = self.get_fused_moe_quant_config(layer)
            self.moe_kernel = oracle.make_nvfp4_moe_kernel(
                moe_quant_config=self.moe_quant_config,
                moe_config=self.moe,
                experts_cls=Nvfp4MoeExperts,
                backend=oracle.NvFp4MoeBackend.VLLM_CUTLASS,  # the plain kind: no arguments of its own
                routing_tables=layer._expert_routing_tables(),
            )
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)
            if not current_platform.is_cpu():
                free_originals(layer, self.moe_kernel.fused_experts.layer.expert_slices)

    return LibraryMethod


class ModelOptMoE(library_method(ModelOptNvFp4FusedMoE)):
    """ModelOpt's naming, which DeepSeek-V4's mixed fp8 and NVFP4 checkpoints share; global scales decode."""

    def process_weights_after_loading(self, layer):
        """Nothing to rename or invert."""
        for name in ("w13_weight_scale_2", "w2_weight_scale_2"):
            replace_parameter(layer, name, plain(getattr(layer, name)))
        self.make_kernel(layer)


class CompressedTensorsMoE(library_method(CompressedTensorsMethod)):
    """compressed-tensors' naming; global scales encode, and are inverted here, once."""

    def process_weights_after_loading(self, layer):
        """To ModelOpt's names and decoding scales; the packed weights stay where they are."""
        for gemm in ("w13", "w2"):
            packed = getattr(layer, f"{gemm}_weight_packed")
            delattr(layer, f"{gemm}_weight_packed")
            layer.register_parameter(f"{gemm}_weight", torch.nn.Parameter(packed.data, requires_grad=False))
            for of, name in (("weight", "weight_scale_2"), ("input", "input_scale")):
                encoding = getattr(layer, f"{gemm}_{of}_global_scale")
                delattr(layer, f"{gemm}_{of}_global_scale")
                decoding = torch.nn.Parameter(1.0 / plain(encoding), requires_grad=False)
                layer.register_parameter(f"{gemm}_{name}", decoding)
        self.make_kernel(layer)


SPECIALISED = {ModelOptNvFp4FusedMoE: ModelOptMoE, CompressedTensorsMethod: CompressedTensorsMoE}


def plain(parameter: torch.Tensor) -> torch.Tensor:
    """The data without vLLM's tensor subclass, f32 and contiguous: in place where it already is."""
    return parameter.data.as_subclass(torch.Tensor).float().contiguous()


def free_originals(layer, expert_slices: torch.Tensor) -> None:
    """Drop what prepare has repacked, and register what it became.

    Shapes stay readable, because vLLM takes the problem's size from them, but as buffers: EPLB moves the rows of every
    parameter, and these are empty.
    """
    for name in ("w13_weight", "w2_weight", "w13_weight_scale", "w2_weight_scale"):
        original = getattr(layer, name)
        delattr(layer, name)
        layer.register_buffer(name, original.data.new_empty((*original.shape[:-1], 0)), persistent=False)
    layer.register_parameter("expert_slices", torch.nn.Parameter(expert_slices, requires_grad=False))


@contextlib.contextmanager
def offered_to_oracle():
    """Within, vLLM's NVFP4 oracle considers our experts before its own, whichever backend it asks for first.

    Patches `oracle.nvfp4.backend_to_kernel_cls`. Why: `MoEBackend` is a closed literal and the oracle has no hook, but
    its generic checks (device, activation, parallelism) should apply to us too. Delete when vLLM can register NVFP4
    experts by name. Lazy, because vLLM's own classes import libraries that a CPU build lacks.
    """
    original = oracle.backend_to_kernel_cls

    def ours_first(backend):
        yield Nvfp4MoeExperts
        yield from original(backend)

    oracle.backend_to_kernel_cls = ours_first
    try:
        yield
    finally:
        oracle.backend_to_kernel_cls = original


def specialise(method) -> None:
    """Turn vLLM's method, which has chosen our experts, into ours.

    The class is swapped because the method is built deep inside vLLM's quantisation configs, one of a kind for each
    checkpoint format. Delete when those configs can be told which method class to build.
    """
    method.__class__ = SPECIALISED[type(method)]
    method.use_global_sf = True  # load every expert's input scale, also those of other ranks


def install() -> None:
    """Register the out-of-tree `RoutedExperts`, vLLM's official way to replace a layer class."""

    @RoutedExperts.register_oot(name="RoutedExperts")
    class Nvfp4RoutedExperts(RoutedExperts):
        def _get_quant_method(self, prefix, quant_config, moe_config):
            with offered_to_oracle():
                method = super()._get_quant_method(prefix, quant_config, moe_config)
            if getattr(method, "experts_cls", None) is Nvfp4MoeExperts:
                specialise(method)
                log.experts_active()
            elif type(method) in SPECIALISED:
                log_refused(method, moe_config)
            return method


def log_refused(method, moe_config) -> None:
    """The line that says that the MoE is not ours, and why."""
    _, reason = Nvfp4MoeExperts.is_supported_config(
        Nvfp4MoeExperts, moe_config, *quant_keys(method), Nvfp4MoeExperts.activation_format()
    )
    log.experts_refused(reason or "vLLM asked for another format")


def quant_keys(method):
    """(weight, activation) of the checkpoint, as vLLM's methods ask the oracle."""
    from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Dynamic, kNvfp4Static

    return kNvfp4Static, None if getattr(method, "use_a16", False) else kNvfp4Dynamic
