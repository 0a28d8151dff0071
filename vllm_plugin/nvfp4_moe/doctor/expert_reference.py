# SPDX-License-Identifier: Apache-2.0
"""Routed experts in float64 out of the checkpoint's files, healthy or with a fault: what would explain an output?

    out[t] = sum over k of weights[t, k] * down @ swiglu(gate @ x, up @ x)

Nothing of the library's kernels is used but its reader; a value is e2m1 * block_scale * global_scale.
"""

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


class Swiglu(NamedTuple):
    """gate * sigmoid(alpha * gate) * (up + beta), after gate = min(gate, limit), up = clamp(up, -limit, limit)."""

    limit: float  # 0: none
    alpha: float
    beta: float

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """f64 [T, I]"""
        if self.limit > 0:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (up + self.beta)


class Expert(NamedTuple):
    """Decoded matrices, f64, of this rank's slice."""

    gate: torch.Tensor  # [I, H]
    up: torch.Tensor
    down: torch.Tensor  # [H, I]
    gate_of_up: float  # gate's global scale over up's


def decode(packed: torch.Tensor, block_scale: torch.Tensor, global_scale: float) -> torch.Tensor:
    """[rows, cols/2] codes, even columns in the low nibble, to f64 [rows, cols]."""
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
    scales = block_scale.view(torch.float8_e4m3fn).double().repeat_interleave(16, dim=-1)
    return E2M1.double()[codes.int()] * scales * global_scale


