# SPDX-License-Identifier: Apache-2.0
"""What of a MoE layer or a linear was never loaded, by tensor: marked before loading, looked for afterwards.

A shard (gate, up or down of one expert, one part of a fused linear) is written by its file as a whole. Before that its
first row is as marked, and the rest is zero, which adds nothing where a tensor-parallel shard is padded. A reload makes
parameters anew, of whatever memory held: these are marked before the first load into them, or when they are looked at.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from types import MethodType

import torch

# No quantiser writes a row of nothing but -0, and no block scale is NaN.
CODE_MARK = 0x88
SCALE_MARK = 0x7F

CODES = ("w13_weight", "w2_weight", "w13_weight_packed", "w2_weight_packed", "weight", "weight_packed")
BLOCK_SCALES = ("w13_weight_scale", "w2_weight_scale", "weight_scale")
WEIGHT_SCALES = ("w13_weight_scale_2", "w2_weight_scale_2", "w13_weight_global_scale", "w2_weight_global_scale")
WEIGHT_SCALES += ("weight_scale_2", "weight_global_scale")
BIASES = ("w13_bias", "w2_bias")
INPUT_SCALES = ("w13_input_scale", "w2_input_scale", "w13_input_global_scale", "w2_input_global_scale")
INPUT_SCALES += ("input_scale", "input_global_scale")


@dataclass
class Mark:
    """What a parameter holds. vLLM copies a parameter's attributes, this one too, to those that a reload makes."""

    kind: tuple[str, ...]
    parts: Sequence[int] | None
    """Rows of a linear's parts; None for experts, which are stacked."""
    halves: int = 1
    """Shards of an expert: gate and up; or one, where a file brings both in turn, or only one matrix."""
    marked: list[weakref.ref] = field(default_factory=list)
    """Parameters that were marked, weakly: the first, which serves, and those of reloads, whose values it takes."""

    def is_marked(self, parameter: torch.nn.Parameter) -> bool:
        """By identity: tensors that are equal are not the same."""
        self.marked = [reference for reference in self.marked if reference() is not None]
        return any(reference() is parameter for reference in self.marked)

    def shards(self, data: torch.Tensor) -> list[torch.Tensor]:
        """Views [units, rows, columns] of what one file brings at a time; a unit is an expert, or the only one."""
        return list(data.chunk(self.halves, dim=1)) if self.parts is None else list(data[None].split(self.parts, dim=1))

    def write(self, parameter: torch.nn.Parameter) -> None:
        """Set it as it is before anything is loaded; an input scale that stays so is left out."""
        data = parameter.data.as_subclass(torch.Tensor)
        if self.kind in (WEIGHT_SCALES, INPUT_SCALES):
            data.fill_(torch.nan)
        elif self.kind is BIASES:
            data.zero_()
            for shard in data.chunk(self.halves, dim=1):
                shard[:, :1].fill_(torch.nan)
        else:
            data.view(torch.uint8).zero_()
            for shard in self.shards(data.view(torch.uint8)):
                place = shard[:, :1] if self.kind is CODES else shard[:, :1, :1]
                place.fill_(CODE_MARK if self.kind is CODES else SCALE_MARK)
        self.marked.append(weakref.ref(parameter))

    def missing(self, parameter: torch.nn.Parameter) -> list[int]:
        """Experts, or parts, of which a file has not brought a tensor."""
        data = parameter.data.as_subclass(torch.Tensor)
        if self.kind is INPUT_SCALES:
            return []
        if self.kind in (WEIGHT_SCALES, BIASES):
            return data.reshape(len(data), -1).isnan().any(1).nonzero().flatten().tolist()
        blank = [self.blank(shard) for shard in self.shards(data.view(torch.uint8))]
        if self.parts is None:
            return sorted({unit for units in blank for unit in units})
        return [part for part, units in enumerate(blank) if units]

    def blank(self, shard: torch.Tensor) -> list[int]:
        """Units whose shard is as it was marked, all rows of it."""
        if not shard.numel():
            return []
        marked = shard[:, 0].eq(CODE_MARK).all(-1) if self.kind is CODES else shard[:, 0, 0] == SCALE_MARK
        return [unit for unit in marked.nonzero().flatten().tolist() if not shard[unit, 1:].any()]


def mark(layer: torch.nn.Module, parts: Sequence[int] | None = None, halves: int = 2) -> None:
    """Mark all parameters of a new layer of experts with so many shards in w13, or of a linear with these parts."""
    for name, parameter in layer.named_parameters(recurse=False):
        kind = next((kind for kind in (CODES, BLOCK_SCALES, WEIGHT_SCALES, INPUT_SCALES, BIASES) if name in kind), None)
        if kind:
            parameter.nvfp4_moe_mark = Mark(kind, parts, halves if name.startswith("w13") else 1)
            mark_anew(parameter)


def mark_anew(parameter: torch.nn.Parameter) -> None:
    """Mark it, if it takes the place of one that was marked.

    After a reload the one that serves is back. vLLM calls its loader, too, with experts of other ranks, which it skips.
    """
    mark = getattr(parameter, "nvfp4_moe_mark", None)
    if mark is not None and not parameter.is_meta and not mark.is_marked(parameter):
        mark.write(parameter)


def marking(weight_loader: Callable) -> Callable:
    """vLLM's loader, which first marks what a reload made anew.

    It stays a method of its layer where it was one: vLLM drops such references, and with them a layer that is gone.
    """
    bound = isinstance(weight_loader, MethodType)
    load = weight_loader.__func__ if bound else weight_loader

    @wraps(load)
    def load_marked(*args, **kwargs):
        mark_anew(kwargs["param"] if "param" in kwargs else args[1 if bound else 0])
        return load(*args, **kwargs)

    return MethodType(load_marked, weight_loader.__self__) if bound else load_marked


def missing(layer: torch.nn.Module) -> dict[str, list[int]]:
    """Local experts, or parts of a linear, of which a file has not brought a tensor of the weights, by parameter."""
    found = {}
    for name, parameter in layer.named_parameters(recurse=False):
        mark_anew(parameter)
        if mark := getattr(parameter, "nvfp4_moe_mark", None):
            found[name] = mark.missing(parameter)
    return {name: units for name, units in found.items() if units}


def refuse_missing(layer_name: str, found: dict[str, list[int]], unit: str = "expert") -> None:
    """Raise if there are any."""
    if not found:
        return
    text = "; ".join(f"{name} of {listed(units, unit)}" for name, units in found.items())
    raise ValueError(
        f"{layer_name}: {text} is missing; every {unit} must have all its tensors. Look for the shard that the "
        "checkpoint's index names, or export it again."
    )


def listed(units: list[int], unit: str = "expert", most: int = 8) -> str:
    """`expert 3`, or `experts 0, 1, 2 and 61 more` (numbers of this rank's experts)."""
    shown = ", ".join(map(str, units[:most]))
    more = f" and {len(units) - most} more" if len(units) > most else ""
    return f"{unit}{'s' if len(units) > 1 else ''} {shown}{more}"
