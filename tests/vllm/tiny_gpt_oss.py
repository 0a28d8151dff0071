# SPDX-License-Identifier: Apache-2.0
"""A tiny random gpt-oss: MXFP4 experts as OpenAI publishes them, and the same model decoded to float32.

mxfp4     blocks and scales, rows of gate and up in turn, biases in bf16; sizes that two ranks share unevenly
float32   every weight decoded, for the reference

python tests/vllm/tiny_gpt_oss.py OUT
"""

import json
import sys
from pathlib import Path

import tiny_tokenizer
import torch
from safetensors.torch import save_file

from reference import mxfp4

LAYERS, EXPERTS, HEADS, KV_HEADS, HEAD_DIM = 3, 16, 4, 2, 64
# As 2880 of the real one, no multiple of 128. A rank of two has 64 of 96 values, the other 32: blocks are not shared.
HIDDEN, INTER = 288, 96

CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "vocab_size": tiny_tokenizer.VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "intermediate_size": INTER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 4,
    "hidden_act": "silu",
    "swiglu_limit": 7.0,
    "sliding_window": 128,
    "attention_bias": True,
    "max_position_embeddings": 4096,
    "rope_theta": 150000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "torch_dtype": "bfloat16",
}
QUANTIZATION = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}


def quantized(generator: torch.Generator, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random MXFP4 matrices whose values keep the size of what passes through: (codes, e8m0 scales)."""
    packed, scale = mxfp4.random_matrices(shape, generator, span=3)
    return packed, scale - 125 + int(127 - 2 - torch.tensor(float(shape[-1])).log2().item() / 2)


def make(root: Path) -> None:
    """Write both flavours below `root`."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    linear = lambda rows, cols: normal(rows, cols) * cols**-0.5  # noqa: E731
    plain = {
        "model.embed_tokens.weight": normal(CONFIG["vocab_size"], HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": linear(CONFIG["vocab_size"], HIDDEN),
    }
    packed, decoded = {}, {}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            plain[f"{prefix}{norm}.weight"] = torch.ones(HIDDEN)
        heads = {"q": (HEADS * HEAD_DIM, HIDDEN), "k": (KV_HEADS * HEAD_DIM, HIDDEN)}
        heads |= {"v": heads["k"], "o": (HIDDEN, HEADS * HEAD_DIM)}
        for name, (rows, cols) in heads.items():
            plain[f"{prefix}self_attn.{name}_proj.weight"] = linear(rows, cols)
            plain[f"{prefix}self_attn.{name}_proj.bias"] = normal(rows) * 0.1
        plain[f"{prefix}self_attn.sinks"] = normal(HEADS)
        plain[f"{prefix}mlp.router.weight"] = linear(EXPERTS, HIDDEN) * 4
        plain[f"{prefix}mlp.router.bias"] = normal(EXPERTS) * 0.1
        for name, rows, cols in (("gate_up_proj", 2 * INTER, HIDDEN), ("down_proj", HIDDEN, INTER)):
            of = f"{prefix}mlp.experts.{name}"
            codes, scale = quantized(generator, EXPERTS, rows, cols)
            packed |= {f"{of}_blocks": codes.unflatten(-1, (-1, 16)), f"{of}_scales": scale}
            plain[f"{of}_bias"] = normal(EXPERTS, rows) * 0.5
            decoded[of] = mxfp4.decode(codes, scale).float().transpose(1, 2)
    plain = {name: tensor.bfloat16() for name, tensor in plain.items()}
    write(root / "mxfp4", plain | packed, {"quantization_config": QUANTIZATION})
    write(root / "float32", {name: tensor.float() for name, tensor in plain.items()} | decoded, {})


def write(directory: Path, tensors: dict[str, torch.Tensor], more: dict) -> None:
    """A model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | more, indent=1))
    tiny_tokenizer.save(directory)
    save_file({name: t.contiguous() for name, t in tensors.items()}, directory / "model.safetensors")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
