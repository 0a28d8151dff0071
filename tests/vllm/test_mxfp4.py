# SPDX-License-Identifier: Apache-2.0
"""MXFP4 layers of real vLLM, filled by its own loader: cast and served, or given back as vLLM alone would have them."""

from types import SimpleNamespace

import pytest
import tiny_layers
import torch
from test_checkpoint_faults import _engine, expected, not_active  # noqa: F401
from test_reload_layers import addresses, loaded, reload
from tiny_layers import EXPERTS, HIDDEN, INTER, NAME, TOKENS, TOP_K
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.quantization.mxfp4 import GptOssMxfp4Config, Mxfp4Config, Mxfp4MoEMethod

from nvfp4_moe.plugin.experts import Nvfp4MoeExperts
from nvfp4_moe.plugin.mxfp4 import CompressedTensorsMethod, CompressedTensorsMxfp4MoE, GptOssMxfp4MoE, Mxfp4MoE
from reference import generate, mxfp4
from reference.layer import Swiglu, relative_l2


class Mxfp4Experts(Mxfp4Config):
    """A quantisation config of which only the experts count."""

    @classmethod
    def get_name(cls):
        return "deepseek_v4_fp8"

    def get_quant_method(self, layer, prefix):
        return Mxfp4MoEMethod(layer.moe_config)


class CompressedExperts(Mxfp4Experts):
    """The same of compressed-tensors."""

    @classmethod
    def get_name(cls):
        return "compressed-tensors"

    def get_quant_method(self, layer, prefix):
        return CompressedTensorsMethod(layer.moe_config)


@pytest.fixture
def weights():
    return mxfp4.random_weights(EXPERTS, HIDDEN, INTER, torch.Generator().manual_seed(0), span=17)


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setitem(tiny_layers.FORMATS, "mxfp4", (Mxfp4Experts, {}))
    monkeypatch.setitem(tiny_layers.FORMATS, "compressed mxfp4", (CompressedExperts, {}))
    return lambda format="mxfp4", **changes: tiny_layers.make_experts(format, **changes)


@pytest.fixture
def layer(make):
    return make()


def load(layer, weights, skip=lambda expert, shard: False) -> None:
    """What DeepSeek-V4's files bring: signed bytes, and e8m0, which its model hands to the loader as bytes."""
    parameters = dict(layer.named_parameters())
    for expert in range(EXPERTS):
        for shard, gemm, part in (
            ("w1", "w13", slice(INTER)),
            ("w3", "w13", slice(INTER, None)),
            ("w2", "w2", slice(None)),
        ):
            if skip(expert, shard):
                continue
            codes, scale = getattr(weights, gemm)[expert, part], getattr(weights, f"{gemm}_scale")[expert, part]
            packed = f"{gemm}_weight_packed" if f"{gemm}_weight_packed" in parameters else f"{gemm}_weight"
            for name, tensor in ((packed, codes.view(torch.int8)), (f"{gemm}_weight_scale", scale)):
                loader = parameters[name].weight_loader
                loader(
                    parameters[name], tensor, f"{expert}.{name}", shard_id=shard, expert_id=expert, return_success=True
                )


def run(layer):
    """(input, ids, weights, output) of a few tokens."""
    generator = torch.Generator().manual_seed(1)
    x, ids = generate.tokens(TOKENS, HIDDEN, generator), generate.random_ids(TOKENS, EXPERTS, TOP_K, generator)
    topk_weights, out = generate.random_topk_weights(TOKENS, TOP_K, generator), torch.full_like(x, torch.nan)
    nothing = torch.empty(0, dtype=x.dtype)
    layer.quant_method.moe_kernel.fused_experts.apply(
        output=out, hidden_states=x, w1=None, w2=None, topk_weights=topk_weights, topk_ids=ids,
        activation=layer.activation, global_num_experts=EXPERTS, expert_map=None, a1q_scale=None, a2_scale=None,
        workspace13=nothing, workspace2=nothing, expert_tokens_meta=None, apply_router_weight_on_input=False,
    )  # fmt: skip
    return x, ids, topk_weights, out


