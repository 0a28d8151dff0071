# SPDX-License-Identifier: Apache-2.0
"""How our experts get into vLLM: its layers ask through us, its oracles are offered ours, its methods become ours."""

import contextlib
from collections.abc import Callable
from functools import partial, wraps

import torch
import vllm.model_executor.layers.fused_moe.oracle.nvfp4 as oracle
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_w4a4_nvfp4,
)
from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4FusedMoE
from vllm.model_executor.utils import replace_parameter
from vllm.platforms import current_platform

from . import dummy, into_output, loaded, log
from .experts import Nvfp4MoeExperts, in_turn

CompressedTensorsMethod = compressed_tensors_moe_w4a4_nvfp4.CompressedTensorsW4A4Nvfp4MoEMethod

# A shard's intermediate size is rounded up to this: the block of one scale along GEMM2's reduction.
INTERMEDIATE_TILE = 16


def library_method(base: type) -> type:
    """What both methods below do alike: parameters that the library can use, and our experts in vLLM's kernel.

    A function of the base, not a mixin: with one base the layout stays vLLM's, and `specialise` may swap the class.
    """

    class LibraryMethod(base):
        weights = "NVFP4"

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
            """vLLM's parameters, marked as not loaded yet; padding is zero, which adds nothing."""
            super().create_weights(layer, *args, **kwargs)
            if self.moe.has_bias and not hasattr(layer, "w13_bias"):
                add_biases(layer, kwargs.get("weight_loader"))
            loaded.mark(layer, halves=1 if in_turn(self.moe) or not self.moe.is_act_and_mul else 2)

        def check_loaded(self, layer):
            """Refuse what was never loaded. Dummy weights were not either: make them such that they can be served."""
            missing = loaded.missing(layer)
            if self.is_dummy(layer, missing):
                dummy.make_usable(layer, loaded.BLOCK_SCALES, loaded.WEIGHT_SCALES, loaded.INPUT_SCALES)
            else:
                loaded.refuse_missing(layer.layer_name, missing)

        def is_dummy(self, layer, missing):
            """Has vLLM's dummy loader been here?"""
            block_scale = layer.w13_weight_scale
            return (missing or dummy.looks_dummy(block_scale)) and dummy.is_dummy(block_scale)

        def get_fused_moe_quant_config(self, layer):
            """None of vLLM's: the library quantises activations itself."""
            return FusedMoEQuantConfig.make()

        supports_pre_processed_weights = False  # those are repacked for vLLM's kernels
        requires_device_loading = False
        is_monolithic = False
        skip_forward_padding = False
        has_unpadded_output = False

        def uses_weight_scale_2_pattern(self):
            """Does the loader find global scales by ModelOpt's name?"""
            return base.uses_weight_scale_2_pattern(self)

        @property
        def supports_eplb(self):
            """Experts lie one after the other, as vLLM's parameters or the library's slices: moving them is enough."""
            return True

        def make_kernel(self, layer):
            """vLLM's kernel (data- and expert-parallel exchange) around our experts, and the weights handed over."""
            if self.moe_kernel is None:  # else the weights are loaded again, and graphs hold what is there
                self.moe_quant_config = self.get_fused_moe_quant_config(layer)
                self.moe_kernel = oracle.make_nvfp4_moe_kernel(
                    moe_quant_config=self.moe_quant_config,
                    moe_config=self.moe,
                    experts_cls=Nvfp4MoeExperts,
                    backend=oracle.NvFp4MoeBackend.VLLM_CUTLASS,  # the plain kind: no arguments of its own
                    routing_tables=layer._expert_routing_tables(),
                )
            if self.moe.has_bias and self.moe.moe_parallel_config.tp_rank:
                layer.w2_bias.data.zero_()  # ranks that share an expert add their outputs: the first adds its bias
            experts = self.moe_kernel.fused_experts
            experts.may_run_late = into_output.asks_twice(self.moe_kernel)
            experts.weights = self.weights
            experts.process_weights_after_loading(layer)
            if not current_platform.is_cpu():
                free_originals(layer, experts.layer.expert_slices)

    return LibraryMethod


class ModelOptMoE(library_method(ModelOptNvFp4FusedMoE)):
    """ModelOpt's naming, which DeepSeek-V4's mixed fp8 and NVFP4 checkpoints share; global scales decode."""

    def process_weights_after_loading(self, layer):
        """Nothing to rename or invert."""
        self.check_loaded(layer)
        for name in ("w13_weight_scale_2", "w2_weight_scale_2"):
            replace_parameter(layer, name, plain(getattr(layer, name)))
        self.make_kernel(layer)


