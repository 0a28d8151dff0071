# SPDX-License-Identifier: Apache-2.0
"""The MoE layer and the linear in float64 on the dequantised weights.

    out[t] = sum over k of topk_weights[t, k] * expert(topk_ids[t, k])(x[t])
    expert(x) = w2 @ swiglu(gate @ x, up @ x)

In modes "nvfp4" and "fp8" what enters a GEMM is quantised first, as the law says: x, and h rounded to bf16.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from . import fp8, nvfp4

F32_SUM = 2.0**-20  # relative error that h may have from sums of thousands of products in f32


@dataclass(frozen=True)
class Swiglu:
    """gate * sigmoid(alpha * gate) * (up + beta), after gate = min(gate, limit), up = clamp(up, -limit, limit)."""

    limit: float = 0.0  # 0: none
    alpha: float = 1.0
    beta: float = 0.0

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if self.limit > 0:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (up + self.beta)


class Matrix:
    """An NVFP4 matrix [rows, cols] whose rows fall into equal groups with a global scale each."""

    def __init__(self, packed: torch.Tensor, block_scale: torch.Tensor, row_global_scale: torch.Tensor):
        self.packed, self.block_scale = packed, block_scale
        self.row_global_scale = row_global_scale.double()  # [rows]

    @cached_property
    def block_values(self) -> torch.Tensor:
        """e2m1 * block_scale, f32, exact."""
        return nvfp4.decode_blocks(self.packed, self.block_scale)

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """x [n, cols] f64 -> x @ matrix^T [n, rows] f64."""
        rows = self.block_values.split(256)  # a few at a time: in f64 a large matrix takes half a gigabyte
        return torch.cat([x @ some.double().T for some in rows], dim=1) * self.row_global_scale


class PlainMatrix:
    """A matrix [rows, cols] as it was before quantising."""

    def __init__(self, values: torch.Tensor):
        self.values = values

    def times(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x @ some.double().T for some in self.values.split(256)], dim=1)


class Expert(NamedTuple):
    gate: Matrix | PlainMatrix  # [I, H]
    up: Matrix | PlainMatrix  # [I, H]
    down: Matrix | PlainMatrix  # [H, I]


class Result(NamedTuple):
    out: torch.Tensor  # f64 [T, H]
    x_amax: float  # largest |x| of a routed row, and
    h_amax: float  # largest |h|: what calibration sees
    clamped: float  # part of the gate and up values that the limit changed
    slack: float  # relative L2 that the undecided codes of h can move the output by; see gates.py


class ReferenceLayer:
    """A layer over stacked weights with the fields of the header's nvfp4_moe_layer_weights."""

    def __init__(self, weights, swiglu: Swiglu = Swiglu()):
        self.weights, self.swiglu = weights, swiglu
        self.intermediate_size = weights.w13.shape[1] // 2
        self.experts: dict[int, Expert] = {}

    def expert(self, index: int) -> Expert:
        """One local expert, decoded at first use."""
        if index not in self.experts:
            w, inter = self.weights, self.intermediate_size
            halves = [
                Matrix(
                    w.w13[index, half * inter : (half + 1) * inter],
                    w.w13_block_scale[index, half * inter : (half + 1) * inter],
                    w.w13_global_scale[index, half].expand(inter),
                )
                for half in (0, 1)
            ]
            gate, up = reversed(halves) if w.up_first else halves
            down = Matrix(w.w2[index], w.w2_block_scale[index], w.w2_global_scale[index].expand(w.w2.shape[1]))
            self.experts[index] = Expert(gate, up, down)
        return self.experts[index]

    def forward(
        self,
        x: torch.Tensor,
        local_ids: torch.Tensor,
        topk_weights: torch.Tensor | None,
        mode: str = "bf16",
        input_scales: tuple[float | None, float | None] = (None, None),
    ) -> Result:
        """x bf16 [T, H]; local_ids [T, k] of experts, -1 = unrouted; input scales None = dynamic, as fp8 always is."""
        out = torch.zeros(x.shape, dtype=torch.float64)
        x_amax = h_amax = 0.0
        num_clamped = num_values = 0
        undecided = torch.zeros(x.shape, dtype=torch.float64)
        weights = torch.ones(local_ids.shape) if topk_weights is None else topk_weights
        for index in local_ids.unique().tolist():
            if index < 0:
                continue
            tokens, slots = (local_ids == index).nonzero(as_tuple=True)
            rows = x[tokens]
            expert = self.expert(index)
            gemm1_input = operand(rows, mode, input_scales[0])
            gate, up = expert.gate.times(gemm1_input), expert.up.times(gemm1_input)
            h = self.swiglu(gate, up)
            y = expert.down.times(operand(h if mode == "bf16" else h.bfloat16(), mode, input_scales[1]))
            factor = weights[tokens, slots].double()[:, None]
            out.index_add_(0, tokens, y * factor)
            if mode != "bf16":
                low, high = (operand((h * f).bfloat16(), mode, input_scales[1]) for f in (1 - F32_SUM, 1 + F32_SUM))
                at = (low != high).any(dim=1)
                undecided.index_add_(0, tokens[at], expert.down.times(high[at] - low[at]) * factor[at])

            x_amax, h_amax = max(x_amax, finite_amax(rows)), max(h_amax, finite_amax(h))
            if self.swiglu.limit > 0:
                num_clamped += int((gate > self.swiglu.limit).sum() + (up.abs() > self.swiglu.limit).sum())
                num_values += gate.numel() * 2
        slack = float(undecided.norm() / out.norm().clamp(min=1e-300))
        return Result(out, x_amax, h_amax, num_clamped / max(num_values, 1), slack)


class UnquantizedLayer(ReferenceLayer):
    """The same layer before its weights were quantised, from `weights.unquantized`."""

    def expert(self, index: int) -> Expert:
        w13, w2 = self.weights.unquantized
        return Expert(*(PlainMatrix(half) for half in w13[index].chunk(2)), PlainMatrix(w2[index]))


def operand(rows: torch.Tensor, mode: str, input_scale: float | None) -> torch.Tensor:
    """What enters the GEMM, f64: the rows themselves, or what is left of them after quantising."""
    if mode == "fp8":
        return fp8.dequantize(fp8.quantize(rows))
    return nvfp4.dequantize(nvfp4.quantize(rows, input_scale)) if mode == "nvfp4" else rows.double()


def finite_amax(values: torch.Tensor) -> float:
    return float(torch.where(values.isfinite(), values.abs(), 0).max())


def local_ids(topk_ids, num_experts, num_local_experts, first_local_expert=0, expert_map=None) -> torch.Tensor:
    """Local expert of every slot, -1 where it is not here; ids and map entries are data, any value may appear."""
    ids = topk_ids.long()
    valid = (ids >= 0) & (ids < num_experts)
    ids = torch.where(valid, ids, 0)
    local = ids - first_local_expert if expert_map is None else expert_map.long()[ids]
    return torch.where(valid & (local >= 0) & (local < num_local_experts), local, -1)


def relative_l2(out: torch.Tensor, reference: torch.Tensor) -> float:
    """|out - reference| / |reference|; 0 if both are 0."""
    difference, norm = (out.double() - reference).norm(), reference.norm()
    return float(difference / norm) if norm > 0 else float(difference)


def cosine(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Of the two as one long vector each; 1 if both are 0."""
    a, b = out.double().flatten(), reference.double().flatten()
    norms = a.norm() * b.norm()
    return float(a @ b / norms) if norms > 0 else float(a.norm() == b.norm())
