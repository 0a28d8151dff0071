# SPDX-License-Identifier: Apache-2.0
"""A Qwen3-MoE that NVIDIA ModelOpt quantised, MoE and linears, served on the CPU in every mode of activations."""

import json
import re

import agreement
import pytest
import reload_check
from qwen3_moe import CONFIG, NVFP4_FLAVOURS

LAYERS = CONFIG["num_hidden_layers"]


@pytest.fixture(scope="module")
def served(serve, qwen3_moe):
    return {flavour: serve(qwen3_moe[flavour], "--alone") for flavour in NVFP4_FLAVOURS}


@pytest.mark.parametrize("flavour", NVFP4_FLAVOURS)
def test_moe_and_linears_are_ours_and_say_so(served, flavour):
    assert served[flavour]["served_by"] == {"moe": ["Nvfp4MoeExperts"], "linear": ["Nvfp4Linear"]}
    output = served[flavour]["output"]
    assert output.count("ACTIVE for NVFP4 MoE") == 1
    assert output.count("ACTIVE for NVFP4 linears") == 1


def test_flavours_give_identical_tokens(served):
    assert served["modelopt"]["tokens"] == served["compressed-tensors"]["tokens"]


def test_tokens_are_those_of_the_float32_reference(served, judge, qwen3_moe):
    agreement.check("Qwen3-MoE", judge(qwen3_moe["float32"], served["modelopt"]))


def test_a_model_in_several_files_has_the_logits_of_one_in_one_file(serve, served, qwen3_moe):
    """Bit for bit, all of them."""
    shards = serve(qwen3_moe["shards"], "--alone")
    assert len(list(qwen3_moe["shards"].glob("*.safetensors"))) == 5
    assert shards["logits"] == served["modelopt"]["logits"]
    assert shards["tokens"] == served["modelopt"]["tokens"]


def test_concurrent_requests_give_the_tokens_they_give_alone(served):
    assert served["modelopt"]["alone"] == served["modelopt"]["tokens"]


def check_same(served: dict, judge, model, label: str, tokens: list[list[int]]) -> None:
    """The rule of agreement.py between the only rank and several."""
    agreement.check_same(label, judge(model, served), served["tokens"], tokens)


def test_two_stages_give_the_tokens_of_one(serve, served, judge, qwen3_moe):
    """Each holds half of the layers, and says so."""
    stages = serve(qwen3_moe["modelopt"], "--options", '{"pipeline_parallel_size": 2}')
    assert stages["output"].count("ACTIVE for NVFP4 MoE") == 2
    check_same(served["modelopt"], judge, qwen3_moe["float32"], "Qwen3-MoE, two stages", stages["tokens"])


def test_ranks_that_exchange_tokens_give_those_of_one(serve_shared, served, judge, qwen3_moe):
    """Attention under data parallel, experts under expert parallel; one rank has less to do, and idles in the end."""
    ranks = serve_shared(qwen3_moe["modelopt"], "0:3", "3:4")
    assert all("ACTIVE for NVFP4 MoE" in rank["output"] for rank in ranks)
    tokens = [row for rank in ranks for row in rank["tokens"]]
    check_same(served["modelopt"], judge, qwen3_moe["float32"], "Qwen3-MoE, exchanged tokens", tokens)


def test_experts_that_the_balancer_moves_while_serving_change_no_token(serve, served, judge, qwen3_moe):
    """EPLB of two ranks, with two experts' replicas: vLLM's own balancer and its own moves, every few steps."""
    eplb = {"window_size": 8, "step_interval": 8, "num_redundant_experts": 2, "use_async": False}
    options = {"tensor_parallel_size": 2, "enable_expert_parallel": True, "enable_eplb": True}
    options["eplb_config"] = eplb | {"communicator": "torch_nccl"}  # of tensors on a CPU it takes gloo
    moving = serve(qwen3_moe["modelopt"], "--again", "--options", json.dumps(options), NVFP4_MOE_TEST_EPLB="1")
    assert moving["output"].count("ACTIVE for NVFP4 MoE") == 2
    moved = [int(places) for places in re.findall(r"EPLB: (\d+) of 54 places have another expert", moving["output"])]
    assert sum(places > 0 for places in moved) >= 4
    judged = judge(qwen3_moe["float32"], served["modelopt"])
    for text in ("tokens", "again"):
        label = f"Qwen3-MoE, {sum(moved)} moves, {text}"
        agreement.check_same(label, judged, served["modelopt"]["tokens"], moving[text])