class FileExperts:
    """The experts of one layer, read one by one; `slice` is a tensor-parallel rank's part of the intermediate rows."""

    def __init__(self, checkpoint, layer: int, rows: tuple[int, int] | None = None):
        info = checkpoint.layer_info(layer, any_activation=True)
        self.swiglu = Swiglu(info.swiglu_limit, info.swiglu_alpha or 1.0, info.swiglu_beta)
        self.num_experts, self.intermediate_size = info.num_experts, info.intermediate_size
        self.scaling = info.routed_scaling_factor
        self._checkpoint, self._layer, self._rows = checkpoint, layer, rows
        self.expert = lru_cache(maxsize=64)(self._read)

    def at_limit(self, limit: float) -> "FileExperts":
        """The same experts under another clamp."""
        other = copy.copy(self)
        other.swiglu = self.swiglu._replace(limit=limit)
        return other

    def _read(self, number: int) -> Expert:
        """RuntimeError with the reader's sentence if the file's expert breaks a rule."""
        weights = self._checkpoint.read_layer(self._layer, first_expert=number, num_experts=1)
        inter = self.intermediate_size
        first, end = self._rows or (0, inter)
        gate, up = (
            decode(
                weights.w13[0, at + first : at + end],
                weights.w13_block_scale[0, at + first : at + end],
                float(weights.w13_global_scale[0, half]),
            )
            for half, at in enumerate((0, inter))
        )
        down = decode(weights.w2[0], weights.w2_block_scale[0], float(weights.w2_global_scale[0]))[:, first:end]
        return Expert(gate, up, down, float(weights.w13_global_scale[0, 0] / weights.w13_global_scale[0, 1]))

    def forward(
        self,
        x: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        stage: Callable[["FileExperts", torch.Tensor, torch.Tensor, Expert], torch.Tensor] | None = None,
        shift: int = 0,
    ) -> torch.Tensor:
        """f64 [T, H]; `ids` are of the model, those below 0 are not computed; `stage` stands for swiglu."""
        out = torch.zeros(x.shape, dtype=torch.float64)
        for number in sorted({number for number in ids.flatten().tolist() if number >= 0}):
            tokens, slots = (ids == number).nonzero(as_tuple=True)
            expert = self.expert((number + shift) % self.num_experts)
            rows = x[tokens].double()
            gate, up = rows @ expert.gate.T, rows @ expert.up.T
            hidden = self.swiglu(gate, up) if stage is None else stage(self, gate, up, expert)
            out.index_add_(0, tokens, (hidden @ expert.down.T) * weights[tokens, slots].double()[:, None])
        return out

    def amplified(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The same rows, so large that a gate and an up pass the limit twice: small activations hide no clamp."""
        gate_most = up_most = 1e-30
        for number in {number for number in ids.flatten().tolist() if number >= 0}:
            expert = self.expert(number)
            rows = x[(ids == number).any(1)].double()
            gate_most = max(gate_most, float((rows @ expert.gate.T).amax()))
            up_most = max(up_most, float((rows @ expert.up.T).abs().amax()))
        return (x.float() * (2 * self.swiglu.limit / min(gate_most, up_most))).to(x.dtype)


def clamp_after_silu(of: FileExperts, gate: torch.Tensor, up: torch.Tensor, _: Expert) -> torch.Tensor:
    """Step-3.5's order; off by limit / (1 + e^limit), which is 5e-5 of silu(gate) at a limit of 10."""
    limit = of.swiglu.limit
    gate = (gate * torch.sigmoid(of.swiglu.alpha * gate)).clamp(max=limit)
    return gate * (up.clamp(-limit, limit) + of.swiglu.beta)


def clamp_after_product(of: FileExperts, gate: torch.Tensor, up: torch.Tensor, _: Expert) -> torch.Tensor:
    """Of what leaves the activation, instead of what enters it."""
    return (gate * torch.sigmoid(gate) * up).clamp(-of.swiglu.limit, of.swiglu.limit)


# Faults of one expert, by what stands for its activation.
STAGES = {
    "gate and up are swapped": lambda of, gate, up, expert: of.swiglu(up, gate),
    "the clamp is missing": lambda of, gate, up, expert: of.swiglu._replace(limit=0.0)(gate, up),
    "the clamp of gate comes after silu": clamp_after_silu,
    "the clamp comes after silu and the product": clamp_after_product,
    "up has gate's global scale": lambda of, gate, up, expert: of.swiglu(gate, up * expert.gate_of_up),
}


def hypotheses(of: FileExperts, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the output would be by each fault that has a name."""
    found = {name: of.forward(x, ids, weights, stage) for name, stage in STAGES.items()}
    found["routed weights are applied twice"] = of.forward(x, ids, weights * weights)
    found["routed weights are not applied"] = of.forward(x, ids, torch.ones_like(weights))
    found["the expert map is off by one (the next expert's weights)"] = of.forward(x, ids, weights, shift=1)
    found["the expert map is off by one (the expert's before)"] = of.forward(x, ids, weights, shift=-1)
    if of.scaling not in (0.0, 1.0):
        healthy = of.forward(x, ids, weights)
        found["routed_scaling_factor is applied twice"] = healthy * of.scaling
        found["routed_scaling_factor is not applied"] = healthy / of.scaling
    return found


def relative(out: torch.Tensor, reference: torch.Tensor) -> float:
    """|out - reference| / |reference|; NaN stays NaN."""
    norm = reference.double().norm()
    difference = (out.double() - reference.double()).norm()
    return float(difference / norm) if norm else float(difference)


def worst_row(out: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest relative error of a row: one wrong expert is not averaged away. Rows that should be 0 count whole."""
    norms = reference.double().norm(dim=1)
    errors = (out.double() - reference.double()).norm(dim=1) / torch.where(norms > 0, norms, 1.0)
    return float("nan") if errors.isnan().any() else float(errors.max())


def cosine(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Of the two as one long vector each; 1 if both are 0."""
    a, b = out.double().flatten(), reference.double().flatten()
    norms = a.norm() * b.norm()
    return float(a @ b / norms) if norms else float(a.norm() == b.norm())


def row_cosines(out: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """f64 [rows]: of each row of the last dimension; 1 where both are 0, NaN where one is."""
    a, b = (each.double().reshape(-1, each.shape[-1]) for each in (out, reference))
    norms = a.norm(dim=1) * b.norm(dim=1)
    return torch.where((a == b).all(1), 1.0, (a * b).sum(1) / norms)