@pytest.mark.parametrize(
    ("format", "method"), [("mxfp4", Mxfp4MoE), ("compressed mxfp4", CompressedTensorsMxfp4MoE)], ids=["", "compressed"]
)
def test_a_layer_is_cast_and_computes_mxfp4s_own_values(make, weights, format, method):
    layer = make(format)
    assert type(layer.quant_method) is method
    load(layer, weights)
    layer.quant_method.process_weights_after_loading(layer)
    x, ids, topk_weights, out = run(layer)
    assert relative_l2(out, mxfp4.Layer(weights).forward(x, ids.long(), topk_weights).out) < 5e-3


@pytest.mark.parametrize(("algorithm", "method"), [("", "Mxfp4MoE"), ("NVFP4", "ModelOptMoE")])
def test_layers_of_deepseek_v41_by_its_own_config(monkeypatch, weights, algorithm, method):
    """As DeepSeek publishes it and as ModelOpt exports it; layers, because vLLM has no model of it for the CPU."""
    config = pytest.importorskip("vllm.models.deepseek_v41.quant_config").DeepseekV4FP8Config

    def make_config():
        made = config(is_checkpoint_fp8_serialized=True, weight_block_size=[32, 32])
        made._resolved_moe_quant_algo, made._resolved_expert_dtype = algorithm, "fp4"
        return made

    names = tiny_layers.FORMATS["modelopt"][1]
    monkeypatch.setitem(tiny_layers.FORMATS, "deepseek_v41", (make_config, names))
    layer = tiny_layers.make_experts("deepseek_v41", swiglu_limit=10.0)
    assert type(layer.quant_method).__name__ == method
    if algorithm:
        tiny_layers.load_experts(layer, "deepseek_v41")
        layer.quant_method.process_weights_after_loading(layer)
        assert relative_l2(tiny_layers.run_experts(layer), expected(Swiglu(10.0))) < 5e-3
        return
    load(layer, weights)
    layer.quant_method.process_weights_after_loading(layer)
    x, ids, topk_weights, out = run(layer)
    assert relative_l2(out, mxfp4.Layer(weights, Swiglu(10.0)).forward(x, ids.long(), topk_weights).out) < 5e-3


def test_a_layer_of_gpt_oss_loaded_as_a_whole(monkeypatch, weights):
    """As its model in vLLM brings it: all experts in one tensor, rows of gate and up in turn."""
    monkeypatch.setitem(tiny_layers.FORMATS, "gpt-oss", (GptOssMxfp4Config, {}))
    no_wish = SimpleNamespace(quantization_config=None)  # of the user's, about activations
    monkeypatch.setitem(vars(get_current_vllm_config()), "model_config", no_wish)
    layer = tiny_layers.make_experts("gpt-oss", activation=MoEActivation.SWIGLUOAI, has_bias=True)
    assert type(layer.quant_method) is GptOssMxfp4MoE
    tensors = {name: torch.stack(getattr(weights, name).chunk(2, 1), 2).flatten(1, 2) for name in ("w13", "w13_scale")}
    tensors |= {"w2": weights.w2, "w2_scale": weights.w2_scale}
    tensors = {
        name.replace("scale", "weight_scale") if "_" in name else f"{name}_weight": t for name, t in tensors.items()
    }
    tensors["w13_bias"] = torch.zeros(EXPERTS, 2 * INTER, dtype=torch.bfloat16)
    tensors["w2_bias"] = torch.zeros(EXPERTS, HIDDEN, dtype=torch.bfloat16)
    for name, tensor in tensors.items():
        parameter = getattr(layer, name)
        parameter.weight_loader(parameter, tensor, weight_name=name, shard_id=None, expert_id=None)
    layer.quant_method.process_weights_after_loading(layer)
    x, ids, topk_weights, out = run(layer)
    oai = Swiglu(7.0, 1.702, 1.0)
    assert relative_l2(out, mxfp4.Layer(weights, oai).forward(x, ids.long(), topk_weights).out) < 5e-3


