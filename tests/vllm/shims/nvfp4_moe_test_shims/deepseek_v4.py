# SPDX-License-Identifier: Apache-2.0
"""Test-only: DeepSeek-V4 around the MoE, for vLLM's CPU build on any CPU.

vLLM's own CPU attention, hyper-connections and routing are compiled for AVX512-BF16 alone. Here attention is that of
Hugging Face transformers, in float32, computed anew from the inputs of all earlier tokens. The inputs are kept by the
blocks that vLLM's scheduler gave to each request, so paging, batching and preemption stay vLLM's.
"""

import json
from collections import defaultdict
from pathlib import Path

import torch

PADDING_HEADS = 4


def patch_mhc(module) -> None:
    """Hyper-connections by vLLM's own torch versions, and the head, which has none."""
    module.MHCPreOp.forward_cpu = module.MHCPreOp.forward_native
    module.MHCPostOp.forward_cpu = module.MHCPostOp.forward_native
    module.HCHeadOp.forward_cpu = staticmethod(hyper_head)


def hyper_head(streams, fn, scale, base, rms_norm_eps, hc_eps):
    """[T, hc, H] to [T, H]: the streams weighted by gates of their normalised concatenation."""
    flat = streams.flatten(-2).float()
    flat = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + rms_norm_eps)
    gates = torch.sigmoid(torch.nn.functional.linear(flat, fn) * scale + base) + hc_eps
    return (gates.unsqueeze(-1) * streams.float()).sum(-2).to(streams.dtype)


def patch_router(module) -> None:
    """DeepSeek-V4's routing: sqrt(softplus(logit)), chosen with the bias or by the hash table, weighted without."""

    def weights_of(logits, ids, scaling):
        chosen = scores_of(logits).gather(1, ids.long())
        return chosen / chosen.sum(-1, keepdim=True) * scaling, ids.int()

    def scores_of(logits):
        return torch.nn.functional.softplus(logits.float()).sqrt()

    def hash_topk(logits, ids, topk, scoring, shared, num_experts, scaling):
        return weights_of(logits, ids, scaling)

    def biased_topk(hidden, logits, bias, topk, renormalize, scoring, shared, scaling, apply_scaling):
        return weights_of(logits, (scores_of(logits) + bias).topk(topk).indices, scaling)

    module.hash_topk_cpu, module.biased_topk_cpu = hash_topk, biased_topk


def patch_attention(module) -> None:
    """Put transformers' attention where vLLM's CPU attention was."""
    attention = module.DeepseekV4CPUAttention
    original_init = attention.__init__

    def init(self, vllm_config, *args, **kwargs):
        original_init(self, vllm_config, *args, **kwargs)
        self.model_path = Path(vllm_config.model_config.model)

    def process_weights_after_loading(self, act_dtype):
        object.__setattr__(self, "recomputed", RecomputedAttention(self))

    attention.__init__ = init
    # As GPU kernels ask for more heads than there are: what is in the others must not matter.
    attention.get_padded_num_q_heads = classmethod(lambda cls, num_heads: num_heads + PADDING_HEADS)
    attention._wrap_wo_a_process_weights_after_loading = lambda self: None
    attention.process_weights_after_loading = process_weights_after_loading
    attention.forward = lambda self, positions, hidden_states, _=None: self.recomputed(positions, hidden_states)


def weight_of(linear, in_features: int) -> torch.Tensor:
    """f32 [out, in]: what the linear makes of the identity, exact for weights that bf16 holds."""
    out = linear.quant_method.apply(linear, torch.eye(in_features, dtype=torch.bfloat16), None)
    return out.float().T.contiguous()


