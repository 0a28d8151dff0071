# SPDX-License-Identifier: Apache-2.0
"""A tiny MoE layer on the CPU, from weights to a checked result: `python examples/layer.py`.

Every weight is the same number, so that the answer can be written down: with tokens whose values are all c,
gate = up = c, h = c * sigmoid(c) * c, and expert e gives (e + 1) * h.
"""

import torch

from nvfp4_moe import Layer, LayerWeights

HIDDEN, INTER, EXPERTS, TOP_K = 64, 32, 4, 2
ONE_E4M3, ONES_E2M1 = 0x38, 0x22  # a block scale of 1; two codes of 1 in a byte


def filled(byte: int, *shape: int) -> torch.Tensor:
    """A tensor of one byte."""
    return torch.full(shape, byte, dtype=torch.uint8)


weights = LayerWeights(
    w13=filled(ONES_E2M1, EXPERTS, 2 * INTER, HIDDEN // 2),
    w13_block_scale=filled(ONE_E4M3, EXPERTS, 2 * INTER, HIDDEN // 16),
    w13_global_scale=torch.full((EXPERTS, 2), 1 / HIDDEN),
    w2=filled(ONES_E2M1, EXPERTS, HIDDEN, INTER // 2),
    w2_block_scale=filled(ONE_E4M3, EXPERTS, HIDDEN, INTER // 16),
    w2_global_scale=torch.arange(1, EXPERTS + 1) / INTER,
)
layer = Layer(hidden_size=HIDDEN, intermediate_size=INTER, num_experts=EXPERTS, top_k=TOP_K).prepare(weights)

tokens = torch.tensor([1.0, 2.0, 3.0])
x = tokens[:, None].expand(-1, HIDDEN).to(torch.bfloat16).contiguous()
topk_ids = torch.tensor([[0, 1], [2, 3], [3, -1]])  # -1: the last token asks for one expert only
topk_weights = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 1.0]])
out = layer(x, topk_ids, topk_weights)

h = torch.sigmoid(tokens) * tokens**2
wanted = (topk_weights * (topk_ids + 1)).sum(1) * h  # id -1 adds 0
for token, (got, want) in enumerate(zip(out[:, 0].tolist(), wanted.tolist(), strict=True)):
    print(f"token {token}: {got:.3f}, wanted {want:.3f}")
torch.testing.assert_close(out.float(), wanted[:, None].expand_as(out), rtol=0.01, atol=0)
print("layer.py: correct")