def test_a_model_of_transformers_own_code_is_served_as_well(serve, judge, qwen3_moe):
    """vLLM's other implementation of every model, whose layers of experts are of a class of their own.

    Its code rounds in more places than vLLM's, as cosines and sines of positions to bf16. That the layer's bits are the
    same is in test_layer_classes.py.
    """
    served = serve(qwen3_moe["modelopt"], "--options", '{"model_impl": "transformers"}')
    assert served["served_by"] == {"moe": ["Nvfp4MoeExperts"], "linear": ["Nvfp4Linear"]}
    judged = judge(qwen3_moe["float32"], served)
    agreement.check_lossy("Qwen3-MoE, Transformers' code", judged, most=agreement.MOST)


def test_without_the_moe_tokens_change(serve, served, qwen3_moe):
    zeroed = serve(qwen3_moe["modelopt"], NVFP4_MOE_TEST_ZERO_MOE="1")
    pairs = zip(zeroed["tokens"], served["modelopt"]["tokens"], strict=True)
    assert all(without != with_moe for without, with_moe in pairs)


def test_chosen_linears_run_in_bf16_and_the_log_has_the_saturation(serve, judge, qwen3_moe):
    """Two of the layers' projections on the override list: the rest stays ours, and the model stays the same."""
    served = serve(qwen3_moe["modelopt"], NVFP4_MOE_BF16_LINEARS="*.0.self_attn.qkv_proj, *.o_proj")
    assert served["served_by"]["linear"] == ["Bf16Linear", "Nvfp4Linear"]
    reports = [line for line in served["output"].splitlines() if "is bf16 by NVFP4_MOE_BF16_LINEARS" in line]
    assert len(reports) == 1 + LAYERS
    assert all("would have saturated" in line and "blocks in the first request" in line for line in reports)
    agreement.check("Qwen3-MoE, some linears in bf16", judge(qwen3_moe["float32"], served))


def test_compiled_as_vllm_compiles_by_default_the_model_stays_the_same(serve, judge, qwen3_moe, tmp_path):
    """Without enforce_eager, vLLM traces the linears' ops through their fakes and compiles around them, whole."""
    options = ("--options", '{"enforce_eager": false}')
    environment = {"TORCHDYNAMO_DISABLE": "0", "VLLM_CACHE_ROOT": str(tmp_path)}
    served = serve(qwen3_moe["modelopt"], *options, **environment)
    assert "saved AOT compiled function" in served["output"]
    assert served["served_by"] == {"moe": ["Nvfp4MoeExperts"], "linear": ["Nvfp4Linear"]}
    agreement.check("Qwen3-MoE, compiled", judge(qwen3_moe["float32"], served))


def test_calibration_measures_the_first_requests_and_its_file_repeats_it(serve, qwen3_moe, tmp_path):
    scales = tmp_path / "scales.json"
    environment = {
        "NVFP4_MOE_MODE": "nvfp4",
        "NVFP4_MOE_SCALES": "calibrated",
        "NVFP4_MOE_SCALES_FILE": str(scales),
        "NVFP4_MOE_CALIBRATION_TOKENS": "128",
    }
    first = serve(qwen3_moe["modelopt"], **environment)
    assert "calibrated on the first requests" in first["output"]
    saved = json.loads(scales.read_text())["input_scales"]
    assert len(saved) == 3 * LAYERS  # experts, qkv_proj, o_proj
    assert sorted({len(values) for values in saved.values()}) == [1, 2]
    assert all(1e-6 < value < 1 for values in saved.values() for value in values)
    # The prompts were calibrated on, in bf16; now they run in four bits from the start, with the scales of the file.
    second = serve(qwen3_moe["modelopt"], "--alone", **environment)
    assert f"input scales of {len(saved)} layers read from" in second["output"]
    assert second["tokens"] == second["alone"]
    assert second["tokens"] != first["tokens"]


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_four_bit_activations_serve(serve, served, qwen3_moe, policy):
    """W4A4 rounds much more than bf16, so tokens may differ; but the model still runs on our layer, and says how."""
    four_bit = serve(qwen3_moe["modelopt"], NVFP4_MOE_MODE="nvfp4", NVFP4_MOE_SCALES=policy)
    assert f"mode nvfp4, input scales {policy}, because NVFP4_MOE_MODE asks for it" in four_bit["output"]
    assert four_bit["tokens"] != served["modelopt"]["tokens"]
    assert len({token for tokens in four_bit["tokens"] for token in tokens}) > 20  # it does not babble one token


def test_weights_loaded_again_while_serving_are_the_new_models(serve, served, qwen3_moe):
    """Twice to another model, where the first one's were; then experts move, as under EPLB."""
    reloaded = serve(qwen3_moe["modelopt"], "--reload", str(qwen3_moe["rotated"]))
    fresh = serve(qwen3_moe["rotated"])
    first = served["modelopt"]["tokens"]
    reload_check.check(reloaded, first, fresh["tokens"], num_moe=LAYERS, num_linears=2 * LAYERS)
