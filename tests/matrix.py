# SPDX-License-Identifier: Apache-2.0
"""The matrix of layers that every backend runs: shapes, routings and activations that real engines test, and beyond.

Each case says which experts the tokens touch; at full model size only those get weights (see random_code_weights).
"""

from dataclasses import dataclass

import torch

from reference import generate
from reference.layer import Gelu, GeluTanh, Relu2, Silu, Situ, Swiglu, SwigluStep

MODES = ("bf16", "nvfp4", "fp8")
DEEPSEEK_CLAMP = 10.0


@dataclass(frozen=True)
class Case:
    num_experts: int
    top_k: int
    hidden: int
    intermediate: int
    num_tokens: int
    skew: str = "uniform"
    swiglu: Swiglu = Swiglu()
    # Experts [first, first + count) are here; count 0 = all.
    first_local: int = 0
    num_local: int = 0
    # Experts that tokens may choose; 0 = all.
    num_touched: int = 0
    ids_dtype: torch.dtype = torch.int32
    interleaved: bool = False
    bias: bool = False
    shared_output: bool = False

    @property
    def local_count(self) -> int:
        return self.num_local or self.num_experts

    def __str__(self) -> str:
        s = self.swiglu
        parts = [
            f"E{self.num_experts}k{self.top_k}H{self.hidden}I{self.intermediate}T{self.num_tokens}",
            self.skew if self.skew != "uniform" else "",
            s.name if s.name != "swiglu" else "",
            f"limit{s.limit:g}alpha{s.alpha:g}beta{s.beta:g}" if s != type(s)() else "",
            "interleaved" if self.interleaved else "",
            "bias" if self.bias else "",
            "shared" if self.shared_output else "",
            f"local{self.first_local}+{self.num_local}" if self.num_local else "",
            "i64" if self.ids_dtype == torch.int64 else "",
        ]
        return "-".join(part for part in parts if part)


