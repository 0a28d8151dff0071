# SPDX-License-Identifier: Apache-2.0
"""One handle of the library for each module, as long as the engine lives.

Captured graphs hold the addresses of what a handle reads, compiled code its number. So weights that are loaded again
(`reload_weights`, updates in training, waking from sleep) go through the same handle into the same memory: its own
storage where weights are repacked, the tensors of the first load where they are read in place.
"""

from collections.abc import Callable
from dataclasses import fields, replace

import torch


class Handle:
    """A layer or a linear of the library, made at the first load and prepared again at each later one."""

    def __init__(self):
        self.made = None
        self.options: dict[str, object] = {}
        self.weights = None
        """What is read in place; None where the handle has repacked them."""

    def make_once(self, name: str, make: Callable, /, **options):
        """make(**options), or what it made before, if the options are still the same."""
        if self.made is None:
            self.made, self.options = make(**options), options
        refuse_change(name, self.options, options)
        return self.made

    def prepare(self, name: str, weights):
        """Take LayerWeights or LinearWeights; returns the weights whose tensors the handle reads, if it reads any."""
        try:
            self.made.prepare(weights)  # before a byte is overwritten: what the library refuses changes nothing
            if self.made.device.type != "cpu":
                return weights
            if self.weights is not None:
                weights = replace(weights, **overwrite(self.weights, weights))
                self.made.prepare(weights)
        except RuntimeError as error:
            raise ValueError(f"{name}: {error}") from None
        self.weights = weights
        return weights


def refuse_change(name: str, was: dict[str, object], wanted: dict[str, object]) -> None:
    """Raise if a module would now be made in another way."""
    for option, value in wanted.items():
        if value != was[option]:
            raise ValueError(
                f"{name}: {option} is {value}; it must stay {was[option]} as long as the engine lives, since graphs "
                "and compiled code hold what was made with it. Restart the engine."
            )


def overwrite(kept, loaded) -> dict[str, torch.Tensor]:
    """Copy the tensors of `loaded` over those of `kept`, and return these by name."""
    tensors = {field.name: getattr(kept, field.name) for field in fields(kept)}
    tensors = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    for name, tensor in tensors.items():
        source = getattr(loaded, name)
        if source.data_ptr() != tensor.data_ptr():
            tensor.copy_(source)
    return tensors
