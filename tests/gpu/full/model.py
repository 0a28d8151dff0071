# SPDX-License-Identifier: Apache-2.0
"""Directories that vLLM takes for DeepSeek-V4 in NVFP4: a configuration of the published size, and no weights."""

import json
from pathlib import Path

# Sizes as DeepSeek published them, but for the tiny one. Ratios: the sliding window alone, then 4 and 128 in turn.
COMMON = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "vocab_size": 129280,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "o_lora_rank": 1024,
    "n_shared_experts": 1,
    "num_experts_per_tok": 6,
    "num_hash_layers": 3,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "swiglu_limit": 10.0,
    "max_position_embeddings": 65536,
    "sliding_window": 128,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "num_nextn_predict_layers": 0,
    "torch_dtype": "bfloat16",
    "expert_dtype": "fp4",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "scale_fmt": "ue8m0",
        "moe_quant_algo": "NVFP4",
    },
}
SIZES = {
    "flash": {
        "hidden_size": 4096,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 43,
        "n_routed_experts": 256,
        "routed_scaling_factor": 1.5,
        "num_attention_heads": 64,
        "q_lora_rank": 1024,
        "o_groups": 8,
        "compress_ratios": [0, 0] + [4, 128] * 20 + [4],
    },
    "pro": {
        "hidden_size": 7168,
        "moe_intermediate_size": 3072,
        "num_hidden_layers": 61,
        "n_routed_experts": 384,
        "routed_scaling_factor": 2.5,
        "num_attention_heads": 128,
        "q_lora_rank": 1536,
        "o_groups": 16,
        "compress_ratios": [128, 128] + [4, 128] * 29 + [4],
    },
    # As small as vLLM's kernels allow, with a layer of every kind: to try the tools out.
    "tiny": {
        "hidden_size": 2048,
        "moe_intermediate_size": 256,
        "num_hidden_layers": 4,
        "n_routed_experts": 16,
        "routed_scaling_factor": 1.5,
        "num_attention_heads": 8,
        "q_lora_rank": 256,
        "o_lora_rank": 256,
        "o_groups": 2,
        "vocab_size": 1024,
        "num_hash_layers": 1,
        "compress_ratios": [0, 4, 128, 4],
    },
}


def config(size: str, layers: int | None = None) -> dict:
    """The configuration of `size`, of its first `layers` layers or of all."""
    full = COMMON | SIZES[size]
    layers = min(layers or full["num_hidden_layers"], full["num_hidden_layers"])
    return full | {"num_hidden_layers": layers, "compress_ratios": full["compress_ratios"][:layers]}


def write(folder: Path, size: str, layers: int | None = None) -> Path:
    """A model directory without weights and without a tokenizer: prompts are ids."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(size, layers), indent=1))
    return folder
