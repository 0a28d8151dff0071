# SPDX-License-Identifier: Apache-2.0
"""The sinks of a served model's attention: one learnt logit a head, which takes weight and gives no value.

    out[h] = sum over keys of e^logit * value / (sum over keys of e^logit + e^sink[h])

They are set to values of the doctor's choice where the kernels read them, and put back.
"""

import math
from typing import Any

import torch

from .attention_probe import attentions
from .hooks import layer_of

NAMES = ("attn_sink", "sinks")


class Sinks:
    """Of every attention module of this rank."""

    def __init__(self, model: torch.nn.Module):
        self.places = {name: found for name, module in attentions(model) if (found := read_by(module))}
        self.loaded = {name: [place.detach().clone() for place in found] for name, found in self.places.items()}

    def table(self) -> list[dict[str, Any]]:
        """By layer: the values that were loaded, and how many heads behind them are padding."""
        found = []
        for name, (first, *_) in self.loaded.items():
            values = first.float().flatten().tolist()
            heads = num_heads(values)
            found.append({"layer": layer_of(name), "values": values[:heads], "padding": len(values) - heads})
        return sorted(found, key=lambda each: each["layer"])

    @torch.inference_mode()
    def set(self, value: float, head: int | None, others: float) -> None:
        """One head's, or with None every head's; padding stays."""
        for name, places in self.places.items():
            heads = num_heads(self.loaded[name][0].float().flatten().tolist())
            for place in places:
                flat = place.data.view(-1)
                flat[:heads] = value if head is None else others
                if head is not None and head < heads:
                    flat[head] = value

    @torch.inference_mode()
    def set_padding(self, value: float) -> None:
        """Garbage where no head is."""
        for name, places in self.places.items():
            heads = num_heads(self.loaded[name][0].float().flatten().tolist())
            for place in places:
                place.data.view(-1)[heads:] = value

    @torch.inference_mode()
    def restore(self) -> None:
        """As they were loaded."""
        for name, places in self.places.items():
            for place, before in zip(places, self.loaded[name]):
                place.data.copy_(before)


def read_by(module: torch.nn.Module) -> list[torch.Tensor]:
    """The parameter, and the copies in another type that a backend has made of it."""
    found: dict[int, torch.Tensor] = {}
    for each in module.modules():
        for owner in (each, getattr(each, "impl", None)):
            for name in NAMES:
                tensor = getattr(owner, name, None)
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    found.setdefault(tensor.data_ptr(), tensor)
    return list(found.values())


def num_heads(values: list[float]) -> int:
    """Without the padding behind them, which vLLM fills with -inf; a row of nothing else was never loaded."""
    heads = len(values)
    while heads and values[heads - 1] == -math.inf:
        heads -= 1
    return heads or len(values)
