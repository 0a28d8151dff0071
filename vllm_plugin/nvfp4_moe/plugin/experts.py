# SPDX-License-Identifier: Apache-2.0
"""One MoE layer of the library behind vLLM's modular experts interface."""

import torch
import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP
from vllm.model_executor.layers.quantization.utils.quant_utils import kMxfp4Static, kNvfp4Dynamic, kNvfp4Static
from vllm.platforms import current_platform

from nvfp4_moe import Layer, LayerWeights
from nvfp4_moe.layer import ONE_ORDER
from nvfp4_moe.mxfp4 import MX_BLOCK_SIZE
from nvfp4_moe.ops import OPS

from . import into_output, log, scales, settings, support
from .input_scales import settle_and_warn
from .lifetime import Handle

PARAMETERS = {
    "w13": "w13_weight",
    "w13_block_scale": "w13_weight_scale",
    "w13_global_scale": "w13_weight_scale_2",
    "w2": "w2_weight",
    "w2_block_scale": "w2_weight_scale",
    "w2_global_scale": "w2_weight_scale_2",
}
"""Of LayerWeights: vLLM's names."""
BIASES = {"w13_bias": "w13_bias", "w2_bias": "w2_bias"}

# vLLM's names of activations, and ours. Not its enum: each version has others.
ACTIVATIONS = {
    "SILU": "swiglu",
    "SWIGLUOAI": "swiglu",  # rows of gate and up take turns
    "SWIGLUOAI_UNINTERLEAVE": "swiglu",
    "SWIGLUSTEP": "swiglu_step",
    "SITU": "situ",
    "GELU_TANH": "gelu_tanh",
    "GELU": "gelu",
    "RELU2_NO_MUL": "relu2",
    "SILU_NO_MUL": "silu",
}


