# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's tensors as the library takes them: of a MoE layer, and of a linear."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from . import errors

BLOCK_SIZE = 16
"""Neighbours along the reduction that share a block scale."""


def moved(weights, device: torch.device | str):
    """The same weights on another device; tensors that are there already are shared."""
    values = {field.name: getattr(weights, field.name) for field in fields(weights)}
    return replace(weights, **{name: v.to(device) for name, v in values.items() if isinstance(v, torch.Tensor)})


@dataclass
class LayerWeights:
    """A MoE layer's, stacked over the L local experts, contiguous, block scales in linear order."""

    w13: torch.Tensor
    """e2m1x2 u8 (or float4_e2m1fn_x2) [L, 2I, H/2]: gate rows, then up rows. Without a gate I rows."""
    w13_block_scale: torch.Tensor
    """float8_e4m3fn (or its bytes) [L, 2I, H/16]."""
    w13_global_scale: torch.Tensor
    """f32 [L, 2]: of gate and of up; they may differ. Without a gate [L, 1]."""
    w2: torch.Tensor
    """e2m1x2 u8 (or float4_e2m1fn_x2) [L, H, I/2]."""
    w2_block_scale: torch.Tensor
    """float8_e4m3fn (or its bytes) [L, H, I/16]."""
    w2_global_scale: torch.Tensor
    """f32 [L]."""
    w13_input_scale: float = 0.0
    """Decodes GEMM1's input: the maximum over ALL experts of the layer, local or not; 0 if there is none."""
    w2_input_scale: float = 0.0
    """The same for GEMM2's input."""
    up_first: bool = False
    """True if the up rows come before the gate rows, and up's global scale before gate's."""
    interleaved: bool = False
    """True if gate rows and up rows take turns, gate first (gpt-oss); scales of rows and biases with them."""
    w13_bias: torch.Tensor | None = None
    """bf16 [L, 2I], in the order of w13's rows: added to GEMM1's sums. For a layer that was made with `has_bias`."""
    w2_bias: torch.Tensor | None = None
    """bf16 [L, H]: added to GEMM2's sums, before the router's weight multiplies them."""

    @classmethod
    def empty(
        cls,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        *,
        gated: bool = True,
        has_bias: bool = False,
        **scales: float,
    ) -> "LayerWeights":
        """Tensors of the right shapes on the host, to be filled; `scales` as above."""
        projections, inter = 2 if gated else 1, intermediate_size
        rows = projections * inter
        bias = (lambda n: torch.empty(num_experts, n, dtype=torch.bfloat16)) if has_bias else (lambda n: None)
        return cls(
            w13=torch.empty(num_experts, rows, hidden_size // 2, dtype=torch.uint8),
            w13_block_scale=torch.empty(num_experts, rows, hidden_size // BLOCK_SIZE, dtype=torch.float8_e4m3fn),
            w13_global_scale=torch.empty(num_experts, projections),
            w2=torch.empty(num_experts, hidden_size, inter // 2, dtype=torch.uint8),
            w2_block_scale=torch.empty(num_experts, hidden_size, inter // BLOCK_SIZE, dtype=torch.float8_e4m3fn),
            w2_global_scale=torch.empty(num_experts),
            w13_bias=bias(rows),
            w2_bias=bias(hidden_size),
            **scales,
        )

    @property
    def row_order(self) -> int:
        """NVFP4_MOE_ROWS_* of the header."""
        return 2 if self.interleaved else int(self.up_first)

    def shard(self, rank: int, num_ranks: int) -> "LayerWeights":
        """A tensor-parallel rank's part of every expert: rows of gate and up, columns of w2.

        Outputs of all ranks add up to the layer's. w13's biases go with their rows; w2's would be added by every rank,
        so the first has them and the others zeros.
        """
        projections = self.w13_global_scale.shape[-1]
        inter = self.w13.shape[1] // projections
        if inter % (BLOCK_SIZE * num_ranks):
            raise errors.InvalidArgumentError(
                f"num_ranks is {num_ranks}; intermediate_size {inter} must be a multiple of {BLOCK_SIZE} times that, "
                "since two ranks cannot share a block scale. Use fewer ranks, or give each whole experts."
            )
        halves = 1 if self.interleaved else projections

        def part(of: torch.Tensor, dim: int) -> torch.Tensor:
            size = of.shape[dim] // num_ranks
            return of.narrow(dim, rank * size, size)

        def rows(of: torch.Tensor) -> torch.Tensor:
            return part(of.unflatten(1, (halves, -1)), 2).flatten(1, 2).contiguous()

        biases = {}
        if self.w13_bias is not None:
            biases["w13_bias"] = rows(self.w13_bias)
        if self.w2_bias is not None and rank > 0:
            biases["w2_bias"] = torch.zeros_like(self.w2_bias)
        return replace(
            self,
            w13=rows(self.w13),
            w13_block_scale=rows(self.w13_block_scale),
            w2=part(self.w2, 2).contiguous(),
            w2_block_scale=part(self.w2_block_scale, 2).contiguous(),
            **biases,
        )

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """The six tensors and the biases in the order of the C ABI and of the ops."""
        return (
            self.w13,
            self.w13_block_scale,
            self.w13_global_scale,
            self.w2,
            self.w2_block_scale,
            self.w2_global_scale,
            self.w13_bias,
            self.w2_bias,
        )

    to = moved


@dataclass
class LinearWeights:
    """One linear's, or those of several fused along out_features."""

    weight: torch.Tensor
    """e2m1x2 u8 (or float4_e2m1fn_x2) [out_features, in_features/2]."""
    block_scale: torch.Tensor
    """float8_e4m3fn (or its bytes) [out_features, in_features/16], linear order."""
    global_scale: torch.Tensor
    """f32 [num_parts]."""
    bias: torch.Tensor | None = None
    """bf16 [out_features]."""
    part_rows: Sequence[int] = ()
    """Rows of each fused part, summing to out_features; empty if there is one part."""
    input_scale: float = 0.0
    """Decodes the input; 0 if the checkpoint has none."""

    to = moved
