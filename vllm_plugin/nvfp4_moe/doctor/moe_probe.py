# SPDX-License-Identifier: Apache-2.0
"""Our MoE layers of a served model: their calls are caught, and asked again with inputs that decide."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from nvfp4_moe.errors import UnsupportedError

from .expert_reference import FileExperts, cosine, hypotheses, worst_row
from .hooks import layer_of

# Relative error that any token's row may have in a healthy layer: bf16 rounds, eight and four bits round more.
TOLERANCE = {"bf16": 0.02, "fp8": 0.2, "nvfp4": 0.5}
LOW_LIMIT = 1.0  # silu(1) is 0.73; at 10 a clamp before silu and one behind it differ by less than bf16 keeps
CLOSE = 3.0  # a hypothesis explains an output if it is so many times nearer than the healthy reference


# Of vLLM's `apply`, in its order.
ARGUMENTS = (
    *("output", "hidden_states", "w1", "w2", "topk_weights", "topk_ids", "activation", "global_num_experts"),
    *("expert_map", "a1q_scale", "a2_scale", "workspace13", "workspace2", "expert_tokens_meta"),
    "apply_router_weight_on_input",
)


@dataclass
class Call:
    """The arguments of one forward of one layer, and what it gave."""

    experts: Any  # Nvfp4MoeExperts
    arguments: dict[str, Any]
    output: torch.Tensor

    @property
    def x(self) -> torch.Tensor:
        """bf16 [T, H]"""
        return self.arguments["hidden_states"]

    def blocks(self) -> int:
        """Blocks of 16 that enter both GEMMs, where activations have four bits."""
        tokens, hidden = self.x.shape
        slots = self.arguments["topk_ids"].numel()
        return (tokens * hidden + slots * self.experts.moe_config.intermediate_size_per_partition) // 16

    def again(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The served layer itself, whatever was done to it, on other inputs; f64 on the host."""
        device = self.x.device
        output = torch.empty(x.shape, dtype=self.x.dtype, device=device)
        shapes = self.experts.workspace_shapes(x.shape[0], 0, x.shape[1], ids.shape[1])
        changed = {
            "output": output,
            "hidden_states": x.to(device),
            "topk_ids": ids.to(device, self.arguments["topk_ids"].dtype),
            "topk_weights": weights.to(device),
            "workspace2": torch.empty(shapes[1], dtype=self.x.dtype, device=device),
        }
        self.experts.apply(**self.arguments | changed)
        return output.double().cpu()

    @contextlib.contextmanager
    def limited(self, limit: float) -> Iterator[None]:
        """For a while the served layer has another clamp, over the weights that it reads where they lie."""
        served, handle = self.experts.layer, self.experts.handle
        self.experts.layer = type(served)(**handle.options | {"swiglu_limit": limit})
        try:
            self.experts.layer.prepare(handle.weights)
            yield
        finally:
            self.experts.layer.close()
            self.experts.layer = served

    @property
    def in_place(self) -> Any:
        """LayerWeights that the layer reads where they lie, in the order of files; None where they were repacked."""
        weights = self.experts.handle.weights
        return None if weights is None or weights.interleaved or weights.up_first else weights


class MoeWatch:
    """Catches the first call of each of our layers."""

    def __init__(self):
        from nvfp4_moe.plugin.experts import Nvfp4MoeExperts

        self.calls: dict[str, Call] = {}
        self._class, self._apply = Nvfp4MoeExperts, Nvfp4MoeExperts.apply

        def apply(experts, *positional, **named):
            arguments = dict(zip(ARGUMENTS, positional)) | named
            experts.may_run_late = False  # the output is looked at here
            fresh = experts.layer_name not in self.calls
            if fresh:  # the output may lie over the input
                x = arguments["hidden_states"].detach().clone()
            self._apply(experts, **arguments)
            if fresh:
                self.calls[experts.layer_name] = Call(
                    experts, arguments | {"hidden_states": x}, arguments["output"].detach().clone()
                )

        Nvfp4MoeExperts.apply = apply

    def remove(self) -> None:
        """The class is as before; the calls stay and can be asked again."""
        self._class.apply = self._apply


