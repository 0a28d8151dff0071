# SPDX-License-Identifier: Apache-2.0
"""Is a served layer right? A backend's output of one MoE layer beside float64, of the weights that weights.py made."""

import sys
import types
from pathlib import Path

import torch

from . import weights

TOKENS = 8


def as_made(name: str, layer: torch.nn.Module, rank: int) -> types.SimpleNamespace:
    """NVFP4 weights of a layer as they were loaded; its backend may have put them in another order since."""
    config, device = layer.moe_config, layer.w13_weight.device
    local, hidden, inter = config.num_local_experts, config.hidden_dim, config.intermediate_size_per_partition
    tensors = {}
    for part, rows, columns in (("w13", 2 * inter, hidden), ("w2", hidden, inter)):
        tensors |= {
            f"{part}_weight": torch.empty(local, rows, columns // 2, dtype=torch.uint8, device=device),
            f"{part}_weight_scale": torch.empty(local, rows, columns // 16, dtype=torch.float8_e4m3fn, device=device),
            f"{part}_weight_scale_2": torch.empty((local, 2) if part == "w13" else (local,), device=device),
        }
    state = {f"{name}.{leaf}": tensor for leaf, tensor in tensors.items()}
    for key, tensor in state.items():
        weights.fill(key, tensor, weights.columns_of(key, tensor, state), weights.generator_of(key, rank, device))
    words = (("_weight_scale_2", "_global_scale"), ("_weight_scale", "_block_scale"), ("_weight", ""))
    named = {f"{part}{ours}": tensors[f"{part}{theirs}"] for part in ("w13", "w2") for theirs, ours in words}
    return types.SimpleNamespace(**named)


def layer_error(model: torch.nn.Module, rank: int) -> float:
    """Relative L2 of the model's last MoE layer, of a few random tokens that choose among this rank's experts."""
    tests = Path(__file__).resolve().parents[2]
    sys.path += [str(tests / "bench"), str(tests)]
    import peers_data

    name, layer = [(name, module) for name, module in model.named_modules() if hasattr(module, "w13_weight")][-1]
    config, device = layer.moe_config, layer.w13_weight.device
    sizes = config.num_experts, config.num_local_experts, config.experts_per_token
    peers_data.SHAPES["served"] = config.hidden_dim, config.intermediate_size_per_partition, *sizes
    here = torch.arange(config.num_experts, device=device)
    if layer.expert_map is not None:
        here = (layer.expert_map >= 0).nonzero().flatten()
    generator = torch.Generator(device).manual_seed(5)
    chosen = torch.rand(TOKENS, len(here), device=device, generator=generator)
    local = chosen.topk(config.experts_per_token, dim=1).indices.int()
    shares = torch.rand(local.shape, device=device, generator=generator) + 0.1
    x = (3 * torch.randn(TOKENS, config.hidden_dim, device=device, generator=generator)).bfloat16()
    got = layer.quant_method.apply(layer, x, shares, here[local.long()].int(), None, None)
    wanted = peers_data.exact("served", as_made(name, layer, rank), x, local, shares)
    return peers_data.errors(got, wanted)[0]
