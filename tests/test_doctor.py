# SPDX-License-Identifier: Apache-2.0
"""`python -m nvfp4_moe doctor env`, where there is no vLLM, and what it says of every kind of layer."""

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoints import make_checkpoint
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
CONFIG = {
    "model_type": "deepseek_v4",
    "torch_dtype": "bfloat16",
    "num_experts_per_tok": 1,
    "swiglu_limit": 10.0,
    "quantization_config": {"quant_method": "fp8", "moe_quant_algo": "NVFP4"},
}


def tensor(name: str) -> torch.Tensor:
    """Of the dtype and shape that such a name has, for matrices of 16 x 16."""
    part = name.rpartition(".")[2]
    if part in ("weight_scale_2", "weight_global_scale", "input_scale", "input_global_scale"):
        return torch.tensor(0.01)
    if name == "norm.weight":
        return torch.zeros(16)
    if part == "weight_scale":
        return torch.ones(16, 1).to(torch.float8_e4m3fn)
    if part == "scale" or name.endswith("wo_a.weight"):
        return torch.zeros(16, 16).to(torch.float8_e4m3fn) if part == "weight" else torch.ones(1, 1)
    return torch.zeros(16, 16).bfloat16() if name == "embed.weight" else torch.zeros(16, 8, dtype=torch.uint8)


def write_model(directory: Path, names: list[str] = NAMES, **changes) -> Path:
    directory.mkdir(exist_ok=True)
    save_file({name: tensor(name) for name in names}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))
    return directory


MODULES = model.look(str(write_model(Path(tempfile.mkdtemp())))).modules


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in (*settings.VARIABLES, "VLLM_DISABLED_KERNELS", "VLLM_PLUGINS"):
        monkeypatch.delenv(name, raising=False)


def backends(question: Namespace = QUESTION, refusals: tuple[str, ...] = (), dtype: str = "bfloat16") -> dict[str, str]:
    """Module name to who serves it."""
    return {m.name: env.backend_of(m, dtype, list(refusals), question)[0] for m in MODULES}


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
    answers = {m.name: env.backend_of(m, "bfloat16", [], QUESTION) for m in MODULES}
    for name in EXPERTS:
        assert answers[name][0] == "nvfp4_moe"
        assert answers[name][1].startswith("activations fp8; loading refuses block scales that are no powers of two")
    for name in LINEARS:
        assert answers[name] == ("nvfp4_moe", "activations bf16, because mode fp8 is for MoE layers")
    monkeypatch.setenv("NVFP4_MOE_FP8_MAX_ERROR", "0.04")
    rounded = env.backend_of(next(m for m in MODULES if m.name in EXPERTS), "bfloat16", [], QUESTION)
    assert rounded[1].startswith("activations fp8; weights rounded to e4m3, where that costs no more than 0.04")
    assert support.resolved_mode("fp8") == ("fp8", "NVFP4_MOE_MODE asks for it")
    mode, reason = support.resolved_linear_mode("fp8")
    assert (mode, "fp8, which is for MoE layers" in reason) == ("bf16", True)
    assert support.resolved_linear_mode("nvfp4") == support.resolved_mode("nvfp4")


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
    if "torch" in missing:
        assert "not looked at, because the reader needs torch" in out
        return
    assert "deepseek_v4, fp8" in out
    lines = [line.split() for line in out.splitlines() if " x " in line]
    assert ["2", "x", "layers.*.ffn.experts", "nvfp4", "vllm:", "the", "plugin", "is", "not", "active"] in lines
    assert sum(int(line[0]) for line in lines) == len(MODULES)


def report(directory, capsys) -> str:
    """What is printed of a model; its exit status tells whether it could be read."""
    capsys.readouterr()
    env.print_model(str(directory), [], QUESTION)
    return capsys.readouterr().out


def experts_line(directory, capsys) -> str:
    lines = [line for line in report(directory, capsys).splitlines() if "experts  " in line and " x " in line]
    assert len(lines) == 1, lines
    return lines[0]


ONE_LAYER = [name for name in NAMES if name.startswith("layers.0.ffn")]


