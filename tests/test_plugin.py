# SPDX-License-Identifier: Apache-2.0
"""What the plugin serves and what it leaves to vLLM, over a vLLM of names only."""

import sys
from types import SimpleNamespace

import pytest
import torch

import fake_vllm

E, H, INTER = 3, 64, 32


@pytest.fixture(scope="module", autouse=True)
def _vllm_of_names():
    fake_vllm.install()
    yield
    fake_vllm.remove()


# ---- Experts: what took ours without being known goes back to vLLM ---------------------------------------------------


@pytest.fixture
def refused(monkeypatch):
    """What the log says about layers that are not ours."""
    from nvfp4_moe.plugin import log

    lines = []
    monkeypatch.setattr(log, "experts_refused", lambda reason, weights="NVFP4": lines.append(reason))
    monkeypatch.setattr(log, "linears_refused", lines.append)
    monkeypatch.setattr(log, "experts_active", lambda weights="NVFP4": lines.append("active"))
    return lines


def asks_the_oracle(supported: bool = True):
    """What a method of vLLM does when it is made: take the oracle's first class that supports the layer."""
    from nvfp4_moe.plugin import moe

    for experts in moe.oracle.backend_to_kernel_cls("FIRST"):
        if experts is moe.Nvfp4MoeExperts:
            experts.last_refusal = None if supported else "the sizes"
            if not supported:
                continue
        return experts
    return None


@pytest.fixture
def vllms_choice(monkeypatch):
    from nvfp4_moe.plugin import moe

    class Marlin:
        pass

    monkeypatch.setattr(moe.oracle, "backend_to_kernel_cls", lambda backend: [Marlin])
    return Marlin


def test_a_method_that_we_do_not_know_is_as_vllm_alone_makes_it(refused, vllms_choice):
    from nvfp4_moe.plugin import moe

    class QuarkMoE:
        def __init__(self):
            self.experts_cls = asks_the_oracle()

    method = moe.choose(QuarkMoE)
    assert (type(method), method.experts_cls) == (QuarkMoE, vllms_choice)
    assert refused == ["QuarkMoE is a quantisation method that this plugin does not know"]


@pytest.mark.parametrize("supported", [True, False])
def test_a_method_that_asks_nobody_is_asked_about(refused, vllms_choice, monkeypatch, supported):
    from nvfp4_moe.plugin import moe

    class CompressedMxfp4:
        moe, experts_cls = "its layer", vllms_choice

    class Ours(CompressedMxfp4):
        weights = "MXFP4"

    def is_supported(cls, layer, *_):
        assert layer == "its layer"
        cls.last_refusal = None if supported else "the sizes"
        return supported, cls.last_refusal

    monkeypatch.setattr(moe.Nvfp4MoeExperts, "is_supported_config", staticmethod(is_supported))
    monkeypatch.setattr(moe.Nvfp4MoeExperts, "activation_format", staticmethod(lambda: None))
    monkeypatch.setitem(moe.UNASKED, CompressedMxfp4, ("MXFP4", "its key"))
    monkeypatch.setitem(moe.SPECIALISED, CompressedMxfp4, Ours)
    method = moe.choose(CompressedMxfp4)
    chosen = (Ours, moe.Nvfp4MoeExperts) if supported else (CompressedMxfp4, vllms_choice)
    assert (type(method), method.experts_cls) == chosen
    assert refused == (["active"] if supported else ["the sizes"])


def test_a_subclass_of_a_known_method_is_not_known(refused, vllms_choice):
    from nvfp4_moe.plugin import moe

    class OfOneModel(moe.ModelOptNvFp4FusedMoE):
        def __init__(self):
            self.experts_cls = asks_the_oracle()

    assert moe.choose(OfOneModel).experts_cls is vllms_choice
    assert refused == ["OfOneModel is a quantisation method that this plugin does not know"]


