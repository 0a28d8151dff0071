# SPDX-License-Identifier: Apache-2.0
"""Attention modules of a served model, asked with inputs of our choice: each layer alone, whatever others do.

The first forward records what enters and leaves each attention. In later ones the rows that enter are replaced by
recorded rows, in an order that a plan gives; so a layer's answer depends on its own attention and on nothing else.
"""

from collections.abc import Iterator
from typing import Any

import torch

from .hooks import LAYER, layer_of, tensors

NAMES = ("attn", "self_attn", "attention")
ZERO = -1  # in a plan: a row of zeros


def attentions(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The attention of each layer."""
    for name, module in model.named_modules():
        found = LAYER.search(name)
        if found and name[found.end() :] in NAMES:
            yield name, module


class AttentionWatch:
    """`plan` is a list of forwards; each is the recorded row for every row that enters, or None to record."""

    def __init__(self, model: torch.nn.Module):
        self.recorded: dict[str, torch.Tensor] = {}  # inputs
        self.before: dict[str, torch.Tensor] = {}  # outputs of the recorded forward
        self.after: dict[str, list[torch.Tensor]] = {}
        self.plan: list[list[int] | None] = []
        self.times = 1.0
        self.kept: dict[str, dict[str, torch.Tensor]] = {}
        self._forward = -1
        self._handles = [model.register_forward_pre_hook(self._begin)]
        for name, module in attentions(model):
            self._handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave(name)))

    def start(self, plan: list[list[int] | None], times: float = 1.0) -> None:
        """For the next forwards; recorded rows enter `times` as large."""
        self.plan, self.times, self._forward, self.after = plan, times, -1, {}

    def _begin(self, *_) -> None:
        self._forward += 1

    def _planned(self) -> tuple[bool, list[int] | None]:
        return 0 <= self._forward < len(self.plan), self.plan[self._forward] if self._forward < len(self.plan) else None

    def _enter(self, name: str):
        def hook(_module, inputs, keywords):
            active, rows = self._planned()
            if not active:
                return None
            inputs, keywords = list(inputs), dict(keywords)
            for holder, key in [*((inputs, at) for at in range(len(inputs))), *((keywords, key) for key in keywords)]:
                value = holder[key]
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() == 2:
                    if rows is None:
                        self.recorded[name] = value.detach().clone()
                    elif len(rows) == len(value):
                        at = torch.tensor(rows, device=value.device)
                        chosen = self.recorded[name][at.clamp(min=0)] * self.times
                        holder[key] = chosen.masked_fill((at == ZERO)[:, None], 0)
                    break
            return tuple(inputs), keywords

        return hook

    def _leave(self, name: str):
        def hook(_module, _inputs, output) -> None:
            active, rows = self._planned()
            given = next(tensors(output), None) if active else None
            if given is None:
                return
            kept = given.detach().float().cpu()
            if rows is None:
                self.before[name] = kept
            self.after.setdefault(name, []).append(kept)

        return hook

    def remove(self) -> None:
        """The model is as before."""
        for handle in self._handles:
            handle.remove()

    def changes(self, forward: int, against: list[int]) -> list[dict[str, Any]]:
        """By layer: relative change of each row that left, against the recorded row that `against` names."""
        found = []
        for name, outputs in self.after.items():
            if forward >= len(outputs) or len(outputs[forward]) != len(against):
                continue
            wanted = self.before[name][torch.tensor(against)]
            norms = wanted.norm(dim=1).clamp(min=1e-30)
            change = (outputs[forward] - wanted).norm(dim=1) / norms
            found.append({"name": name, "layer": layer_of(name), "change": change.tolist()})
        return found

    def keep(self, label: str) -> None:
        """The last row that each layer gave in the forward before."""
        self.kept[label] = {name: outputs[0][-1].double() for name, outputs in self.after.items()}

    def parts(self, labels: list[str], whole: str, none: str) -> list[dict[str, Any]]:
        """By layer: how much of `whole` each kept row is, counted from `none`; and the sizes of these two.

        A row that is p * whole + (1 - p) * none has the part p.
        """
        found = []
        for name, base in self.kept[none].items():
            line = self.kept[whole][name] - base
            square = (line @ line).clamp(min=1e-300)
            parts = [float((self.kept[label][name] - base) @ line / square) for label in labels]
            sizes = [float(line.norm()), float(base.norm())]
            found.append({"layer": layer_of(name), "parts": parts, "sizes": sizes})
        return sorted(found, key=lambda each: each["layer"])
