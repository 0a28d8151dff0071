# SPDX-License-Identifier: Apache-2.0
"""This layer as a candidate of a benchmark that times NVFP4 MoE layers side by side in CUDA graphs.

`build(weights, shape)` takes ModelOpt-order tensors on the GPU (gate rows first) and returns `forward(x, topk_weights,
topk_ids) -> out`, which allocates its output only.
"""

import torch

from nvfp4_moe import Layer, LayerWeights

_workspaces: dict[int, torch.Tensor] = {}


def _workspace(layer: Layer, num_tokens: int) -> torch.Tensor:
    """One workspace for all layers, grown outside graphs to what the largest batch needs."""
    size = layer.workspace_size(num_tokens)
    best = _workspaces.get(0)
    if best is None or best.numel() < size:
        _workspaces[0] = best = torch.empty(size, dtype=torch.uint8, device="cuda")
    return best


def build(weights, shape, mode="bf16"):
    scales = (weights[name].view(torch.uint8) for name in ("w13_scale", "w2_scale"))
    paired = mode == "fp8" and all(torch.equal(of[..., ::2], of[..., 1::2]) for of in scales)
    layer = Layer(
        hidden_size=shape.hidden,
        intermediate_size=shape.inter,
        num_experts=shape.experts,
        num_local_experts=shape.local,
        top_k=shape.top_k,
        mode=mode,
        scale_policy="dynamic",
        swiglu_limit=shape.swiglu_limit,
        scale_block_size=32 if paired else 16,
        device="cuda",
    )
    w13_global = weights["w13_global"].float()[:, None].repeat(1, 2).contiguous()
    layer.prepare(
        LayerWeights(
            weights["w13"],
            weights["w13_scale"],
            w13_global,
            weights["w2"],
            weights["w2_scale"],
            weights["w2_global"].float().contiguous(),
        )
    )
    expert_map = shape.expert_map
    _workspace(layer, 8192)

    def forward(x, topk_weights, topk_ids):
        workspace = _workspace(layer, len(x))
        return layer(x, topk_ids, topk_weights, expert_map=expert_map, workspace=workspace)

    return forward


def build_nvfp4(weights, shape):
    return build(weights, shape, "nvfp4")
