"""`python -m nvfp4_moe doctor env`, where there is no vLLM, and what it says of every kind of layer."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nvfp4_moe.doctor import env, model
from nvfp4_moe.plugin import settings, support

ROOT = Path(__file__).parents[1]
QUESTION = Namespace(model=None, device="cpu", moe_backend="auto", linear_backend="auto")

NVFP4 = ("weight", "weight_scale", "weight_scale_2", "input_scale")
COMPRESSED = ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale")
NAMES = [
    "embed.weight",
    "norm.weight",
    *(f"layers.{layer}.attn.{name}.{part}" for layer in (0, 1) for name in ("wq_a", "wkv") for part in NVFP4),
    *(f"layers.{layer}.attn.wo_a.{part}" for layer in (0, 1) for part in ("weight", "scale")),
    *(f"layers.{layer}.attn.wo_b.{part}" for layer in (0, 1) for part in NVFP4[:3]),
    *(f"layers.0.ffn.experts.{e}.{name}.{part}" for e in (0, 1) for name in ("w1", "w2", "w3") for part in NVFP4),
    *(f"layers.1.ffn.experts.{e}.{name}.{part}" for e in (0, 1) for name in ("w1", "w2", "w3") for part in COMPRESSED),
]
DIMS = {name: 1 if name == "norm.weight" else 2 for name in NAMES}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in (*settings.VARIABLES, "VLLM_DISABLED_KERNELS", "VLLM_PLUGINS"):
        monkeypatch.delenv(name, raising=False)


def backends(question: Namespace = QUESTION, refusals: tuple[str, ...] = (), dtype: str = "bfloat16") -> dict[str, str]:
    """Module name to who serves it."""
    return {m.name: env.backend_of(m, dtype, list(refusals), question)[0] for m in model.modules(DIMS)}


def changed(**changes) -> dict[str, str]:
    """The answers that differ from those to the plain question."""
    plain, other = backends(), backends(**changes)
    return {name: backend for name, backend in other.items() if plain[name] != backend}


LINEARS = {f"layers.{layer}.attn.{name}": "vllm" for layer in (0, 1) for name in ("wq_a", "wkv")}
EXPERTS = {f"layers.{layer}.ffn.experts": "vllm" for layer in (0, 1)}


def test_who_serves_what():
    ours = {name for name, backend in backends().items() if backend == "nvfp4_moe"}
    assert ours == LINEARS.keys() | EXPERTS.keys()  # FP8, W4A16 and unquantised modules stay vLLM's
    others = {f"layers.{layer}.attn.{name}" for layer in (0, 1) for name in ("wo_a", "wo_b")}
    assert backends().keys() == ours | others | {"embed"}


def test_what_the_user_asked_for_wins(monkeypatch):
    assert changed(question=Namespace(**vars(QUESTION) | {"moe_backend": "marlin"})) == EXPERTS
    assert changed(question=Namespace(**vars(QUESTION) | {"linear_backend": "marlin"})) == LINEARS
    assert changed(dtype="float16") == EXPERTS
    assert changed(refusals=("switched off",)) == LINEARS | EXPERTS
    plain = backends()
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "Other,Nvfp4MoeLinearKernel")
    assert backends() == plain | LINEARS


def test_globs_of_the_override_list_match_names_as_vllm_fuses_them(monkeypatch):
    plain = backends()
    monkeypatch.setenv("NVFP4_MOE_BF16_LINEARS", "*.1.attn.fused_wqa_wkv")
    assert backends() == plain | {"layers.1.attn.wq_a": "torch", "layers.1.attn.wkv": "torch"}


def test_mode_fp8_is_for_experts_and_linears_are_bf16(monkeypatch):
    monkeypatch.setenv("NVFP4_MOE_MODE", "fp8")
    answers = {m.name: env.backend_of(m, "bfloat16", [], QUESTION) for m in model.modules(DIMS)}
    for name in EXPERTS:
        assert answers[name][0] == "nvfp4_moe"
        assert answers[name][1].startswith("activations fp8; loading refuses block scales that are no powers of two")
    for name in LINEARS:
        assert answers[name] == ("nvfp4_moe", "activations bf16, because mode fp8 is for MoE layers")
    assert support.resolved_mode("fp8") == ("fp8", "NVFP4_MOE_MODE asks for it")
    mode, reason = support.resolved_linear_mode("fp8")
    assert (mode, "fp8, which is for MoE layers" in reason) == ("bf16", True)
    assert support.resolved_linear_mode("nvfp4") == support.resolved_mode("nvfp4")


def write_model(directory: Path) -> Path:
    save_file({name: torch.zeros([1] * dims) for name, dims in DIMS.items()}, directory / "model.safetensors")
    quantization = {"quant_method": "fp8", "moe_quant_algo": "NVFP4"}
    config = {"model_type": "deepseek_v4", "torch_dtype": "bfloat16", "quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


# Blocks what a bare machine lacks, then runs the command.
BARE = "import sys, runpy; sys.modules |= dict.fromkeys({missing}); sys.argv[1:] = ['doctor', 'env', *sys.argv[1:]]; "
BARE += "runpy.run_module('nvfp4_moe', run_name='__main__')"


@pytest.mark.parametrize("missing", [("vllm",), ("vllm", "torch")])
def test_without_vllm_it_says_so_and_exits_1(tmp_path, missing):
    done = subprocess.run(
        [sys.executable, "-c", BARE.format(missing=missing), str(write_model(tmp_path)), "--device", "cpu"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "vllm_plugin")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    out = done.stdout
    assert "plugin     NOT active" in out
    assert "vllm is not installed; install 0.26 to 0.33." in out
    assert ("device     cpu: usable" in out) == ("torch" not in missing)
    assert "deepseek_v4, fp8" in out
    lines = [line.split() for line in out.splitlines() if " x " in line]
    assert ["2", "x", "layers.*.ffn.experts", "nvfp4", "vllm:", "the", "plugin", "is", "not", "active"] in lines
    assert sum(int(line[0]) for line in lines) == len(model.modules(DIMS))