def test_a_method_around_a_known_one_is_not_known(refused, vllms_choice):
    """Online requantisation makes a ModelOpt method for its weights, and another kernel than that method's."""
    from nvfp4_moe.plugin import moe

    class Online:
        def __init__(self):
            self.source, self.experts_cls = asks_the_oracle(), object

    assert moe.choose(Online).source is vllms_choice
    assert refused == ["Online is a quantisation method that this plugin does not know"]


def test_a_known_method_is_ours(refused, vllms_choice):
    from nvfp4_moe.plugin import moe

    def build():
        method = moe.ModelOptNvFp4FusedMoE()
        method.experts_cls = asks_the_oracle()
        return method

    method = moe.choose(build)
    assert type(method) is moe.ModelOptMoE
    assert method.use_global_sf is True
    assert refused == ["active"]


def test_what_we_refuse_is_built_once(refused, vllms_choice):
    from nvfp4_moe.plugin import moe

    built = []

    def build():
        built.append(asks_the_oracle(supported=False))
        return SimpleNamespace(experts_cls=built[-1])

    assert moe.choose(build).experts_cls is vllms_choice
    assert (built, refused) == ([vllms_choice], ["the sizes"])


def test_what_fails_with_us_is_tried_without(refused, vllms_choice):
    from nvfp4_moe.plugin import moe

    def build():
        if asks_the_oracle() is moe.Nvfp4MoeExperts:
            raise KeyError("a new vLLM")
        return "vLLM's own"

    assert moe.choose(build) == "vLLM's own"
    assert refused == ["with our experts on offer: KeyError: 'a new vLLM'"]


def test_vllms_own_errors_stay_its_own(refused):
    from nvfp4_moe.plugin import moe

    def build():
        raise NotImplementedError("no backend")

    with pytest.raises(NotImplementedError, match="no backend"):
        moe.choose(build)
    assert not refused, "the oracle was not asked"


def test_a_layer_that_is_not_nvfp4_leaves_no_line(refused):
    from nvfp4_moe.plugin import moe

    assert moe.choose(lambda: "bf16 experts") == "bf16 experts"
    assert not refused


def test_a_question_that_fails_is_a_refusal(monkeypatch):
    """A later vLLM may lack what we look at."""
    from nvfp4_moe.plugin import experts

    cls = experts.Nvfp4MoeExperts
    supported, why = cls.is_supported_config(cls, SimpleNamespace(), None, None, None)
    assert not supported
    assert "AttributeError" in why
    assert cls.last_refusal == why


# ---- Experts: every property is asked before they are chosen ---------------------------------------------------------


def moe_config(**changes):
    config = dict(
        moe_backend="auto", in_dtype=torch.bfloat16, has_bias=False, is_lora_enabled=False, hidden_dim=H,
        intermediate_size_per_partition=INTER, num_experts=E, num_local_experts=E, experts_per_token=2,
        activation=SimpleNamespace(name="SILU"), swiglu_limit=None,
        activation_situ_beta=4.0, activation_situ_linear_beta=25.0, moe_parallel_config=SimpleNamespace(tp_size=1),
    )  # fmt: skip
    return SimpleNamespace(**config | changes)


REFUSALS = {
    "backend": (dict(moe_backend="marlin"), "--moe-backend is marlin"),
    "dtype": (dict(in_dtype=torch.float16), "dtype is torch.float16; it must be torch.bfloat16"),
    "lora": (dict(is_lora_enabled=True), "LoRA"),
    "hidden": (dict(hidden_dim=72), "hidden_size is 72; "),
    "intermediate": (dict(intermediate_size_per_partition=24), "intermediate_size is 24; "),
    "top_k": (dict(experts_per_token=E + 1), "top_k is 4"),
    "experts": (dict(num_local_experts=E + 1), "num_local_experts"),
}


@pytest.fixture
def on_cpu(monkeypatch):
    from nvfp4_moe.plugin import experts, linear, support

    for module in (experts, linear):
        monkeypatch.setattr(module.current_platform, "device_type", "cpu", raising=False)
    monkeypatch.setattr(support, "load_refusal", lambda: None)
    monkeypatch.setattr(support, "has_fp4_tensor_cores", lambda: False)
    monkeypatch.setattr(support, "batch_invariant", lambda: False)


