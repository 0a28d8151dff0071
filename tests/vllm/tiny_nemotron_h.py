# SPDX-License-Identifier: Apache-2.0
"""A tiny random Nemotron-H of attention and MoE layers: experts without a gate, relu2, a latent width, in NVFP4.

modelopt   experts in ModelOpt's naming, below backbone.layers.N.mixer, the rest bf16
float32    every weight decoded, for the reference

Without Mamba layers, for which vLLM has no kernels on a CPU.

python tests/vllm/tiny_nemotron_h.py OUT
"""

import json
import sys
from pathlib import Path

import tiny_tokenizer
import torch
from safetensors.torch import save_file
from tiny_deepseek_v4 import MODELOPT_CONFIG, quantize_experts

PATTERN = "*E*E"  # attention, experts
HIDDEN, LATENT, INTER, SHARED, EXPERTS, HEADS, KV_HEADS, HEAD_DIM = 256, 128, 96, 128, 16, 4, 2, 64

CONFIG = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "vocab_size": tiny_tokenizer.VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "hybrid_override_pattern": PATTERN,
    "num_hidden_layers": len(PATTERN),
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "intermediate_size": 128,
    "mlp_hidden_act": "relu2",
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 16,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": INTER,
    "moe_shared_expert_intermediate_size": SHARED,
    "moe_latent_size": LATENT,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "torch_dtype": "bfloat16",
}
QUANTIZATION = MODELOPT_CONFIG | {"ignore": ["*_proj", "*shared_experts*", "*gate", "lm_head", "*embeddings*"]}


def make(root: Path) -> None:
    """Write both flavours below `root`."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    linear = lambda *shape: normal(*shape) * shape[-1] ** -0.5  # noqa: E731
    plain = {
        "backbone.embeddings.weight": normal(CONFIG["vocab_size"], HIDDEN),
        "backbone.norm_f.weight": torch.ones(HIDDEN),
        "lm_head.weight": linear(CONFIG["vocab_size"], HIDDEN),
    }
    packed, decoded = {}, {}
    for layer, kind in enumerate(PATTERN):
        prefix = f"backbone.layers.{layer}."
        plain[f"{prefix}norm.weight"] = torch.ones(HIDDEN)
        mixer = f"{prefix}mixer."
        if kind == "*":
            shapes = {"q_proj": (HEADS * HEAD_DIM, HIDDEN), "k_proj": (KV_HEADS * HEAD_DIM, HIDDEN)}
            shapes |= {"v_proj": shapes["k_proj"], "o_proj": (HIDDEN, HEADS * HEAD_DIM)}
        else:
            shapes = {
                "gate": (EXPERTS, HIDDEN),
                "fc1_latent_proj": (LATENT, HIDDEN),
                "fc2_latent_proj": (HIDDEN, LATENT),
            }
            shapes |= {"shared_experts.up_proj": (SHARED, HIDDEN), "shared_experts.down_proj": (HIDDEN, SHARED)}
            plain[f"{mixer}gate.e_score_correction_bias"] = normal(EXPERTS) * 0.01
            for name, rows, cols in (("up_proj", INTER, LATENT), ("down_proj", LATENT, INTER)):
                stacks = quantize_experts(
                    linear(EXPERTS, rows, cols) * (1 + torch.arange(EXPERTS) % 3)[:, None, None] / 2
                )
                for expert, (codes, scale, encoding, values) in enumerate(zip(*stacks, strict=True)):
                    of = f"{mixer}experts.{expert}.{name}"
                    packed |= {f"{of}.weight": codes, f"{of}.weight_scale": scale}
                    packed |= {f"{of}.weight_scale_2": 1.0 / encoding, f"{of}.input_scale": torch.tensor(0.01)}
                    decoded[f"{of}.weight"] = values
        plain |= {f"{mixer}{name}.weight": linear(*shape) for name, shape in shapes.items()}
    plain = {name: tensor if "bias" in name else tensor.bfloat16() for name, tensor in plain.items()}
    write(root / "modelopt", plain | packed, {"quantization_config": QUANTIZATION})
    write(root / "float32", {name: tensor.float() for name, tensor in plain.items()} | decoded, {})


def write(directory: Path, tensors: dict[str, torch.Tensor], more: dict) -> None:
    """A model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | more, indent=1))
    tiny_tokenizer.save(directory)
    save_file({name: t.contiguous() for name, t in tensors.items()}, directory / "model.safetensors")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