def examine(checkpoint, call: Call, mode: str, num_tokens: int, rank: tuple[int, int]) -> dict[str, Any]:
    """One layer: its output against the files' experts in float64, and if it is ill, what explains it."""
    name = call.experts.layer_name
    found: dict[str, Any] = {"name": name, "layer": layer_of(name)}
    x, ids, weights = inputs(call, num_tokens)
    local = here(call, ids)
    found["router"] = router(call)
    out = call.output[: len(x)].double().cpu()
    if not x.isfinite().all():
        return found | {"verdict": "input", "tokens": [int((~x.isfinite()).any(1).nonzero()[0])]}
    if not out.isfinite().all():
        return found | not_finite(checkpoint, call, x, ids, out)
    damage = spoilt(call)
    if damage:
        return found | {"verdict": "memory", "why": damage}
    try:
        info = checkpoint.layer_info(found["layer"], any_activation=True)
    except UnsupportedError as error:  # the engine's loader reads namings that the library's reader does not
        return found | {"verdict": "not compared", "why": str(error).splitlines()[0]}
    if info.activation != "swiglu" or info.has_bias:
        biases = " and biases" if info.has_bias else ""
        return found | {"verdict": "not compared", "why": f"activation {info.activation}{biases}"}
    experts = FileExperts(checkpoint, found["layer"], rows_of(call, checkpoint, found["layer"], rank))
    tolerance = TOLERANCE.get(mode, TOLERANCE["bf16"])
    for trial, experts, rows, got in trials(call, experts, mode, (x, out), ids, weights):  # noqa: B020
        reference = experts.forward(rows, local, weights)
        error = worst_row(got, reference)
        found.setdefault("cosine", cosine(got, reference))
        found.setdefault("error", error)
        if error > tolerance or error != error:
            causes = {cause: worst_row(got, each) for cause, each in hypotheses(experts, rows, local, weights).items()}
            best = min(causes, key=causes.__getitem__)
            explained = causes[best] < error / CLOSE and causes[best] < 2 * tolerance
            return found | {
                "verdict": "wrong",
                "trial": trial,
                "wrong_error": error,
                "wrong_cosine": cosine(got, reference),
                "cause": best if explained else None,
                "cause_error": causes[best],
                **(
                    {"experts": None}
                    if explained
                    else blame(checkpoint, call, guilty(experts, call, rows, local, tolerance))
                ),
            }
    return found | {"verdict": "healthy"}


Trial = tuple[str, FileExperts, torch.Tensor, torch.Tensor]