@pytest.mark.parametrize("case", REFUSALS)
def test_experts_refuse(on_cpu, case):
    from nvfp4_moe.plugin.experts import config_refusal

    assert config_refusal(moe_config()) is None
    changes, text = REFUSALS[case]
    assert text in config_refusal(moe_config(**changes))


# vLLM's name of an activation, and what it is: kind, limit, alpha, beta. Layers have alpha 1.5 and beta 0.5.
ACTIVATIONS = {
    "SILU": ("swiglu", 0.0, 1.0, 0.0),
    "SWIGLUOAI": ("swiglu", 7.0, 1.702, 1.0),
    "SWIGLUOAI_UNINTERLEAVE": ("swiglu", 0.0, 1.5, 0.5),
    "SWIGLUSTEP": ("swiglu_step", 7.0, 1.0, 0.0),
    "SITU": ("situ", 25.0, 1.0, 4.0),
    "GELU_TANH": ("gelu_tanh", 0.0, 1.0, 0.0),
    "GELU": ("gelu", 0.0, 1.0, 0.0),
    "RELU2_NO_MUL": ("relu2", 0.0, 1.0, 0.0),
    "SILU_NO_MUL": ("silu", 0.0, 1.0, 0.0),
}


@pytest.mark.parametrize("name", [*ACTIVATIONS, "RELU2", "GELU_NO_MUL", "GELU_TANH_NO_MUL"])
def test_vllms_activations_by_name(on_cpu, name):
    from nvfp4_moe import Layer
    from nvfp4_moe.plugin import experts

    config = moe_config(activation=SimpleNamespace(name=name), has_bias=True)
    assert experts.Nvfp4MoeExperts._supports_activation(config.activation) == (name in ACTIVATIONS)
    if name not in ACTIVATIONS:
        return
    assert experts.config_refusal(config) is None
    numbers = experts.activation_options(config, SimpleNamespace(swiglu_alpha=1.5, swiglu_beta=0.5))
    options = experts.layer_options(config) | numbers
    given = (
        options["activation"],
        *(options.get(f"swiglu_{n}", d) for n, d in (("limit", 0), ("alpha", 1), ("beta", 0))),
    )
    assert given == ACTIVATIONS[name]
    Layer(**options).close()  # the library has what was named


def test_gpt_oss_is_dealt_in_whole_blocks(on_cpu):
    """A rank's 40 values of MXFP4 are two blocks, the second not full; NVFP4's ranks cannot share a block."""
    from nvfp4_moe.plugin.experts import block_refusal, config_refusal

    part = moe_config(
        activation=SimpleNamespace(name="SWIGLUOAI"), intermediate_size_per_partition=40, intermediate_size=96
    )
    assert config_refusal(part, "MXFP4") is None
    assert block_refusal(part) is None
    assert "intermediate_size is 40" in config_refusal(part, "NVFP4")


def test_the_same_bits_in_every_batch(on_cpu, monkeypatch):
    """By row tiles of one order; calibration, after which bits change, is refused."""
    from nvfp4_moe.plugin import experts, support

    monkeypatch.setattr(support, "batch_invariant", lambda: True)
    assert experts.Nvfp4MoeExperts._supports_batch_invariance()
    assert experts.layer_options(moe_config())["tile_rows"] == experts.ONE_ORDER
    assert experts.config_refusal(moe_config()) is None
    monkeypatch.setenv("NVFP4_MOE_MODE", "nvfp4")
    monkeypatch.setenv("NVFP4_MOE_SCALES", "calibrated")
    assert "VLLM_BATCH_INVARIANT is set, and NVFP4_MOE_SCALES is calibrated" in experts.config_refusal(moe_config())


