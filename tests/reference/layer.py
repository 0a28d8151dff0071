# SPDX-License-Identifier: Apache-2.0
"""The MoE layer and the linear in float64 on the dequantised weights.

    out[t] = sum over k of topk_weights[t, k] * expert(topk_ids[t, k])(x[t])
    expert(x) = w2 @ activation(gate @ x + gate_bias, up @ x + up_bias) + w2_bias

In modes "nvfp4" and "fp8" what enters a GEMM is quantised first, as the law says: x, and h rounded to bf16.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch

from . import fp8, nvfp4

F32_SUM = 2.0**-20  # relative error that h may have from sums of thousands of products in f32


@dataclass(frozen=True)
class Swiglu:
    """gate * sigmoid(alpha * gate) * (up + beta), after gate = min(gate, limit), up = clamp(up, -limit, limit)."""

    limit: float = 0.0  # 0: none
    alpha: float = 1.0
    beta: float = 0.0
    name: ClassVar[str] = "swiglu"
    gated: ClassVar[bool] = True

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if self.limit > 0:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (up + self.beta)


class SwigluStep(Swiglu):
    """min(silu(gate), limit) * clamp(up, -limit, limit): Step-3.5."""

    name = "swiglu_step"

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return (gate * torch.sigmoid(gate)).clamp(max=self.limit) * up.clamp(-self.limit, self.limit)


class Situ(Swiglu):
    """beta * tanh(gate / beta) * sigmoid(gate) * limit * tanh(up / limit): Kimi-K3."""

    name = "situ"

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        bounded = self.limit * torch.tanh(up / self.limit) if self.limit else up
        return self.beta * torch.tanh(gate / self.beta) * torch.sigmoid(gate) * bounded


class GeluTanh(Swiglu):
    """gelu(gate, approximate="tanh") * up: Gemma."""

    name = "gelu_tanh"

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(gate, approximate="tanh") * up


class Gelu(Swiglu):
    """gelu(gate) * up, by erf."""

    name = "gelu"

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        # As x * erfc / 2: torch's own 1 + erf loses what there is where erf is near -1.
        return gate * torch.special.erfc(-gate * 0.5**0.5) / 2 * up


class Relu2(Swiglu):
    """max(x, 0)^2, no gate: Nemotron-H."""

    name, gated = "relu2", False

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return up.clamp(min=0) ** 2


class Silu(Swiglu):
    """x * sigmoid(x), no gate."""

    name, gated = "silu", False

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return up * torch.sigmoid(up)


ACTIVATIONS = {kind.name: kind for kind in (Swiglu, SwigluStep, Situ, GeluTanh, Relu2, Silu, Gelu)}


class Matrix:
    """An NVFP4 matrix [rows, cols] whose rows fall into equal groups with a global scale each, and its bias [rows]."""

    def __init__(
        self,
        packed: torch.Tensor,
        block_scale: torch.Tensor,
        row_global_scale: torch.Tensor,
        bias: torch.Tensor | None = None,
    ):
        self.bias = bias
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

    def __init__(self, values: torch.Tensor, bias: torch.Tensor | None = None):
        self.values, self.bias = values, bias

    def times(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x @ some.double().T for some in self.values.split(256)], dim=1)


def linear(matrix: Matrix | PlainMatrix, x: torch.Tensor) -> torch.Tensor:
    """x @ matrix^T + bias"""
    y = matrix.times(x)
    return y if matrix.bias is None else y + matrix.bias.double()


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
        self.intermediate_size = weights.w13.shape[1] // (2 if swiglu.gated else 1)
        self.experts: dict[int, Expert] = {}

    def expert(self, index: int) -> Expert:
        """One local expert, decoded at first use."""
        if index not in self.experts:
            w, inter = self.weights, self.intermediate_size
            w13 = [
                Matrix(
                    w.w13[index, rows],
                    w.w13_block_scale[index, rows],
                    w.w13_global_scale[index, at].expand(inter),
                    None if w.w13_bias is None else w.w13_bias[index, rows],
                )
                for at, rows in enumerate(self.rows())
            ]
            bias = None if w.w2_bias is None else w.w2_bias[index]
            down = Matrix(w.w2[index], w.w2_block_scale[index], w.w2_global_scale[index].expand(w.w2.shape[1]), bias)
            self.experts[index] = self.in_order(w13, down)
        return self.experts[index]

    def rows(self) -> list[slice]:
        """Of each projection in w13, in the order of their global scales."""
        inter = self.intermediate_size
        if not self.swiglu.gated:
            return [slice(None)]
        if self.weights.interleaved:
            return [slice(0, None, 2), slice(1, None, 2)]
        return [slice(inter), slice(inter, None)]

    def in_order(self, w13: list[Matrix | PlainMatrix], down: Matrix | PlainMatrix) -> Expert:
        """Without a gate, up stands in its place, and the activation does not read it."""
        gate, up = w13[0], w13[-1]
        return Expert(up, gate, down) if self.weights.up_first else Expert(gate, up, down)

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
            gate, up = linear(expert.gate, gemm1_input), linear(expert.up, gemm1_input)
            h = self.swiglu(gate, up)
            y = linear(expert.down, operand(h if mode == "bf16" else h.bfloat16(), mode, input_scales[1]))
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
        w, (w13, w2) = self.weights, self.weights.unquantized
        bias = lambda of, rows: None if of is None else of[index, rows]  # noqa: E731
        halves = [PlainMatrix(w13[index, rows], bias(w.w13_bias, rows)) for rows in self.rows()]
        return self.in_order(halves, PlainMatrix(w2[index], bias(w.w2_bias, slice(None))))


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
