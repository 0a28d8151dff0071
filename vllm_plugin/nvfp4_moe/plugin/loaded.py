# SPDX-License-Identifier: Apache-2.0
"""What of a MoE layer was never loaded, by tensor and expert: marked before loading, looked for afterwards.

A shard (gate, up or down of one expert) is written by its file as a whole. Before that its first row is as marked, and
the rest is zero, which adds nothing where a tensor-parallel shard is padded.
"""

from collections.abc import Iterator

import torch

# No quantiser writes a row of nothing but -0, and no block scale is NaN.
CODE_MARK = 0x88
SCALE_MARK = 0x7F

CODES = ("w13_weight", "w2_weight", "w13_weight_packed", "w2_weight_packed")
BLOCK_SCALES = ("w13_weight_scale", "w2_weight_scale")
WEIGHT_SCALES = ("w13_weight_scale_2", "w2_weight_scale_2", "w13_weight_global_scale", "w2_weight_global_scale")
BIASES = ("w13_bias", "w2_bias")
INPUT_SCALES = ("w13_input_scale", "w2_input_scale", "w13_input_global_scale", "w2_input_global_scale")


def mark(layer: torch.nn.Module) -> None:
    """Set all parameters of a layer as they are before anything is loaded; an input scale that stays so is left out."""
    for name, parameter in layer.named_parameters(recurse=False):
        data = parameter.data.as_subclass(torch.Tensor)
        if name in WEIGHT_SCALES + INPUT_SCALES + BIASES:
            data.fill_(torch.nan)
        elif name in CODES:
            data.zero_()
            for shard in shards(name, data):
                shard[:, 0] = CODE_MARK
        elif name in BLOCK_SCALES:
            data.view(torch.uint8).zero_()
            for shard in shards(name, data.view(torch.uint8)):
                shard[:, 0, 0] = SCALE_MARK


def missing(layer: torch.nn.Module) -> dict[str, list[int]]:
    """Local experts of which a file has not brought a tensor of the weights, by parameter."""
    found = {}
    for name, parameter in layer.named_parameters(recurse=False):
        data = parameter.data.as_subclass(torch.Tensor)
        if name in WEIGHT_SCALES + BIASES:
            absent = data.isnan().flatten(1).any(1) if data.dim() > 1 else data.isnan()
        elif name in CODES:
            absent = any_of(shard[:, 0].eq(CODE_MARK).all(-1) for shard in shards(name, data))
        elif name in BLOCK_SCALES:
            absent = any_of(shard[:, 0, 0] == SCALE_MARK for shard in shards(name, data.view(torch.uint8)))
        else:
            continue
        if experts := [expert for expert in absent.nonzero().flatten().tolist() if is_blank(name, data, expert)]:
            found[name] = experts
    return found


def refuse_missing(layer: torch.nn.Module, found: dict[str, list[int]]) -> None:
    """Raise if there are any."""
    if not found:
        return
    text = "; ".join(f"{name} of {listed(experts)}" for name, experts in found.items())
    raise ValueError(
        f"{layer.layer_name}: {text} is missing; every expert must have all its tensors. Look for the shard that the "
        "checkpoint's index names, or export it again."
    )


def listed(experts: list[int], most: int = 8) -> str:
    """`expert 3`, or `experts 0, 1, 2 and 61 more` (numbers of this rank's experts)."""
    shown = ", ".join(map(str, experts[:most]))
    more = f" and {len(experts) - most} more" if len(experts) > most else ""
    return f"expert{'s' if len(experts) > 1 else ''} {shown}{more}"


def shards(name: str, data: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views [experts, rows, columns] of what one file brings at a time: gate and up, or down."""
    return iter(data.chunk(2, dim=1)) if name.startswith("w13") else iter((data,))


def any_of(flags: Iterator[torch.Tensor]) -> torch.Tensor:
    """[experts]: is it so for any shard?"""
    return torch.stack(list(flags)).any(0)


def is_blank(name: str, data: torch.Tensor, expert: int) -> bool:
    """Is a marked shard of the expert as it was marked, all rows of it? Scales of one number have no other rows."""
    if name in WEIGHT_SCALES + BIASES:
        return True
    rows = data.view(torch.uint8)[expert : expert + 1]
    marked = (lambda s: s[:, 0].eq(CODE_MARK).all()) if name in CODES else (lambda s: s[0, 0, 0] == SCALE_MARK)
    return any(bool(marked(shard)) and not shard[:, 1:].any() for shard in shards(name, rows))