def test_mxfp4_has_a_mode_of_its_own(on_cpu, monkeypatch):
    from nvfp4_moe.plugin import support

    mode, reason = support.resolved_moe_mode("MXFP4")
    assert mode == "bf16"
    assert "NVFP4_MOE_MXFP4_MODE=fp8" in reason
    monkeypatch.setenv("NVFP4_MOE_MODE", "nvfp4")
    assert support.resolved_moe_mode("MXFP4") == ("nvfp4", "NVFP4_MOE_MODE asks for it")
    monkeypatch.setenv("NVFP4_MOE_MXFP4_MODE", "fp8")
    assert support.resolved_moe_mode("MXFP4") == ("fp8", "NVFP4_MOE_MXFP4_MODE asks for it")
    assert support.resolved_moe_mode("NVFP4") == ("nvfp4", "NVFP4_MOE_MODE asks for it")


@pytest.mark.parametrize("load_format", ["auto", "dummy", "ipc_cache"])
def test_weights_that_a_daemon_has_repacked_are_not_ours(monkeypatch, load_format):
    import vllm.config

    from nvfp4_moe.plugin import support

    config = SimpleNamespace(load_config=SimpleNamespace(load_format=load_format))
    monkeypatch.setattr(vllm.config, "get_current_vllm_config_or_none", lambda: config, raising=False)
    assert bool(support.load_refusal()) == (load_format == "ipc_cache")
    monkeypatch.setitem(sys.modules, support.WEIGHT_DAEMON, sys)
    assert support.load_refusal()


# ---- Linears ---------------------------------------------------------------------------------------------------------


def linear_layer(**changes):
    layer = dict(
        prefix="model.layers.0.o_proj", params_dtype=torch.bfloat16, input_size_per_partition=64,
        output_size_per_partition=48, weight=torch.zeros(48, 32, dtype=torch.uint8),
        weight_scale=torch.full((48, 4), 0x38, dtype=torch.uint8), logical_widths=[48],
        nvfp4_moe_part_scales=torch.ones(1), nvfp4_moe_input_scales={},
    )  # fmt: skip
    return SimpleNamespace(**{name: value for name, value in (layer | changes).items() if value is not None})


class VllmsOwn:
    def process_weights_after_loading(self, layer):
        layer.processed = True

    def apply_weights(self, layer, x, bias):
        return "vLLM's"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (dict(params_dtype=torch.float16), "dtype is torch.float16; it must be torch.bfloat16"),
        (dict(input_size_per_partition=72), "in_features is 72; "),
        (dict(nvfp4_moe_part_scales=None, scheme=VllmsOwn()), "VllmsOwn is a quantisation method"),
    ],
    ids=["dtype", "size", "method"],
)
def test_a_linear_that_is_not_ours_has_the_kernel_that_vllm_would_choose(on_cpu, refused, monkeypatch, changes, why):
    from nvfp4_moe.plugin import linear

    def vllms_choice():
        assert linear.Nvfp4MoeLinearKernel.is_supported() == (False, "vLLM is asked what it would choose alone")
        return VllmsOwn()

    monkeypatch.setattr(linear.vllm_linear, "init_nvfp4_linear_kernel", vllms_choice, raising=False)
    monkeypatch.setattr(linear, "get_current_vllm_config_or_none", lambda: None)
    kernel, layer = linear.Nvfp4MoeLinearKernel(None), linear_layer(**changes)
    kernel.process_weights_after_loading(layer)
    assert layer.processed
    assert kernel.apply_weights(layer, None) == "vLLM's"
    assert len(refused) == 1
    assert refused[0].startswith(why)
    assert linear.Nvfp4MoeLinearKernel.is_supported() == (True, None)


def test_a_linear_of_ours(on_cpu, monkeypatch):
    from nvfp4_moe.plugin import linear, log

    monkeypatch.setattr(log, "linears_active", lambda kernel: None)
    monkeypatch.setattr(linear, "get_current_vllm_config_or_none", lambda: None)
    kernel, layer = linear.Nvfp4MoeLinearKernel(None), linear_layer()
    kernel.process_weights_after_loading(layer)
    assert kernel.apply_weights(layer, torch.ones(2, 3, 64, dtype=torch.bfloat16)).shape == (2, 3, 48)
