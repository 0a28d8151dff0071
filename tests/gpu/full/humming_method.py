# SPDX-License-Identifier: Apache-2.0
"""vLLM 0.26's side of humming_experts.py: a method that keeps its parameters, and modular experts."""

import os

import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe.config import FUSED_MOE_UNQUANTIZED_CONFIG
from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend, make_nvfp4_moe_kernel
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP
from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4FusedMoE

from .humming_experts import folder, served_layer

logger = init_logger("vllm.full.humming")
CLAMP = 10.0
"""The only one that peers_humming.py's activation has."""


class HummingExperts(mk.FusedMoEExpertsModular):
    """bf16 [T, H] in and out; nothing is left to weight and sum."""

    expects_unquantized_inputs = True

    def __init__(self, moe_config, quant_config, layer):
        super().__init__(moe_config, quant_config)
        clamp = getattr(layer, "swiglu_limit", None)
        if clamp != CLAMP:
            raise ValueError(f"swiglu_limit is {clamp}; it must be {CLAMP}, DeepSeek-V4's.")
        self.run = served_layer(os.environ["FULL_HUMMING"], layer, moe_config)
        logger.info_once("Humming from %s runs the experts, %s", folder(), os.environ["FULL_HUMMING"])

    @staticmethod
    def activation_format():
        """Tokens as they come."""
        return mk.FusedMoEActivationFormat.Standard

    # Nobody asks these: HummingMethod takes no other experts.
    _supports_current_device = _supports_no_act_and_mul = staticmethod(lambda: True)
    _supports_quant_scheme = staticmethod(lambda weight_key, activation_key: True)
    _supports_activation = _supports_parallel_config = staticmethod(lambda asked: True)

    def finalize_weight_and_reduce_impl(self):
        """It weights and sums itself."""
        return TopKWeightAndReduceNoOP()

    def moe_problem_size(self, a1, w1, w2, topk_ids):
        """Humming's weights have shapes of their own."""
        return self.run.local, len(a1), 2 * self.run.inter, a1.shape[1], topk_ids.shape[1]

    def workspace_shapes(self, M, N, K, topk, *_):
        """Only the output: buffers are the peer's, shared by all layers."""
        return (0,), (0,), (M, K)

    def apply(self, output, hidden_states, w1, w2, topk_weights, topk_ids, *_, apply_router_weight_on_input, **__):
        """The layer."""
        assert not apply_router_weight_on_input
        self.run(hidden_states, topk_ids, topk_weights, output)


class HummingMethod(ModelOptNvFp4FusedMoE):
    """Parameters are made as for any backend; no backend of vLLM's is asked for."""

    def __init__(self, quant_config, moe_config):
        super(ModelOptNvFp4FusedMoE, self).__init__(moe_config)
        self.quant_config, self.use_a16, self.use_global_sf = quant_config, True, False
        self.nvfp4_backend, self.experts_cls = NvFp4MoeBackend.HUMMING, HummingExperts

    def get_fused_moe_quant_config(self, layer):
        """Activations come as bf16, and no scale of ours is vLLM's to know."""
        return FUSED_MOE_UNQUANTIZED_CONFIG

    def process_weights_after_loading(self, layer):
        """The experts take the weights."""
        self.moe_quant_config = self.get_fused_moe_quant_config(layer)
        self.moe_kernel = make_nvfp4_moe_kernel(
            moe_quant_config=self.moe_quant_config,
            moe_config=self.moe,
            experts_cls=self.experts_cls,
            backend=self.nvfp4_backend,
            routing_tables=layer._expert_routing_tables(),
            layer=layer,
        )
