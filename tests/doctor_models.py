# SPDX-License-Identifier: Apache-2.0
"""A small healthy model directory, and the faults that are planted in it for the commands that need no vLLM.

A plant is (name, what it does to tensors and config, the finding it must cause). To add one, add a line.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS, EXPERTS, HIDDEN, INTER, VOCAB = 4, 2, 32, 32, 64
CONFIG = {
    "model_type": "deepseek_v4",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": LAYERS,
    "num_hash_layers": 1,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 1,
    "compress_ratios": [0, 4, 128, 4],
    "swiglu_limit": 10.0,
    "quantization_config": {"quant_method": "fp8", "moe_quant_algo": "NVFP4"},
}


def matrix(name: str, rows: int, cols: int, input_scale: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """An NVFP4 matrix in ModelOpt's naming."""
    return {
        f"{name}.weight": torch.randint(0, 256, (rows, cols // 2), dtype=torch.uint8, generator=generator),
        f"{name}.weight_scale": (torch.rand(rows, cols // 16, generator=generator) * 40 + 1).to(torch.float8_e4m3fn),
        f"{name}.weight_scale_2": torch.tensor(0.01),
        f"{name}.input_scale": torch.tensor(input_scale),
    }


def healthy() -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, config): norms near 1, input scales that decode amax 5 to 10, growing with the layer."""
    g = torch.Generator().manual_seed(0)
    tensors = {"embed.weight": torch.randn(VOCAB, HIDDEN, generator=g).bfloat16()}
    tensors |= {"norm.weight": torch.ones(HIDDEN).bfloat16(), "head.weight": tensors["embed.weight"].clone()}
    tensors |= {f"hc_head_{part}": torch.ones(4) for part in ("fn", "base", "scale")}
    for layer in range(LAYERS):
        scale = 0.002 * (1 + 0.1 * layer)
        for norm in ("attn_norm", "ffn_norm"):
            tensors[f"layers.{layer}.{norm}.weight"] = (1 + 0.1 * torch.rand(HIDDEN, generator=g)).bfloat16()
        tensors |= matrix(f"layers.{layer}.attn.wq_a", HIDDEN, HIDDEN, scale, g)
        for expert in range(EXPERTS):
            stem = f"layers.{layer}.ffn.experts.{expert}"
            for name in ("w1", "w3", "w2"):
                tensors |= matrix(f"{stem}.{name}", HIDDEN, INTER, scale * (1 + 0.01 * expert), g)
    tensors["layers.0.ffn.gate.tid2eid"] = torch.zeros(VOCAB, 1, dtype=torch.int32)
    return tensors, json.loads(json.dumps(CONFIG))


def write(directory: Path, tensors: dict, config: dict) -> Path:
    """A model directory of one file."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def write_indexed(directory: Path, tensors: dict, config: dict) -> Path:
    """The same in two shards with an index."""
    write(directory, tensors, config)
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-0000{1 + (at >= len(names) // 2)}-of-00002.safetensors" for at, name in enumerate(names)}
    for file in set(places.values()):
        save_file({n: tensors[n].contiguous() for n in names if places[n] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return directory


def flash(directory: Path) -> Path:
    """DeepSeek-V4's vocabulary and contract, and an end that generation_config.json alone names."""
    tensors, config = healthy()
    write(directory, tensors, config | {"vocab_size": 129280, "num_attention_heads": 8, "eos_token_id": 0})
    (directory / "generation_config.json").write_text('{"eos_token_id": 1}')
    (directory / "encoding").mkdir()
    (directory / "encoding" / "encoding_dsv4.py").write_text("REASONING_EFFORT_PROMPTS = {}")
    return directory


EXPERT = "layers.2.ffn.experts.1.w1"


def set_scale(pattern: str, factor: float):
    """Multiply every input scale whose name has the pattern."""

    def plant(tensors: dict, config: dict) -> None:
        for name in tensors:
            if pattern in name and name.endswith("input_scale"):
                tensors[name] = tensors[name] * factor

    return plant


def put(name: str, value: torch.Tensor):
    return lambda tensors, config: tensors.update({name: value})


def take(*names: str):
    return lambda tensors, config: [tensors.pop(name) for name in names]


def configure(**changes):
    return lambda tensors, config: config.update(changes)


def one_nan(name: str):
    def plant(tensors: dict, config: dict) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name].view(torch.uint8)[1, 1] = 0x7F

    return plant


def double_up_scale(tensors: dict, config: dict) -> None:
    tensors["layers.1.ffn.experts.0.w3.weight_scale_2"] = torch.tensor(0.02)


PLANTED = [
    ("input scale 1000 times too small, all experts", set_scale("layers.2.ffn", 1e-3), "input-scale-outlier"),
    ("input scale 1000 times too small, one linear", set_scale("layers.2.attn.wq_a", 1e-3), "input-scale-outlier"),
    ("calibrated amax 0.54 before all layers' q", set_scale("attn.wq_a", 0.1), "input-scale-below-norm"),
    ("calibrated amax 0.54 before all experts", set_scale("ffn.experts", 0.1), "input-scale-below-norm"),
    ("input scale 2000 times too large", set_scale("layers.2.attn.wq_a", 2e3), "input-scale-outlier"),
    ("input scale NaN, one expert", put(f"{EXPERT}.input_scale", torch.tensor(float("nan"))), "unusable-input-scale"),
    ("input scale 0, one expert", put(f"{EXPERT}.input_scale", torch.tensor(0.0)), "unusable-input-scale"),
    ("input scale missing, one expert", take(f"{EXPERT}.input_scale"), "missing-input-scale"),
    ("input scale a placeholder", put(f"{EXPERT}.input_scale", torch.tensor(1.0)), "placeholder-input-scale"),
    ("input scale Inf, one linear", set_scale("layers.2.attn.wq_a", float("inf")), "unusable-scale"),
    ("NaN in one block scale of one expert", one_nan(f"{EXPERT}.weight_scale"), "refused-layer"),
    ("NaN in one block scale of a linear", one_nan("layers.2.attn.wq_a.weight_scale"), "bad-block-scales"),
    (
        "block scales all 0",
        put(f"{EXPERT}.weight_scale", torch.zeros(32, 2).to(torch.float8_e4m3fn)),
        "zero-block-scales",
    ),
    ("global scale missing", take(f"{EXPERT}.weight_scale_2"), "refused-layer"),
    ("block scales of a linear missing", take("layers.2.attn.wq_a.weight_scale"), "orphan-tensor"),
    ("final norm missing", take("norm.weight"), "no-final-norm"),
    ("norm of zeros", put("layers.3.attn_norm.weight", torch.zeros(HIDDEN)), "ill-norm"),
    ("norm with NaN", put("norm.weight", torch.full((HIDDEN,), float("nan"))), "ill-norm"),
    ("clamp missing in the config", configure(swiglu_limit=None), "config-value"),
    ("YaRN's attention factor", configure(rope_scaling={"attention_factor": 1.277}), "config-value"),
    ("one ratio too many", configure(compress_ratios=[0, 4, 128, 4, 4, 4]), "config-ratios"),
    ("a ratio that there is not", configure(compress_ratios=[0, 4, 64, 4]), "config-ratios"),
    ("hash table missing", take("layers.0.ffn.gate.tid2eid"), "hash-layer"),
    ("hash table of other experts", put("layers.0.ffn.gate.tid2eid", torch.full((VOCAB, 1), 2).int()), "hash-table"),
    ("head of the streams missing", take("hc_head_fn"), "hyper-connection-head"),
    ("head of the streams in bf16", put("hc_head_fn", torch.ones(4).bfloat16()), "hyper-connection-head"),
    ("quantization_config missing", configure(quantization_config=None), "reader"),
]
NOTES = [
    ("gate and up differ", double_up_scale, "gate-up-differ"),
    (
        "no input scale anywhere",
        lambda t, c: [t.pop(n) for n in list(t) if n.endswith("input_scale")],
        "no-input-scale",
    ),
    (
        "input scales all alike",
        lambda t, c: t.update({n: torch.tensor(0.002) for n in t if n.endswith("input_scale")}),
        "input-scales-identical",
    ),
]