def trials(
    call: Call,
    experts: FileExperts,
    mode: str,
    served: tuple[torch.Tensor, torch.Tensor],
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> Iterator[Trial]:
    """(what it is, the reference, rows that enter, what the layer made of them); `served` are rows and output."""
    x, local = served[0], here(call, ids)
    yield "as served", experts, *served
    if experts.swiglu.limit <= 0 or mode == "nvfp4":  # four bits saturate on what no calibration saw
        return
    large = experts.amplified(x, local)
    yield "amplified, so that the clamp acts", experts, large, call.again(large, ids, weights)
    if call.in_place is not None:
        low = experts.at_limit(LOW_LIMIT)
        large = low.amplified(x, local)
        with call.limited(LOW_LIMIT):
            got = call.again(large, ids, weights)
        yield f"with a clamp at {LOW_LIMIT:.0f}, where its place shows", low, large, got


def spoilt(call: Call) -> str | None:
    """`1 of 8192 values of expert 17's w13_block_scale is not finite`, where weights are read as they lie.

    Looked for by itself: loading refuses such scales, so that kernels make a wrong number of one and no NaN.
    """
    for name in ("w13_block_scale", "w13_global_scale", "w2_block_scale", "w2_global_scale"):
        values = getattr(call.in_place, name, None)
        if values is None:
            continue
        values = values.as_subclass(torch.Tensor)
        is_e4m3 = values.dtype != torch.float32
        bad = (values.view(torch.uint8) & 0x7F == 0x7F) if is_e4m3 else ~values.isfinite()
        bad = bad.flatten(1) if bad.dim() > 1 else bad[:, None]
        ill = bad.any(1).nonzero().flatten().tolist()
        if ill:
            count = int(bad[ill[0]].sum())
            return f"{count} of {bad.shape[1]} values of expert {global_number(call, ill[0])}'s {name} are not finite"
    return None


def global_number(call: Call, local: int) -> int:
    """Of an expert, by its place on this rank."""
    expert_map = call.arguments["expert_map"]
    return local if expert_map is None else int((expert_map == local).nonzero()[0])


def blame(checkpoint, call: Call, wrong: dict[int, float] | None) -> dict[str, Any]:
    """Experts that are wrong alone, and what of theirs in memory is not the file's."""
    memory = {number: difference(checkpoint, call, number) for number in wrong or {}}
    return {"experts": wrong, "memory": {number: text for number, text in memory.items() if text}}


def difference(checkpoint, call: Call, number: int) -> str | None:
    """`16 of 8192 values of its w13_block_scale are not the file's`; None if they agree."""
    held, expert_map = call.in_place, call.arguments["expert_map"]
    if held is None:
        return None
    file = checkpoint.read_layer(layer_of(call.experts.layer_name), first_expert=number, num_experts=1)
    at = number if expert_map is None else int(expert_map[number])
    for name in ("w13", "w13_block_scale", "w13_global_scale", "w2", "w2_block_scale", "w2_global_scale"):
        mine, its = (plain(getattr(weights, name)[row]) for weights, row in ((held, at), (file, 0)))
        if mine.shape != its.shape:  # a tensor-parallel rank's part
            continue
        wrong = ~torch.isclose(mine, its, rtol=1e-5, atol=0.0)
        if wrong.any():
            return f"{int(wrong.sum())} of {wrong.numel()} values of its {name} are not the file's"
    return None


def plain(values: torch.Tensor) -> torch.Tensor:
    """f32 numbers of scales, codes as they are."""
    values = values.as_subclass(torch.Tensor).cpu()
    if values.dtype == torch.float32:
        return values
    if values.dtype == torch.float8_e4m3fn:
        return values.float()
    return values.view(torch.uint8).float()


def inputs(call: Call, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first tokens, on the host."""
    x = call.x[:num_tokens].cpu()
    weights = call.arguments["topk_weights"]
    if weights is None or call.arguments["apply_router_weight_on_input"]:
        weights = torch.ones(call.arguments["topk_ids"].shape)
    return x, call.arguments["topk_ids"][: len(x)].long().cpu(), weights[: len(x)].float().cpu()


def here(call: Call, ids: torch.Tensor) -> torch.Tensor:
    """Ids, -1 where another rank has the expert."""
    expert_map = call.arguments["expert_map"]
    valid = (ids >= 0) & (ids < call.arguments["global_num_experts"])
    if expert_map is not None:
        valid &= expert_map.cpu().long()[ids.clamp(min=0, max=len(expert_map) - 1)] >= 0
    return torch.where(valid, ids, -1)


def rows_of(call: Call, checkpoint, layer: int, rank: tuple[int, int]) -> tuple[int, int] | None:
    """A tensor-parallel rank's part of the intermediate rows."""
    whole = checkpoint.layer_info(layer, any_activation=True).intermediate_size
    part = -(-whole // rank[1])
    served = call.experts.moe_config.intermediate_size_per_partition
    return None if served >= whole else (min(rank[0] * part, whole), min((rank[0] + 1) * part, whole))


def router(call: Call) -> dict[str, Any]:
    """What the router gave: out-of-range ids, weights that are not finite, their sum for each token."""
    ids, weights = call.arguments["topk_ids"].long(), call.arguments["topk_weights"]
    outside = ((ids < -1) | (ids >= call.arguments["global_num_experts"])).sum()
    sums = torch.ones(1) if weights is None else weights.float().sum(1)
    finite = bool(sums.isfinite().all())
    return {"outside": int(outside), "finite": finite, "sums": [float(sums.min()), float(sums.max())]}


def not_finite(checkpoint, call: Call, x: torch.Tensor, ids: torch.Tensor, out: torch.Tensor) -> dict[str, Any]:
    """Finite went in and NaN came out: which experts alone produce it, and which of their GEMMs?"""
    token = int((~out.isfinite()).any(1).nonzero()[0])
    one = torch.ones(1, 1)
    alone = {}
    for number in sorted({number for number in here(call, ids).flatten().tolist() if number >= 0}):
        row = call.again(x[token : token + 1], torch.tensor([[number]]).expand(1, ids.shape[1]), padded(one, ids))
        if not row.isfinite().all():
            alone[number] = int((~row.isfinite()).sum())
    columns = x.shape[1]
    # A NaN of gate or up is in h, and h is in every output; a NaN of down is in its own row.
    gemms = {number: "gate or up" if bad > columns // 2 else "down" for number, bad in alone.items()}
    in_files = {number: file_fault(checkpoint, layer_of(call.experts.layer_name), number) for number in alone}
    return {"verdict": "not finite", "tokens": [token], "experts": gemms, "files": in_files}


def padded(weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """One weight in the first slot; the others count nothing, so that one expert computes alone."""
    weights = torch.zeros(1, ids.shape[1])
    weights[:, :1] = weight
    return weights


def file_fault(checkpoint, layer: int, number: int) -> str | None:
    """The reader's sentence on this expert's files; None if they are healthy."""
    try:
        checkpoint.read_layer(layer, first_expert=number, num_experts=1)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def guilty(
    experts: FileExperts, call: Call, x: torch.Tensor, local: torch.Tensor, tolerance: float
) -> dict[int, float] | None:
    """Experts whose output alone is wrong, with their error; None if each alone is right."""
    wrong = {}
    for number in sorted({number for number in local.flatten().tolist() if number >= 0})[:256]:
        rows = x[(local == number).any(1)][:2]
        ids = torch.full((len(rows), local.shape[1]), number)
        weights = torch.zeros(ids.shape)
        weights[:, 0] = 1
        only = torch.full_like(ids, -1)
        only[:, 0] = number
        error = worst_row(call.again(rows, ids, weights), experts.forward(rows, only, weights))
        if error > tolerance or error != error:
            wrong[number] = error
    return wrong or None
