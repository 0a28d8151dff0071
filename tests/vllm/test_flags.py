# SPDX-License-Identifier: Apache-2.0
"""Every question of vLLM's base classes has our own answer, or stands here with the reason why the base's is right.

A question that a later vLLM adds fails here until it is answered.
"""

import pytest
import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearKernel
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from nvfp4_moe.plugin import moe
from nvfp4_moe.plugin.experts import Nvfp4MoeExperts
from nvfp4_moe.plugin.linear import Nvfp4MoeLinearKernel
from nvfp4_moe.plugin.mxfp4 import CompressedTensorsMxfp4MoE, GptOssMxfp4MoE, Mxfp4MoE

MXFP4 = (Mxfp4MoE, GptOssMxfp4MoE, CompressedTensorsMxfp4MoE)

# Read vLLM's quant config, which is empty for us: the library quantises.
ACCESSORS = """
    a1_gscale a1_scale a2_gscale a2_scale block_shape g1_alphas g2_alphas per_act_token_quant per_out_ch_quant
    quant_dtype w1_bias w1_scale w1_zp w2_bias w2_scale w2_zp weight_quant_dtype
"""
EXPERTS = dict.fromkeys(ACCESSORS.split(), "reads the quant config") | {
    "_run_post_gemm2_hook": "asked only where post_gemm2_hook is set",
    "_uses_post_gemm2_hook": "the same",
    "activation": "a helper that we do not call",
    "adjust_N_for_activation": "the same",
    "moe_problem_size": "from the shapes of vLLM's parameters, which stay readable",
}
METHOD = {
    "apply": "vLLM's kernel around our experts",
    "apply_monolithic": "never called: is_monolithic is False",
    "dequantize_weight": "of the checkpoint's parameters, before they are repacked",
    "embedding": "not for experts",
    "maybe_make_prepare_finalize": "0.26: vLLM's exchange between ranks",
    "method_name": "the class's",
    "mk_can_overlap_shared_experts": "asks vLLM's kernel",
    "select_gemm_impl": "0.26: not asked of a method that brings its kernel",
    "supports_internal_mk": "asks whether there is a kernel",
    "tie_weights": "not for experts",
    "topk_indices_dtype": "asks vLLM's exchange; the library takes both",
    "uses_meta_device": "parameters are real from the start",
}


def questions(*bases: type) -> set[str]:
    """Names that a base class gives a meaning to."""
    return {name for base in bases for name in vars(base) if not name.startswith("__") and name != "_abc_impl"}


def answers(cls: type, stop: type) -> set[str]:
    """Names that `cls` and what lies between it and vLLM's class define."""
    classes = cls.__mro__[: cls.__mro__.index(stop)]
    return {name for own in classes for name in vars(own)}


@pytest.mark.parametrize(
    ("bases", "ours", "stop", "inherited"),
    [
        ((mk.FusedMoEExperts, mk.FusedMoEExpertsModular), Nvfp4MoeExperts, mk.FusedMoEExpertsModular, EXPERTS),
        ((FusedMoEMethodBase, QuantizeMethodBase), moe.ModelOptMoE, moe.ModelOptMoE.__mro__[2], METHOD),
        (
            (FusedMoEMethodBase, QuantizeMethodBase),
            moe.CompressedTensorsMoE,
            moe.CompressedTensorsMoE.__mro__[2],
            METHOD,
        ),
        *(((FusedMoEMethodBase, QuantizeMethodBase), of, of.__mro__[3], METHOD) for of in MXFP4),
        ((NvFp4LinearKernel,), Nvfp4MoeLinearKernel, NvFp4LinearKernel, {}),
    ],
    ids=["experts", "ModelOpt", "compressed-tensors", "MXFP4", "gpt-oss", "compressed MXFP4", "linear kernel"],
)
def test_every_flag_is_answered(bases, ours, stop, inherited):
    asked = questions(*bases)
    unanswered = asked - answers(ours, stop) - set(inherited)
    assert not unanswered, f"answer them in {ours.__name__}, or say here why vLLM's answer is right"


def test_flags_that_a_method_has_beside_its_base():
    """Some vLLM methods answer by a class attribute of their own, which ours would inherit."""
    for ours in (moe.ModelOptMoE, moe.CompressedTensorsMoE, *MXFP4):
        assert ours.supports_pre_processed_weights is False
        assert ours.is_monolithic is False
    assert Nvfp4MoeExperts.is_monolithic() is False