class CompressedTensorsMoE(library_method(CompressedTensorsMethod)):
    """compressed-tensors' naming; global scales encode, and are inverted here, once."""

    weight_dtype = "mxfp4"  # for gpt-oss's loader, which knows packed weights by this or by the name of vLLM's class

    def process_weights_after_loading(self, layer):
        """To ModelOpt's names and decoding scales; the packed weights stay where they are."""
        if in_turn(self.moe):
            for name in ("w13_weight_global_scale", "w13_input_global_scale"):
                scales = getattr(layer, name).data
                scales[:, 1:] = scales[:, :1]  # files have one for both
        self.check_loaded(layer)
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


def add_biases(layer, weight_loader) -> None:
    """Parameters for both biases, which vLLM's NVFP4 methods do not make; what no file fills is refused as missing."""
    for gemm in ("w13", "w2"):
        rows = next(p for n, p in layer.named_parameters() if n in (f"{gemm}_weight", f"{gemm}_weight_packed")).shape[
            :2
        ]
        bias = torch.nn.Parameter(torch.empty(rows, dtype=torch.bfloat16), requires_grad=False)
        bias.weight_loader = weight_loader
        layer.register_parameter(f"{gemm}_bias", bias)


SPECIALISED = {ModelOptNvFp4FusedMoE: ModelOptMoE, CompressedTensorsMethod: CompressedTensorsMoE}

ORACLES = {"NVFP4": oracle}
"""vLLM's choice of experts, by what the weights are."""

UNASKED: dict[type, tuple[str, object]] = {}
"""Methods that choose their experts without an oracle: what their weights are, in words and as vLLM's key."""


def plain(parameter: torch.Tensor) -> torch.Tensor:
    """The data without vLLM's tensor subclass, f32 and contiguous: in place where it already is."""
    return parameter.data.as_subclass(torch.Tensor).float().contiguous()


def free_originals(layer, expert_slices: torch.Tensor) -> None:
    """Drop what prepare has repacked, and register what it became.

    Shapes stay readable, because vLLM takes the problem's size from them, but as buffers: EPLB moves the rows of every
    parameter, and these are empty. The slices are a parameter: EPLB moves them; vLLM's sleep of level 2 drops them,
    where it would copy a buffer to the host; a reload puts the same tensor back.
    """
    for name in ("w13_weight", "w2_weight", "w13_weight_scale", "w2_weight_scale"):
        original = getattr(layer, name)
        delattr(layer, name)
        layer.register_buffer(name, original.data.new_empty((*original.shape[:-1], 0)), persistent=False)
    layer.register_parameter("expert_slices", torch.nn.Parameter(expert_slices, requires_grad=False))


@contextlib.contextmanager
def offered_to_oracle(offered: bool = True):
    """Within, vLLM's FP4 oracles consider our experts before their own, whichever backend they ask for first.

    Patches `backend_to_kernel_cls` of each. Why: `MoEBackend` is a closed literal and the oracle has no hook, but
    its generic checks (device, activation, parallelism) should apply to us too. Delete when vLLM can register NVFP4
    experts by name. Lazy, because vLLM's own classes import libraries that a CPU build lacks. Yields a list of what
    the weights were when an oracle asked. If not `offered`, it only listens.
    """
    originals, asked = {weights: asking.backend_to_kernel_cls for weights, asking in ORACLES.items()}, []

    def ours_first(weights, backend):
        asked.append(weights)
        if offered:
            yield Nvfp4MoeExperts
        yield from originals[weights](backend)

    for weights, asking in ORACLES.items():
        asking.backend_to_kernel_cls = partial(ours_first, weights)
    try:
        yield asked
    finally:
        for weights, asking in ORACLES.items():
            asking.backend_to_kernel_cls = originals[weights]