def test_dummy_weights_load_and_run(layer, monkeypatch):
    """vLLM's dummy loader leaves bytes as they are."""
    monkeypatch.setattr(get_current_vllm_config().load_config, "load_format", "dummy")
    layer.quant_method.process_weights_after_loading(layer)
    assert not run(layer)[-1].any()


def test_what_never_came_is_missing_by_name(layer, weights):
    load(layer, weights, skip=lambda expert, shard: (expert, shard) == (2, "w3"))
    with pytest.raises(ValueError, match=rf"{NAME}: w13_weight of expert 2; w13_weight_scale of expert 2 is missing"):
        layer.quant_method.process_weights_after_loading(layer)


@pytest.mark.parametrize("format", ["mxfp4", "compressed mxfp4"])
def test_experts_loaded_again_compute_with_the_new_weights_where_the_old_were(make, weights, format):
    layer = loaded(make(format), load, weights=weights)
    before = addresses(layer)
    new = mxfp4.random_weights(EXPERTS, HIDDEN, INTER, torch.Generator().manual_seed(1), span=3)
    reload(layer, load, weights=new)
    assert addresses(layer) == before
    assert torch.equal(run(layer)[-1], run(loaded(make(format), load, weights=new))[-1])


def test_weights_loaded_again_that_no_cast_holds_are_refused(layer, weights):
    """Graphs hold our layer: it cannot go back to vLLM any more."""
    loaded(layer, load, weights=weights)
    weights.w2_scale[1, 5, 0] -= 60
    with pytest.raises(ValueError, match=rf"{NAME}: w2_weight_scale\[1, 0\] is 2\^-.*loaded again"):
        reload(layer, load, weights=weights)


class VllmsOwn(Mxfp4MoEMethod):
    """Stands for the method that vLLM makes alone, which has no kernel for MXFP4 on this CPU."""

    def __init__(self, sizes):  # not the base's, which looks for a kernel
        self.sizes, self.moe_kernel, self.experts_cls = sizes, None, "vLLM's"

    def maybe_roundup_sizes(self, *sizes_and_more):
        return self.sizes

    def process_weights_after_loading(self, layer):
        self.taken = {name: parameter.data.clone() for name, parameter in layer.named_parameters()}


def test_a_layer_that_no_cast_holds_goes_back_to_vllm_untouched(layer, weights, not_active):  # noqa: F811
    weights.w2_scale[1, 5, 0] -= 60
    load(layer, weights)
    method = layer.quant_method
    method.build_alone = lambda: VllmsOwn((HIDDEN, INTER))
    method.process_weights_after_loading(layer)
    assert type(method) is VllmsOwn
    assert method.experts_cls == "vLLM's"
    assert set(method.taken) == {"w13_weight", "w13_weight_scale", "w2_weight", "w2_weight_scale"}
    for gemm in ("w13", "w2"):
        assert torch.equal(method.taken[f"{gemm}_weight"], getattr(weights, gemm))
        assert torch.equal(method.taken[f"{gemm}_weight_scale"], getattr(weights, f"{gemm}_scale"))
    (line,) = not_active
    assert line.startswith(f"{NAME}: w2_weight_scale[1, 0] is 2^-")


def test_weights_that_vllm_would_have_padded_cannot_go_back(layer, weights):
    weights.w2_scale[1, 5, 0] -= 60
    load(layer, weights)
    layer.quant_method.build_alone = lambda: VllmsOwn((256, INTER))
    with pytest.raises(ValueError, match=r"wants hidden and intermediate size \[256, 64\] instead of \[128, 64\]"):
        layer.quant_method.process_weights_after_loading(layer)


@pytest.mark.parametrize("sizes", [{"hidden_dim": 144}, {"intermediate_size": 48}])
def test_sizes_that_split_a_block_are_left_to_vllm(make, not_active, sizes):  # noqa: F811
    with pytest.raises((NotImplementedError, ValueError)):  # vLLM alone, which has no kernel here
        make(**sizes)
    assert len(not_active) == 1
    assert "it must be a multiple of 32, the values that share a scale in MXFP4" in Nvfp4MoeExperts.last_refusal
