# SPDX-License-Identifier: Apache-2.0
"""Small models of transformers, untrained, for make_exports.py: a family each, experts of one size in all."""

VOCABULARY, HIDDEN, INTER, EXPERTS, TOP_K = 32, 64, 32, 4, 2
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip


def qwen3(**changes):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    options = dict(
        architectures=["Qwen3MoeForCausalLM"], intermediate_size=64, moe_intermediate_size=INTER, num_experts=EXPERTS,
        num_experts_per_tok=TOP_K, norm_topk_prob=True, decoder_sparse_step=1,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL | options | changes))


def ernie():
    """Its top-k is `moe_k`."""
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

    return Ernie4_5_MoeForCausalLM(
        Ernie4_5_MoeConfig(
            **SMALL | {"num_hidden_layers": 2}, architectures=["Ernie4_5_MoeForCausalLM"], intermediate_size=64,
            moe_intermediate_size=INTER,
            moe_num_experts=EXPERTS, moe_k=TOP_K, moe_num_shared_experts=1, moe_layer_start_index=1,
            moe_layer_end_index=-1, moe_layer_interval=1,
        )
    )  # fmt: skip


def hunyuan():
    """Its top-k is `moe_topk`, one number a layer or one for all."""
    from transformers import HunYuanMoEV1Config, HunYuanMoEV1ForCausalLM

    return HunYuanMoEV1ForCausalLM(
        HunYuanMoEV1Config(
            **SMALL, architectures=["HunYuanMoEV1ForCausalLM"], intermediate_size=INTER, num_experts=EXPERTS,
            moe_topk=TOP_K,
        )
    )  # fmt: skip


def llama4():
    """Its experts are stacked, and their scales one for all."""
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    return Llama4ForCausalLM(
        Llama4TextConfig(
            **SMALL, architectures=["Llama4ForCausalLM"], intermediate_size=INTER, intermediate_size_mlp=64,
            num_local_experts=EXPERTS, num_experts_per_tok=1, interleave_moe_layer_step=1, attention_chunk_size=64,
        )
    )  # fmt: skip


def mixtral():
    """Experts' names are w1, w3, w2, and their size is `intermediate_size`."""
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(
            **SMALL, architectures=["MixtralForCausalLM"], intermediate_size=INTER, num_local_experts=EXPERTS,
            num_experts_per_tok=TOP_K,
        )
    )  # fmt: skip


def deepseek_v3():
    """Layer 0 is dense; one shared expert beside the routed ones."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    options = SMALL | {"num_hidden_layers": 2, "num_key_value_heads": 2}
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **options, architectures=["DeepseekV3ForCausalLM"], intermediate_size=64, moe_intermediate_size=INTER,
            n_routed_experts=EXPERTS, num_experts_per_tok=TOP_K, n_shared_experts=1, first_k_dense_replace=1,
            n_group=1, topk_group=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=16, qk_nope_head_dim=16,
            v_head_dim=16,
        )
    )  # fmt: skip


def glm4_moe():
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    return Glm4MoeForCausalLM(
        Glm4MoeConfig(
            **SMALL | {"num_hidden_layers": 2}, architectures=["Glm4MoeForCausalLM"], intermediate_size=64,
            moe_intermediate_size=INTER, n_routed_experts=EXPERTS, num_experts_per_tok=TOP_K, n_shared_experts=1,
            first_k_dense_replace=1, n_group=1, topk_group=1,
        )
    )  # fmt: skip


def minimax_m3():
    """swigluoai, though its config says silu and has no beta; experts' size is `intermediate_size`."""
    from transformers import MiniMaxM3VLForCausalLM, MiniMaxM3VLTextConfig

    return MiniMaxM3VLForCausalLM(
        MiniMaxM3VLTextConfig(
            **SMALL, architectures=["MiniMaxM3VLForCausalLM"], intermediate_size=INTER, num_local_experts=EXPERTS,
            num_experts_per_tok=TOP_K, rotary_dim=16, dense_intermediate_size=64, shared_intermediate_size=32,
            mlp_layer_types=["sparse"], layer_types=["full_attention"], index_n_heads=1, index_head_dim=16,
        )
    )  # fmt: skip


def nemotron_h():
    """Experts without a gate, in a space narrower than the model's."""
    from transformers import NemotronHConfig, NemotronHForCausalLM

    options = {key: value for key, value in SMALL.items() if key not in ("hidden_size", "num_hidden_layers")}
    return NemotronHForCausalLM(
        NemotronHConfig(
            **options, architectures=["NemotronHForCausalLM"], hidden_size=2 * HIDDEN, moe_latent_size=HIDDEN,
            layers_block_type=["attention", "moe"], intermediate_size=64, moe_intermediate_size=INTER,
            moe_shared_expert_intermediate_size=64, n_routed_experts=EXPERTS, num_experts_per_tok=TOP_K,
            use_mamba_kernels=False, mamba_num_heads=2, mamba_head_dim=16, n_groups=1, ssm_state_size=16,
        )
    )  # fmt: skip


def gemma4():
    """GELU by tanh; a dense MLP beside the experts; `top_k_experts`."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    return Gemma4ForCausalLM(
        Gemma4TextConfig(
            **SMALL, architectures=["Gemma4ForCausalLM"], intermediate_size=64, enable_moe_block=True,
            num_experts=EXPERTS, top_k_experts=TOP_K, moe_intermediate_size=INTER, hidden_size_per_layer_input=0,
            vocab_size_per_layer_input=VOCABULARY, global_head_dim=16,
        )
    )  # fmt: skip


def gpt_oss():
    """Biases, and rows of gate and up in turn."""
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(
        GptOssConfig(
            **SMALL, architectures=["GptOssForCausalLM"], intermediate_size=INTER, num_local_experts=EXPERTS,
            num_experts_per_tok=TOP_K,
        )
    )  # fmt: skip
