# SPDX-License-Identifier: Apache-2.0
"""A tiny random Qwen3-MoE for a GPU, written as ModelOpt exports NVFP4.

    python tests/gpu/tiny_qwen3.py OUT [FLOAT32 [OTHER OTHER_FLOAT32]]

Sizes are multiples of what vLLM's GPU kernels take. Attention stays bf16; experts are NVFP4, gate and up with one
global scale, as ModelOpt makes them and Marlin asks for. FLOAT32 gets the same model without quantisation. OTHER has
other weights, and input scales that are twice as large.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "vllm")]

import tiny_tokenizer

from reference import nvfp4

HIDDEN, INTER, LAYERS, EXPERTS, TOP_K = 512, 256, 3, 16, 4
HEADS, KV_HEADS, HEAD_DIM, VOCAB = 8, 2, 128, tiny_tokenizer.VOCAB_SIZE
GROUP = {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": False}
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "moe_intermediate_size": INTER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": 16,
        "kv_cache_scheme": None,
        "ignore": ["lm_head", "*self_attn*", *(f"model.layers.{layer}.mlp.gate" for layer in range(LAYERS))],
        "config_groups": {"group_0": {"input_activations": GROUP, "weights": GROUP, "targets": ["Linear"]}},
    },
}
INPUT_SCALE = 20.0 / (6 * 448)  # activations of up to 20


def random_weight(generator: torch.Generator, rows: int, cols: int, size: float = 1.0) -> torch.Tensor:
    """One that keeps the size of what passes through, times `size`."""
    return torch.randn(rows, cols, generator=generator) * size * cols**-0.5


def quantised(name: str, weight: torch.Tensor, amax: float) -> dict[str, torch.Tensor]:
    """The four tensors of a linear; `amax` decides the global scale."""
    scale = amax / (6 * 448)
    codes, block_scale, _ = nvfp4.quantize(weight / scale, 1.0)
    return {
        f"{name}.weight": nvfp4.pack(codes),
        f"{name}.weight_scale": block_scale.view(torch.float8_e4m3fn),
        f"{name}.weight_scale_2": torch.tensor(scale),
        f"{name}.input_scale": torch.tensor(INPUT_SCALE),
    }


def attention(prefix: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    rows = {"q_proj": HEADS, "k_proj": KV_HEADS, "v_proj": KV_HEADS}
    tensors = {f"{prefix}{n}.weight": random_weight(generator, r * HEAD_DIM, HIDDEN) for n, r in rows.items()}
    tensors[f"{prefix}o_proj.weight"] = random_weight(generator, HIDDEN, HEADS * HEAD_DIM)
    return tensors | {f"{prefix}{name}.weight": torch.ones(HEAD_DIM) for name in ("q_norm", "k_norm")}


def expert(prefix: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    gate, up = (random_weight(generator, INTER, HIDDEN, 2.0) for _ in range(2))
    down = random_weight(generator, HIDDEN, INTER, 2.0)
    shared = max(gate.abs().max().item(), up.abs().max().item())
    return (
        quantised(f"{prefix}gate_proj", gate, shared)
        | quantised(f"{prefix}up_proj", up, shared)
        | quantised(f"{prefix}down_proj", down, down.abs().max().item())
    )


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Every tensor of the model by its name in the file."""
    generator = torch.Generator().manual_seed(seed)
    plain = {
        "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=generator),
        "lm_head.weight": random_weight(generator, VOCAB, HIDDEN, 3.0),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    experts: dict[str, torch.Tensor] = {}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        plain |= {
            f"{prefix}{name}.weight": torch.ones(HIDDEN) for name in ("input_layernorm", "post_attention_layernorm")
        }
        plain |= attention(f"{prefix}self_attn.", generator)
        plain[f"{prefix}mlp.gate.weight"] = random_weight(generator, EXPERTS, HIDDEN, 3.0)
        for index in range(EXPERTS):
            experts |= expert(f"{prefix}mlp.experts.{index}.", generator)
    return {name: tensor.bfloat16() for name, tensor in plain.items()} | experts


def decoded(quantised: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors in float32, each linear's four as the one that they stand for."""
    found = {}
    for name, tensor in quantised.items():
        if f"{name}_scale_2" in quantised:
            scale = quantised[f"{name}_scale"].view(torch.uint8)
            found[name] = nvfp4.decode_blocks(tensor, scale) * quantised[f"{name}_scale_2"]
        elif not name.endswith(("_scale", "_scale_2")):
            found[name] = tensor.float()
    return found


def write(directory: Path, float32: Path | None = None, seed: int = 0) -> Path:
    """A model directory: config, tokenizer, one safetensors file; and the reference's."""
    values = tensors(seed)
    if seed:
        values |= {name: 2 * tensor for name, tensor in values.items() if name.endswith(".input_scale")}
    if float32:
        config = {name: value for name, value in CONFIG.items() if name != "quantization_config"}
        save(float32, config, decoded(values))
    return save(directory, CONFIG, values)


def save(directory: Path, config: dict, values: dict[str, torch.Tensor]) -> Path:
    """The files."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    tiny_tokenizer.save(directory)
    save_file(values, directory / "model.safetensors")
    return directory


if __name__ == "__main__":
    folders = [*map(Path, sys.argv[1:])]
    print(*(write(*folders[at : at + 2], seed=at // 2) for at in range(0, len(folders), 2)))