def test_what_is_no_checkpoint_gets_a_sentence(tmp_path, capsys):
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("{}")
    lfs = write_model(tmp_path / "lfs", ONE_LAYER)
    (lfs / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    null = write_model(tmp_path / "null", ONE_LAYER)
    (null / "config.json").write_text("null")
    for given, text in [
        ("nvidia/Some-Model-NVFP4", "a model that is only on a hub has to be downloaded first"),
        (file, "it must be a readable directory"),
        (empty, "checkpoint is a directory without weights"),
        (lfs, "model.safetensors is a git-lfs pointer"),
        (null, "config.json is null; it must be a JSON object"),
        ("a\x1b[2J" + "b" * 5000, "a\\x1b[2Jbbb"),
    ]:
        assert not env.print_model(str(given), [], QUESTION)
        out = capsys.readouterr().out
        assert text in out, out
        assert out.count("\n") == 2, out
        assert "\x1b" not in out, out
        assert len(out) < 1500, out


def test_it_reads_what_inspect_reads(tmp_path, capsys):
    assert "deepseek_v4, not quantised" in report(write_model(tmp_path, ONE_LAYER, quantization_config=None), capsys)
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    assert "deepseek_v4, NVFP4" in report(tmp_path, capsys)
    nested = {"text_config": {"torch_dtype": "float16", "num_experts_per_tok": 1}, "torch_dtype": None}
    assert "float16, and experts take bf16" in experts_line(write_model(tmp_path, ONE_LAYER, **nested), capsys)

    shard, other = "model-1.safetensors", "model-2.safetensors"
    directory = write_model(tmp_path / "sharded", ONE_LAYER)
    (directory / "model.safetensors").rename(directory / shard)
    index = dict.fromkeys(ONE_LAYER, shard) | {"layers.1.attn.wq_a.weight": other}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    save_file(
        {name.replace("layers.0", "a.layers.0"): tensor(name) for name in ONE_LAYER}, directory / "more.safetensors"
    )
    out = report(directory, capsys)
    assert f"{other} is missing; the index places 1 tensors in it" in out
    assert "more.safetensors is in the directory and not read" in out
    assert out.count("ffn.experts") == 1


def test_experts_are_counted_and_named_in_any_naming(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NVFP4_MOE_MODE", "nvfp4")
    for gone in (0, 1):
        names = [name for name in ONE_LAYER if not (f"experts.{gone}." in name and name.endswith("input_scale"))]
        line = experts_line(write_model(tmp_path / f"gone{gone}", names), capsys)
        assert "but 3 of 6 matrices lack an input_scale" in line

    directory = write_model(tmp_path / "stacked", [])
    stem = "model.layers.3.mlp.experts"
    stacks = {
        f"{stem}.gate_up_proj": torch.zeros(2, 32, 8, dtype=torch.uint8),
        f"{stem}.gate_up_proj_weight_scale": torch.ones(2, 32, 1).to(torch.float8_e4m3fn),
        f"{stem}.down_proj": torch.zeros(2, 16, 8, dtype=torch.uint8),
        f"{stem}.down_proj_weight_scale": torch.ones(2, 16, 1).to(torch.float8_e4m3fn),
        **{f"{stem}.{name}_weight_scale_2": torch.tensor(0.1) for name in ("gate_up_proj", "down_proj")},
        **{f"{stem}.{name}_input_scale": torch.tensor(0.1) for name in ("gate_up_proj", "down_proj")},
    }
    save_file(stacks, directory / "model.safetensors")
    assert "model.layers.*.mlp.experts  nvfp4         nvfp4_moe: activations nvfp4" in experts_line(directory, capsys)


def test_what_kernels_lack_stays_vllms(tmp_path, capsys):
    relu = write_model(tmp_path / "relu", ONE_LAYER, hidden_activation="relu")
    assert "vllm: hidden_activation in config.json is relu; " in experts_line(relu, capsys)
    ungated = [name for name in ONE_LAYER if ".w3." not in name]
    assert "vllm: the experts have no gate" in experts_line(write_model(tmp_path / "up", ungated), capsys)


@pytest.mark.parametrize(
    ("model_type", "method"), [("gpt_oss", "mxfp4"), ("deepseek_v41", "fp8"), ("kimi_k3", "compressed-tensors")]
)
def test_models_that_are_published_in_mxfp4_are_ours(model_type, method):
    config = {"model_type": model_type, "quant_method": method, "moe_quant_algo": None}
    assert model.refusal_of({"refusal": None, "format": "mxfp4"}, config) is None
    assert "leaves MXFP4 alone under quant_method quark" in model.refusal_of(
        {"refusal": None, "format": "mxfp4"}, config | {"quant_method": "quark"}
    )


@pytest.mark.parametrize(("format", "served"), [("deepseek-v4-original", True), ("deepseek-v4-mixed", False)])
def test_mxfp4_experts_are_ours_where_vllm_has_a_method_that_we_know(tmp_path, format, served):
    """In NVIDIA's mixed files those of the multi-token-prediction layer are MXFP4, for which vLLM builds NVFP4."""
    make_checkpoint.main([str(tmp_path), "--format", format, "--layers", "1"])
    found = {m.name: m for m in model.look(str(tmp_path)).modules if m.format == "mxfp4"}
    assert found.keys() == {"mtp.0.ffn.experts"} | ({"layers.0.ffn.experts"} if served else set())
    for module in found.values():
        backend, reason = env.backend_of(module, "bfloat16", [], QUESTION)
        assert (backend == "nvfp4_moe") == served
        assert served or reason == "this plugin leaves MXFP4 alone under quant_method fp8 with moe_quant_algo NVFP4"