class RecomputedAttention:
    """transformers' DeepseekV4Attention over the weights of one vLLM layer (this rank's heads)."""

    def __init__(self, layer):
        from transformers.models.deepseek_v4 import modeling_deepseek_v4 as hf
        from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config

        values = json.loads((layer.model_path / "config.json").read_text())
        values.pop("quantization_config", None)
        values |= {"num_attention_heads": layer.n_local_heads, "o_groups": layer.n_local_groups}
        config = DeepseekV4Config(**values)
        config._attn_implementation = "eager"
        self.layer = layer
        self.index = int(layer.prefix.split("layers.")[1].split(".")[0])
        self.window = config.sliding_window
        self.attention = hf.DeepseekV4Attention(config, self.index).float().eval()
        self.attention.o_b_proj = torch.nn.Identity()  # vLLM's own follows, with its all-reduce
        self.rotary = hf.DeepseekV4RotaryEmbedding(config)
        self.inputs = defaultdict(dict)  # block number -> place in the block -> input row
        self.load(config)

    def load(self, config) -> None:
        layer, hidden = self.layer, config.hidden_size
        q_a, kv = weight_of(layer.fused_wqa_wkv, hidden).split([config.q_lora_rank, config.head_dim])
        weights = {
            "q_a_proj.weight": q_a,
            "kv_proj.weight": kv,
            "q_a_norm.weight": layer.q_norm.weight,
            "kv_norm.weight": layer.kv_norm.weight,
            "q_b_proj.weight": weight_of(layer.wq_b, config.q_lora_rank),
            "o_a_proj.weight": weight_of(layer.wo_a, layer.n_local_heads * config.head_dim // config.o_groups),
            "sinks": layer.attn_sink[: layer.n_local_heads],
        }
        if layer.compressor is not None:
            weights |= self.compressor("compressor.", layer.compressor, hidden)
        if layer.indexer is not None:
            prefix = "compressor.indexer."
            weights |= self.compressor(prefix, layer.indexer.compressor, hidden)
            weights[prefix + "q_b_proj.weight"] = weight_of(layer.indexer.wq_b, config.q_lora_rank)
            weights[prefix + "scorer.weights_proj.weight"] = weight_of(layer.indexer.weights_proj, hidden)
        self.attention.load_state_dict({name: w.detach().float() for name, w in weights.items()}, strict=True)
        self.attention.sinks.data = weights["sinks"].data  # where a kernel would read them, not a copy

    def compressor(self, prefix: str, compressor, hidden: int) -> dict[str, torch.Tensor]:
        kv, gate = weight_of(compressor.fused_wkv_wgate, hidden).chunk(2)
        return {
            prefix + "kv_proj.weight": kv,
            prefix + "gate_proj.weight": gate,
            prefix + "position_bias": compressor.ape,
            prefix + "kv_norm.weight": compressor.norm.weight,
        }

    def __call__(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """bf16 [T, H] of all scheduled requests, to the attention's output [T, H]."""
        from vllm.forward_context import get_forward_context

        metadata = get_forward_context().attn_metadata
        layer = self.layer
        z = hidden_states.new_zeros((len(hidden_states), layer.n_local_groups * layer.o_lora_rank))
        if isinstance(metadata, dict):  # else a profile run, without requests
            window = metadata[layer.swa_cache_layer.prefix]
            # Sliding layers keep a window of blocks, compressed layers all of them.
            paged = window if layer.compress_ratio == 1 else metadata[layer.prefix]
            starts = window.query_start_loc.tolist()
            for request, (first, end) in enumerate(zip(starts, starts[1:], strict=False)):
                if end > first:
                    table = paged.block_table[request].tolist()
                    z[first:end] = self.attend(positions[first:end], hidden_states[first:end], table, paged.block_size)
        return layer.wo_b(z)

    def attend(self, positions, rows, table, block_size) -> torch.Tensor:
        """The new rows of one request, [n, groups * o_lora]."""
        first, last = int(positions[0]), int(positions[-1])
        for position, row in zip(range(first, last + 1), rows.float(), strict=True):
            self.inputs[table[position // block_size]][position % block_size] = row
        begin = max(0, first - self.window + 1) if self.layer.compress_ratio == 1 else 0
        history = [self.inputs[table[p // block_size]][p % block_size] for p in range(begin, last + 1)]
        x = torch.stack(history).unsqueeze(0)
        ids = torch.arange(begin, last + 1).unsqueeze(0)
        distance = ids[0].unsqueeze(1) - ids[0].unsqueeze(0)
        visible = (distance >= 0) & (distance < self.window)
        mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)[None, None]
        rotations = {name: self.rotary(x, position_ids=ids, layer_type=name) for name in ("main", "compress")}
        out, _ = self.attention(x, rotations, ids, mask)
        return out[0, first - begin :].to(rows.dtype)