class Nvfp4MoeExperts(mk.FusedMoEExpertsModular):
    """bf16 [T, H] in; bf16 [T, H] out, weighted and summed over the experts that are here.

    Modular, not monolithic: hash-routed layers of DeepSeek-V4 choose their experts outside the kernel.
    """

    def __init__(self, moe_config, quant_config, **_):
        super().__init__(moe_config, quant_config)
        self.weights = "NVFP4"  # or MXFP4: what they were when they came
        self.handle = Handle()
        self.layer: Layer | None = None
        self.layer_name = ""
        self.calibrating: scales.LayerCalibration | None = None
        self.scratch_sizes: dict[int, int] = {}

    # ---- What vLLM's selection asks --------------------------------------------------------------------------------
    # Every question of vLLM's base classes has its answer here, also where that is the base's own: a default that
    # changes with vLLM's version must not change what we claim. tests/vllm/test_flags.py lists them.

    last_refusal: str | None = None
    """Why we refused the last layer that vLLM asked us about."""

    @staticmethod
    def is_supported_config(cls, moe_config, weight_key, activation_key, activation_format):
        """Our own rules, then vLLM's generic checks, which call the methods below. What cannot be asked is refused."""
        try:
            is_mxfp4 = weight_key == kMxfp4Static
            refusal = config_refusal(moe_config, "MXFP4" if is_mxfp4 else "NVFP4")
            refusal = refusal or (block_refusal(moe_config) if is_mxfp4 else None)
            if not refusal:
                base = mk.FusedMoEExperts.is_supported_config
                refusal = base(cls, moe_config, weight_key, activation_key, activation_format)[1]
        except Exception as error:
            refusal = f"asking whether the layer is supported failed, {type(error).__name__}: {error}"
        Nvfp4MoeExperts.last_refusal = refusal
        return refusal is None, refusal

    @staticmethod
    def activation_format():
        """Tokens as they come, not batched by expert."""
        return mk.FusedMoEActivationFormat.Standard

    @staticmethod
    def is_monolithic():
        """Routing is vLLM's."""
        return False

    @staticmethod
    def supports_lora():
        """LoRA needs the experts' intermediate values."""
        return False

    def supports_packed_ue8m0_act_scales(self):
        """Activations come as bf16."""
        return False

    @staticmethod
    def _supports_current_device():
        return support.device_refusal(current_platform.device_type) is None

    @staticmethod
    def _supports_no_act_and_mul():
        return True

    @staticmethod
    def _supports_quant_scheme(weight_key, activation_key):
        # None is a W4A16 checkpoint. With MXFP4 vLLM names what its own kernels make of activations: nothing of ours.
        return weight_key == kMxfp4Static or (weight_key == kNvfp4Static and activation_key in (kNvfp4Dynamic, None))

    @staticmethod
    def _supports_activation(activation):
        return activation.name in ACTIVATIONS

    @staticmethod
    def _supports_parallel_config(moe_parallel_config):
        return not moe_parallel_config.use_batched_activation_format

    @staticmethod
    def _supports_routing_method(routing_method, weight_key, activation_key):
        return True  # ids and weights come from outside

    @staticmethod
    def _supports_hash_routing():
        return False  # asked of monolithic experts only

    @staticmethod
    def _supports_router_logits_dtype(router_logits_dtype, routing_method):
        return True

    @staticmethod
    def _supports_shape(hidden_dim):
        return True  # `config_refusal` asks the library, about all sizes

    @staticmethod
    def _supports_batch_invariance():
        return True  # on a GPU by `tile_rows`; tests/test_batch_invariance.py

    # ---- What vLLM's kernel asks -----------------------------------------------------------------------------------

    consumes_expert_mask = False  # but -1 and local numbers in the expert map
    post_gemm2_hook = None  # `apply` weights and sums by itself

    @property
    def expects_unquantized_inputs(self):
        """The library quantises, if at all."""
        return True

    def workspace_dtype(self, act_dtype):
        """Of the scratch and of the output."""
        return act_dtype

    def output_hidden_dim(self, hidden_dim):
        """Columns of the output."""
        return hidden_dim

    may_run_late = False
    """Once vLLM has the output at hand, where it would copy it (into_output.py)."""
    waiting = None
    """The inputs of the call that waits for it."""

    def finalize_weight_and_reduce_impl(self):
        """Nothing is left to weight and sum; but the whole layer to run, if it waits for that."""
        if self.waiting is None:
            return TopKWeightAndReduceNoOP()
        given, self.waiting = self.waiting, None
        return into_output.RunInto(self._run, given)

    def workspace_shapes(self, M, N, K, topk, *_):
        """(none, scratch, output) in elements of the activation type.

        The scratch is the second workspace, because vLLM lays the output over the first. vLLM allocates both, so its
        memory profiling counts them. On the CPU the library keeps its own, shared by all layers.
        """
        if current_platform.is_cpu():
            return (0,), (0,), (M, K)
        if M not in self.scratch_sizes:  # asked before every forward
            self.scratch_sizes[M] = -(-self.layer.workspace_size(M) // torch.bfloat16.itemsize)
        return (0,), (self.scratch_sizes[M],), (M, K)

    # ---- Weights ---------------------------------------------------------------------------------------------------

    def process_weights_after_loading(self, layer):
        """Take vLLM's parameters, which `moe.py` has brought to our names and scales; a reload into the same memory."""
        config = self.moe_config
        mode, _ = support.resolved_moe_mode(self.weights)
        policy = settings.scale_policy() if mode == "nvfp4" else "static"
        # What came as MXFP4 is exact in e4m3, and keeps the kernels of exact weights.
        max_error = settings.fp8_max_error() if self.weights == "NVFP4" else 0.0
        self.layer_name = layer.layer_name
        self.layer = self.handle.make_once(
            self.layer_name,
            Layer,
            **layer_options(config),
            **activation_options(config, layer),
            mode=mode,
            scale_policy="dynamic" if policy == "dynamic" else "static",
            fp8_max_error=max_error,
            scale_block_size=self._scale_block_size(layer) if mode == "fp8" and not max_error else 16,
            device=layer.w13_weight.device,
        )
        w13_input_scale, w2_input_scale = self._input_scales(layer, mode, policy)
        names = PARAMETERS | (BIASES if config.has_bias else {})
        weights = LayerWeights(
            **{field: getattr(layer, name).data for field, name in names.items()},
            w13_input_scale=w13_input_scale,
            w2_input_scale=w2_input_scale,
            interleaved=in_turn(config),
        )
        read = self.handle.prepare(self.layer_name, weights)
        if max_error:
            log.weights_rounded(self.layer_name, self.layer.weight_error())
        for field, name in names.items():
            getattr(layer, name).data = getattr(read, field)

    def _scale_block_size(self, layer) -> int:
        """32 where block scales are equal in pairs, as in every cast of MXFP4: on all ranks that may exchange experts.

        A reload keeps what the first load found, which graphs hold; the library refuses what does not fit it.
        """
        if self.layer is not None:
            return self.layer.scale_block_size
        if self.weights == "MXFP4":
            return MX_BLOCK_SIZE
        parts = (getattr(layer, PARAMETERS[f"{gemm}_block_scale"]).data.view(torch.uint8) for gemm in ("w13", "w2"))
        paired = all(of.shape[-1] % 2 == 0 and torch.equal(of[..., ::2], of[..., 1::2]) for of in parts)
        if self._use_ep:
            paired = scales.maximum_over_ranks([float(not paired)], True, layer.w13_weight.device) == [0.0]
        return MX_BLOCK_SIZE if paired else 16

    def _input_scales(self, layer, mode: str, policy: str) -> tuple[float, float]:
        """Decoding input scales of both GEMMs, 0 for none."""
        if mode != "nvfp4" or policy == "dynamic":
            return 0.0, 0.0
        if policy == "calibrated":
            known = scales.calibration().known(self.layer_name)
            if known is None:
                read = lambda: list(self.layer.calibrated_scales())  # noqa: E731
                set_scales = self.layer.set_input_scales
                self.calibrating = scales.LayerCalibration(self.layer_name, read, set_scales, self._use_ep)
            return tuple(known or (0.0, 0.0))
        checkpoint = [self._checkpoint_scale(layer, "w13"), self._checkpoint_scale(layer, "w2")]
        return tuple(scales.maximum_over_ranks(checkpoint, self._use_ep, layer.w13_weight.device))

    def _checkpoint_scale(self, layer, gemm: str) -> float:
        """The maximum over what calibration measured; 0 if that is nothing, as in MXFP4."""
        if not hasattr(layer, f"{gemm}_input_scale"):
            return 0.0
        stored = getattr(layer, f"{gemm}_input_scale").data.as_subclass(torch.Tensor).float().cpu()
        if stored.dim() == 2:  # of gate and of up, or of one projection
            rows = enumerate(stored.tolist())
            by_place = {f"expert {e} ({name})": scale for e, row in rows for name, scale in zip(("w1", "w3"), row)}
        else:
            by_place = {f"expert {e}": scale for e, scale in enumerate(stored.tolist())}
        return settle_and_warn(self.layer_name, f"{gemm}_input_scale", by_place)

    @property
    def _use_ep(self) -> bool:
        return self.moe_config.moe_parallel_config.use_ep

    # ---- Forward ---------------------------------------------------------------------------------------------------

    def apply(
        self,
        output,
        hidden_states,
        w1,
        w2,
        topk_weights,
        topk_ids,
        activation,
        global_num_experts,
        expert_map,
        a1q_scale,
        a2_scale,
        workspace13,
        workspace2,
        expert_tokens_meta,
        apply_router_weight_on_input,
    ):
        """Run the layer into `output`; ids are global, -1 is padding.

        In eager mode the GPU waits for this code, which an engine's own has driven out of the caches: so it is short,
        and calls the op itself (tests/bench/host_time.py --cold).
        """
        if apply_router_weight_on_input:
            topk_weights = None  # already applied to the input
        elif topk_weights.dtype != torch.float32:
            topk_weights = topk_weights.float()
        given = hidden_states, topk_ids, topk_weights, expert_map, workspace2 if workspace2.numel() else None
        if self.may_run_late and into_output.is_scratch(output, workspace13):
            self.waiting = given
        else:
            self._run(given, output)

    def _run(self, given, output):
        if self.calibrating is None:
            OPS.moe_forward(*given, self.layer.id, output, None, 0)
        else:
            self._calibrate(*given, output)

    def _calibrate(self, hidden_states, topk_ids, topk_weights, expert_map, scratch, output):
        self.layer.calibrate(
            hidden_states, topk_ids, topk_weights, expert_map=expert_map, workspace=scratch, out=output
        )
        if self.calibrating.finish(hidden_states):
            self.calibrating = None


def config_refusal(moe_config, weights: str = "NVFP4") -> str | None:
    """Why our experts must not serve this layer, beyond vLLM's generic checks; None if they may."""
    if moe_config.moe_backend != "auto":
        return f"--moe-backend is {moe_config.moe_backend}, which is the user's choice"
    if moe_config.in_dtype != torch.bfloat16:
        return f"dtype is {moe_config.in_dtype}; it must be torch.bfloat16. Pass --dtype bfloat16"
    if moe_config.is_lora_enabled:
        return "LoRA is enabled, which needs the experts' intermediate values"
    mode, _ = support.resolved_moe_mode(weights)
    if support.batch_invariant() and mode == "nvfp4" and settings.scale_policy() == "calibrated":
        return f"VLLM_BATCH_INVARIANT is set, and {settings.SCALES} is calibrated: the first requests change later bits"
    device = current_platform.device_type
    return support.load_refusal() or support.device_refusal(device) or size_refusal(device, moe_config, weights, mode)


def block_refusal(moe_config) -> str | None:
    """Why MXFP4's blocks do not divide the layer, or this rank's part of it; gpt-oss is dealt in whole blocks."""
    part = "intermediate_size" if in_turn(moe_config) else "intermediate_size_per_partition"
    for name in ("hidden_dim", part):
        size = getattr(moe_config, name)
        if size % MX_BLOCK_SIZE:
            return f"{name} is {size}; it must be a multiple of {MX_BLOCK_SIZE}, the values that share a scale in MXFP4"
    return None


def size_refusal(device: str, moe_config, weights: str, mode: str) -> str | None:
    """Why the library has no kernels for a layer of this size."""
    options = layer_options(moe_config)
    if weights == "MXFP4" and in_turn(moe_config):
        options["intermediate_size"] = whole_blocks(options["intermediate_size"])
    return support.layer_refusal(device, mode=mode, **options)


def in_turn(moe_config) -> bool:
    """Do rows of gate and up take turns, so that files have both in one tensor?"""
    return moe_config.activation.name == "SWIGLUOAI"


def whole_blocks(size: int) -> int:
    """Of MXFP4, as many as hold so many values."""
    return -(-size // MX_BLOCK_SIZE) * MX_BLOCK_SIZE


def layer_options(moe_config) -> dict[str, int | str]:
    """The layer's sizes and kind as the library takes them."""
    return {
        "hidden_size": moe_config.hidden_dim,
        "intermediate_size": moe_config.intermediate_size_per_partition,
        "num_experts": moe_config.num_experts,
        "num_local_experts": moe_config.num_local_experts,
        "top_k": moe_config.experts_per_token,
        "activation": ACTIVATIONS.get(moe_config.activation.name, "swiglu"),
        "has_bias": moe_config.has_bias,
        "tile_rows": ONE_ORDER if support.batch_invariant() else 0,
    }


def activation_options(moe_config, layer) -> dict[str, float]:
    """The activation's numbers: what the model gave its layer, or, where vLLM's own kernels have constants, those."""
    limit = moe_config.swiglu_limit or 0.0
    match moe_config.activation.name:
        case "SILU":
            return {"swiglu_limit": limit}
        case "SWIGLUOAI":
            return {"swiglu_limit": limit or 7.0, "swiglu_alpha": 1.702, "swiglu_beta": 1.0}
        case "SWIGLUOAI_UNINTERLEAVE":
            alpha, beta = layer.swiglu_alpha or 1.0, layer.swiglu_beta or 0.0
            return {"swiglu_limit": limit, "swiglu_alpha": alpha, "swiglu_beta": beta}
        case "SWIGLUSTEP":
            return {"swiglu_limit": limit or 7.0}
        case "SITU":
            beta, linear_beta = moe_config.activation_situ_beta, moe_config.activation_situ_linear_beta
            return {"swiglu_limit": linear_beta or 0.0, "swiglu_beta": beta or 1.0}
        case _:
            return {}