def _cases() -> list[Case]:
    clamp = Swiglu(limit=DEEPSEEK_CLAMP)
    cases = []

    # Whole models' (E, k, H, I), few tokens on few experts. The last two are DeepSeek-V4 Flash and Pro under EP8.
    for e, k, h, i in [(60, 4, 2048, 1408), (128, 4, 2880, 2880), (8, 2, 4096, 14336), (64, 6, 2048, 1408)]:
        cases.append(Case(e, k, h, i, 8, num_touched=k))
    cases.append(Case(256, 8, 7168, 2048, 8, num_touched=8, swiglu=clamp))
    cases.append(Case(256, 6, 4096, 2048, 1, num_touched=6, swiglu=clamp))
    cases.append(Case(256, 6, 4096, 2048, 8, num_touched=6, swiglu=clamp, first_local=64, num_local=32))
    cases.append(Case(384, 6, 7168, 3072, 8, num_touched=6, swiglu=clamp, first_local=336, num_local=48))

    # Small layers, every activation.
    for e, k, h, i in [
        (8, 1, 512, 512),
        (4, 4, 512, 512),
        (7, 2, 256, 512),
        (13, 3, 256, 512),
        (4, 2, 64, 128),
        (4, 2, 128, 64),
    ]:
        for tokens in (1, 8):
            cases.append(Case(e, k, h, i, tokens))
    for limit in (0.0, 7.0):
        for alpha in (1.0, 1.702):
            for beta in (0.0, 1.0):
                cases.append(Case(8, 2, 256, 512, 8, swiglu=Swiglu(limit, alpha, beta)))
    cases.append(Case(8, 2, 256, 512, 64, swiglu=Swiglu(0.05)))  # the clamp cuts most values

    # Other kinds of experts: small, smaller than a tile, and many rows; then Nemotron-3 Super and gpt-oss, few tokens.
    oai = Swiglu(7.0, 1.702, 1.0)
    gated = (SwigluStep(7.0), Situ(25.0, beta=4.0), GeluTanh(), Gelu())
    kinds = [dict(swiglu=kind) for kind in (*gated, Relu2(), Silu())]
    kinds += [dict(swiglu=Relu2(), bias=True), dict(swiglu=oai, interleaved=True, bias=True)]
    for kind in kinds:
        cases.append(Case(8, 2, 256, 512, 8, **kind))
        cases.append(Case(8, 2, 48, 80, 5, **kind))
        cases.append(Case(16, 4, 256, 256, 300, skew="zipf", **kind))
    cases.append(Case(512, 22, 1024, 2688, 8, num_touched=22, swiglu=Relu2()))
    few = dict(num_touched=4, first_local=64, num_local=8)  # biases and turns of rows touch all that is here
    cases.append(Case(128, 4, 2880, 2880, 8, swiglu=oai, interleaved=True, bias=True, **few))

    # Sizes that are no multiple of a tile.
    for h, i in [(288, 128), (288, 192), (160, 192), (320, 160), (256, 192), (16, 16), (48, 80)]:
        cases.append(Case(8, 2, h, i, 5))

    # Numbers of tokens around every tile, small layer.
    for tokens in [1, 2, 3, 7, 17, 63, 64, 65, 127, 128, 129, 256, 257, 1024, 2048, 4095, 4096, 4097]:
        cases.append(Case(32, 4, 256, 128, tokens, swiglu=clamp, ids_dtype=torch.int64 if tokens % 2 else torch.int32))
    for e, k in [(8, 1), (8, 6), (64, 8), (512, 8)]:
        cases.append(Case(e, k, 256, 256, 64))

    # Skews of routing.
    for skew in SKEWS:
        cases.append(Case(16, 4, 256, 256, 129, skew=skew))
        cases.append(Case(16, 4, 256, 256, 33, skew=skew, first_local=8, num_local=4))

    # Weight shapes of dense models, where a GEMM's M, N and K all leave the tiles behind.
    for m, n, k in [
        (2, 1024, 1024),
        (2, 1024, 1536),
        (2, 3072, 1024),
        (64, 1024, 1024),
        (64, 2048, 1536),
        (224, 1024, 1536),
    ]:
        cases.append(Case(40, 6, k, n, m, num_touched=6))
    cases.append(Case(5, 2, 2048, 128, 666))
    cases.append(Case(12, 3, 256, 1024, 123))
    cases.append(Case(64, 8, 2048, 128, 8, num_touched=4 + 4))

    cases.append(Case(16, 4, 48, 80, 300, skew="zipf", first_local=8, num_local=4, shared_output=True))

    # Expert shards: first, middle, last rank.
    for e, k, first, local in [
        (16, 4, 0, 8),
        (16, 4, 8, 8),
        (16, 4, 4, 4),
        (256, 8, 64, 64),
        (256, 8, 192, 64),
        (96, 8, 32, 32),
    ]:
        cases.append(Case(e, k, 128, 128, 20, first_local=first, num_local=local))
    for tokens, k in [(4, 8), (5, 8), (19, 8), (1, 8), (128, 1)]:
        cases.append(Case(256, k, 128, 128, tokens, first_local=32, num_local=32))
    cases.append(Case(384, 6, 128, 128, 64, first_local=372, num_local=12))
    return cases


SKEWS = ("uniform", "hot1", "zipf", "all_negative", "all_to_one", "hostile", "duplicates", "one_expert_each")


def route(case: Case, generator: torch.Generator) -> torch.Tensor:
    """topk_ids [T, k] of a case."""
    # Of the experts that may be chosen about half are local, if any are remote.
    candidates = torch.arange(case.num_experts)
    if case.num_touched:
        candidates = (
            torch.arange(case.num_touched) + case.first_local - case.num_touched // 2 * bool(case.num_local)
        ) % case.num_experts
    t, k, n = case.num_tokens, case.top_k, len(candidates)
    ids = generate.random_ids(t, n, k, generator)
    if case.skew == "hot1":
        ids[:, 0] = n // 2
    elif case.skew == "zipf":
        ids = generate.zipf_ids(t, n, k, generator)
    elif case.skew == "all_to_one":
        ids[:] = n // 2
    elif case.skew == "duplicates":
        ids[:, 1:] = ids[:, :1]
    elif case.skew == "one_expert_each":
        ids = (torch.arange(t * k).view(t, k) % n).int()
    ids = candidates[ids.long()]
    if case.skew == "all_negative":
        ids[:] = -1
    elif case.skew == "hostile":
        bad = torch.tensor(generate.hostile_ids(case.num_experts, case.ids_dtype))
        where = torch.rand(t, k, generator=generator) < 0.4
        ids[where] = bad[torch.arange(int(where.sum())) % len(bad)]
    return ids.to(case.ids_dtype)


CASES = _cases()
