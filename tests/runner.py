# SPDX-License-Identifier: Apache-2.0
"""Runs the library through the torch op, with poisoned buffers."""

import torch

from nvfp4_moe import Layer, LayerWeights
from reference.generate import Weights
from reference.layer import Swiglu

DEVICES = ("cpu", "cuda", "cuda-portable")


def poisoned(*shape: int, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> torch.Tensor:
    """A tensor of 0xFF bytes: NaN in bf16, e4m3 and f32."""
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    return torch.full((num_bytes,), 0xFF, dtype=torch.uint8, device=device).view(dtype).view(shape)


def make_layer(
    weights: Weights,
    *,
    num_experts: int,
    top_k: int,
    mode: str = "bf16",
    scale_policy: str = "static",
    swiglu: Swiglu = Swiglu(),
    first_local_expert: int = 0,
    tile_rows: int = 0,
    fp8_max_error: float = 0.0,
    scale_block_size: int | None = None,
    device: str = "cpu",
) -> Layer:
    """A prepared layer over the oracle's weights; mode fp8 is told if their block scales are equal in pairs."""
    if scale_block_size is None:
        scale_block_size = weights.scale_block_size if mode == "fp8" and not fp8_max_error else 16
    num_local, rows, half_h = weights.w13.shape
    layer = Layer(
        hidden_size=half_h * 2,
        intermediate_size=rows // (2 if swiglu.gated else 1),
        num_experts=num_experts,
        num_local_experts=num_local,
        first_local_expert=first_local_expert,
        top_k=top_k,
        mode=mode,
        scale_policy=scale_policy,
        swiglu_limit=swiglu.limit,
        swiglu_alpha=swiglu.alpha,
        swiglu_beta=swiglu.beta,
        activation=swiglu.name,
        tile_rows=tile_rows,
        has_bias=weights.w13_bias is not None or weights.w2_bias is not None,
        fp8_max_error=fp8_max_error,
        scale_block_size=scale_block_size,
        device=device,
    )
    own = LayerWeights(
        weights.w13,
        weights.w13_block_scale,
        weights.w13_global_scale,
        weights.w2,
        weights.w2_block_scale,
        weights.w2_global_scale,
        weights.w13_input_scale,
        weights.w2_input_scale,
        weights.up_first,
        weights.interleaved,
        weights.w13_bias,
        weights.w2_bias,
    )
    return layer.prepare(own.to(layer.device))


def run(layer: Layer, x, topk_ids, topk_weights=None, expert_map=None, shared_output=None) -> torch.Tensor:
    """Forward into a poisoned output through a poisoned workspace of exactly the size asked for; back on the CPU."""
    inputs = [None if t is None else t.to(layer.device) for t in (x, topk_ids, topk_weights, expert_map)]
    out = poisoned(*x.shape, device=layer.device)
    workspace = poisoned(layer.workspace_size(len(x)), dtype=torch.uint8, device=layer.device)
    shared_output = None if shared_output is None else shared_output.to(layer.device)
    layer(*inputs[:3], expert_map=inputs[3], workspace=workspace, out=out, shared_output=shared_output)
    return out.cpu()
