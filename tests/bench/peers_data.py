# SPDX-License-Identifier: Apache-2.0
"""What peers are given, and what they are held to: weights that everyone can hold, tokens, exact rows, floors."""

import math
from typing import NamedTuple

import torch
from gpu_layer import ONE_GPU, SHAPES

from nvfp4_moe import LayerWeights

SHAPES.update(ONE_GPU)
LIMIT = 10.0  # DeepSeek-V4's swiglu_limit
BYTES_A_WEIGHT = 0.5625  # NVFP4's codes and block scales, which is what a floor counts for everybody
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SAMPLE = 32


class Weights(NamedTuple):
    """The same numbers as NVFP4 and as MXFP4: block scales are powers of two, equal in pairs."""

    layer: LayerWeights
    e8m0: dict[str, torch.Tensor]
    """u8 [L, rows, cols / 32] of w13 and w2: MXFP4's scales, which have the global ones in them."""


def make_weights(shape: str, seed: int) -> Weights:
    """Random codes; block scales from 2^-4 to 2^3; global scales of 2^-9 or 2^-10, so that rms is about 0.02."""
    hidden, inter, _, local, _ = SHAPES[shape]
    generator = torch.Generator("cuda").manual_seed(seed)

    def random(*size, low, high):
        return torch.randint(low, high, size, dtype=torch.uint8, device="cuda", generator=generator)

    tensors, e8m0 = [], {}
    for name, rows, cols in (("w13", 2 * inter, hidden), ("w2", hidden, inter)):
        codes = random(local, rows, cols // 2, low=0, high=256)
        exponents = random(local, rows, cols // 32, low=3, high=11)  # as e4m3 has them, with a bias of 7
        halvings = random(local, low=9, high=11)
        globals_ = torch.tensor([2.0**-9, 2.0**-10], device="cuda")[halvings.int() - 9]
        # Gate's and up's are one here; w2 has one an expert.
        globals_ = globals_[:, None].repeat(1, 2).contiguous() if name == "w13" else globals_
        tensors += [codes, (exponents << 3).repeat_interleave(2, dim=-1).contiguous(), globals_]
        e8m0[name] = exponents + (127 - 7) - halvings[:, None, None]
    return Weights(LayerWeights(*tensors), e8m0)


def make_batches(shape: str, num_tokens: int) -> list[tuple]:
    """x, topk_ids and topk_weights of each call of a graph: the fewer tokens, the more calls.

    Ids are drawn as in the records since 2026-11-22, so that at few tokens the same numbers of experts are touched.
    """
    hidden, _, experts, _, top_k = SHAPES[shape]
    batches = []
    for call in range(16 if num_tokens <= 4 else 8 if num_tokens <= 64 else 4 if num_tokens <= 512 else 2):
        generator = torch.Generator().manual_seed(7000 + 37 * num_tokens + call)
        ids = torch.rand(num_tokens, experts, generator=generator).topk(top_k, dim=1).indices.int()
        topk_weights = torch.rand(num_tokens, top_k, generator=generator) + 0.1
        topk_weights = 2.5 * topk_weights / topk_weights.sum(1, keepdim=True)
        x = 3 * torch.randn(num_tokens, hidden, device="cuda")
        batches.append((x.bfloat16(), ids.cuda(), topk_weights.cuda()))
    return batches


def tuned_rows(rows: int) -> int:
    """The size for which Humming's table of configurations has the entry that holds `rows`."""
    if rows <= 8:
        return 1 << (rows - 1).bit_length()
    step = 8
    for limit, coarser in ((1024, 16), (2048, 32), (4096, 64), (16384, 128)):
        if math.ceil(rows / step) * step > limit:
            step = coarser
    return math.ceil(rows / step) * step


def sampled_rows(shape: str, ids: torch.Tensor) -> torch.Tensor:
    """Tokens to check: of all, and of those that have a local expert."""
    local = SHAPES[shape][3]
    generator = torch.Generator().manual_seed(len(ids))
    of_all = torch.randperm(len(ids), generator=generator)[:SAMPLE].to(ids.device)
    routed = (ids < local).any(1).nonzero().flatten()[: SAMPLE // 2]
    return torch.cat([of_all, routed]).unique()


def dequantised(codes: torch.Tensor, block_scale: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """One expert's matrix in float64."""
    values = torch.tensor([*E2M1, *(-value for value in E2M1)], dtype=torch.float64, device=codes.device)
    e2m1 = torch.stack([values[(codes & 15).int()], values[(codes >> 4).int()]], dim=-1).flatten(1)
    scale = block_scale.view(torch.float8_e4m3fn).double() * global_scale.double()
    return (e2m1.unflatten(1, (-1, 16)) * scale.unsqueeze(-1)).flatten(1)


def exact(shape: str, weights: LayerWeights, x, ids, topk_weights) -> torch.Tensor:
    """The layer in float64; local experts are the first ones."""
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for expert in ids[ids < SHAPES[shape][3]].unique().tolist():
        tokens, slots = (ids == expert).nonzero(as_tuple=True)
        w13 = dequantised(weights.w13[expert], weights.w13_block_scale[expert], weights.w13_global_scale[expert, 0])
        gate, up = (x[tokens].double() @ w13.t()).chunk(2, dim=1)
        h = torch.nn.functional.silu(gate.clamp(max=LIMIT)) * up.clamp(-LIMIT, LIMIT)
        y = h @ dequantised(weights.w2[expert], weights.w2_block_scale[expert], weights.w2_global_scale[expert]).t()
        out.index_add_(0, tokens, y * topk_weights[tokens, slots].double().unsqueeze(1))
    return out


def errors(out: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """Relative L2 of all rows, and of the worst one; a row without local experts must be zero, and NaN is infinite."""
    apart, size = (out.double() - wanted).norm(dim=1), wanted.norm(dim=1)
    if not bool(apart.isfinite().all()) or bool(apart[size == 0].any()):
        return float("inf"), float("inf")
    routed = size > 0
    worst = (apart[routed] / size[routed]).max().item() if bool(routed.any()) else 0.0
    return (apart.norm() / size.norm().clamp(min=1e-300)).item(), worst


def floors(shape: str, batches: list[tuple], rates: dict[str, float]) -> tuple[float, float]:
    """us: the longer of bytes over the read rate and operations over the bf16 rate; the same with the fp8 rate."""
    hidden, inter, _, local, _ = SHAPES[shape]
    routed = [ids[ids < local] for _, ids, _ in batches]
    experts = sum(len(ids.unique()) for ids in routed) / len(routed)
    slots = sum(len(ids) for ids in routed) / len(routed)
    num_tokens = len(batches[0][0])
    moved = experts * 3 * hidden * inter * BYTES_A_WEIGHT + num_tokens * hidden * 4
    operations = slots * 6 * hidden * inter
    return tuple(1e6 * max(moved / rates["read"], operations / rates[multiplies]) for multiplies in ("bf16", "fp8"))