def choose(build: Callable[[], FusedMoEMethodBase], refusal: str | None = None) -> FusedMoEMethodBase:
    """What vLLM's `build` makes of a layer: ours if it chose us and we know its kind, else just what it makes alone.

    The oracle is shared by methods that this plugin has never seen: Quark's, vLLM's online quantisation, subclasses in
    a model. Their parameters have other names and other rules, so what took our experts without being known is built
    again without the offer. So is what fails with it: vLLM alone may have a way, and if not, the error is its own.
    `refusal` says beforehand why the layer is not ours.
    """
    method = failure = Nvfp4MoeExperts.last_refusal = None
    with offered_to_oracle(offered=not refusal) as asked:
        try:
            method = build()
        except Exception as error:
            failure = f"with our experts on offer: {type(error).__name__}: {error}"
    if refusal:
        if asked or type(method) in UNASKED:
            log.experts_refused(refusal, asked[0] if asked else UNASKED[type(method)][0])
        return method or build()
    asked = asked or ask_ourselves(method)
    if type(method) in SPECIALISED and method.experts_cls is Nvfp4MoeExperts:
        specialise(method)
        method.build_alone = build
        log.experts_active(method.weights)
        return method
    refusal = Nvfp4MoeExperts.last_refusal or failure
    if asked and not refusal:
        refusal = f"{type(method).__name__} is a quantisation method that this plugin does not know"
        method = None
    if asked:
        log.experts_refused(refusal, asked[0])
    return method or build()


def ask_ourselves(method: FusedMoEMethodBase) -> list[str]:
    """Choose our experts for a method that asks no oracle, if they support its layer; returns what its weights are."""
    if type(method) not in UNASKED:
        return []
    weights, key = UNASKED[type(method)]
    ours = Nvfp4MoeExperts
    if ours.is_supported_config(ours, method.moe, key, None, ours.activation_format())[0]:
        method.experts_cls = ours
    return [weights]


def specialise(method) -> None:
    """Turn vLLM's method, which has chosen our experts, into ours.

    The class is swapped because the method is built deep inside vLLM's quantisation configs, one of a kind for each
    checkpoint format. Delete when those configs can be told which method class to build.
    """
    method.__class__ = SPECIALISED[type(method)]
    method.use_global_sf = True  # load every expert's input scale, also those of other ranks


LAYERS = ("RoutedExperts", "GptOssRoutedExperts", "TransformersRoutedExperts")
"""vLLM's layers of experts that we serve: they differ in how files are loaded, not in what is computed."""

NOT_OURS = {
    "DbrxExperts": "its loader takes no scales of FP4 weights",
    "SubstitutedRoutedExperts": "vLLM puts constants in the place of unquantised experts only",
    "MuseSparkRoutedExperts": "it needs each expert's output by itself, to normalise it before it is weighted",
    "DeepseekV4HeterogeneousSharedRoutedExperts": "shared experts of another format lie among the routed ones",
}
"""Layers that stay vLLM's, and why; a class that is in neither table stays vLLM's as well."""


def class_refusal(layer: type) -> str | None:
    """Why a layer of this class is not ours, whatever its weights are; None if it may be."""
    name = layer.__name__
    reason = NOT_OURS.get(name, "this plugin does not know what it does to experts")
    return None if name in LAYERS else f"{name} is another class of experts than vLLM's RoutedExperts; {reason}"


def install() -> None:
    """Let every layer of experts ask through us for its method.

    Patches `RoutedExperts._get_quant_method`. Why: vLLM's own way to replace a layer goes by the name of its class, so
    that it never reaches a model's subclass. Patches `RoutedExperts.__init__` to name layers that chose their method
    elsewhere. Delete both when FP4 experts can be registered by name.
    """
    get_quant_method, init = RoutedExperts._get_quant_method, RoutedExperts.__init__

    @wraps(get_quant_method)
    def ask_through_us(self, prefix, quant_config, moe_config):
        vars(self)["nvfp4_moe_asked"] = True
        method = choose(lambda: get_quant_method(self, prefix, quant_config, moe_config), class_refusal(type(self)))
        if type(method) in SPECIALISED.values():
            # Of this layer alone. Parameters get it when they are made, and the layer calls it by itself.
            vars(self)["weight_loader"] = loaded.marking(self.weight_loader)
        return method

    @wraps(init)
    def name_what_asked_nobody(self, *args, **kwargs):
        init(self, *args, **kwargs)
        weights = fp4_weights(self)
        if weights and "nvfp4_moe_asked" not in vars(self):
            log.experts_refused(class_refusal(type(self)), weights)

    RoutedExperts._get_quant_method, RoutedExperts.__init__ = ask_through_us, name_what_asked_nobody


def fp4_weights(layer: torch.nn.Module) -> str | None:
    """NVFP4 or MXFP4, by a layer's parameters; None if they are neither."""
    parameters = dict(layer.named_parameters(recurse=False))
    codes, scale = (parameters.get(name) for name in ("w13_weight", "w13_weight_scale"))
    codes = parameters.get("w13_weight_packed", codes)
    if codes is None or scale is None or codes.dtype != torch.uint8:
        return None
    return {torch.float8_e4m3fn: "NVFP4", torch.uint8: "MXFP4"}.get(scale.dtype)
