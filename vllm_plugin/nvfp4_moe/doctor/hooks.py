# SPDX-License-Identifier: Apache-2.0
"""Hooks on the module boundaries of a served model: what passes is reduced on its device, and read once at the end."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)(?:\.|$)")
DEEPEST = 2  # modules below a layer: `attn.wq_b`, `ffn.experts`
FIELDS = ("numel", "nan", "inf", "first_nan", "first_inf", "min", "max", "rms")
KEPT_TOKENS = 64


class Passed(NamedTuple):
    """One output of one module, in order of time."""

    name: str
    step: int  # 0 is the prompt
    layer: int  # -1 outside the layers
    stats: torch.Tensor  # f64 [8], FIELDS


def layer_of(name: str) -> int:
    """-1 for what lies outside the layers."""
    found = LAYER.search(name)
    return int(found[1]) if found else -1


def boundaries(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """What is watched: outside the layers all that is no container, in a layer two levels."""
    for name, module in model.named_modules():
        found = LAYER.search(name)
        if found:
            below = name[found.end() :]
            if below.count(".") < DEEPEST:
                yield name, module
        elif name and not list(module.children()):
            yield name, module


def reduce(values: torch.Tensor) -> torch.Tensor:
    """FIELDS of a floating tensor, on its device; min, max and rms are of what is finite, and 0 counts where it is not.

    Never waits for a GPU. On the CPU looking costs nothing, so that what is finite takes three passes instead of eight.
    """
    flat = values.detach().flatten().float()
    norm = torch.linalg.vector_norm(flat)
    if flat.device.type == "cpu" and norm.isfinite():
        nan = inf = first_nan = first_inf = torch.zeros(())
        finite = flat
    else:
        is_nan, is_inf = flat.isnan(), flat.isinf()
        nan, inf = is_nan.sum(), is_inf.sum()
        first_nan, first_inf = (flags.view(torch.uint8).argmax() for flags in (is_nan, is_inf))
        finite = flat.nan_to_num(0.0, 0.0, 0.0)
        norm = torch.linalg.vector_norm(finite)
    numel = torch.full((), flat.numel(), device=flat.device)
    rms = norm / (numel - nan - inf).clamp(min=1).sqrt()
    return torch.stack([n.double() for n in (numel, nan, inf, first_nan, first_inf, *finite.aminmax(), rms)])


def tensors(output: Any) -> Iterator[torch.Tensor]:
    """Floating ones of whatever a module gives."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point() and output.numel():
            yield output
    elif isinstance(output, (tuple, list)):
        for each in output:
            yield from tensors(each)


class Recorder:
    """Watches one model from `install` to `remove`; step 0 is the first forward after that."""

    def __init__(self, model: torch.nn.Module, keep: bool = False):
        self.passed: list[Passed] = []
        self.kept: dict[str, torch.Tensor] = {}  # outputs of step 0, for comparing
        self._keep, self._step = keep, -1
        self._handles = [model.register_forward_pre_hook(self._begin)]
        for name, module in boundaries(model):
            self._handles.append(module.register_forward_hook(self._watch(name)))

    def _begin(self, *_) -> None:
        self._step += 1

    def _watch(self, name: str):
        layer = layer_of(name)

        def hook(_module, _inputs, output) -> None:
            if not 0 <= self._step <= 1:
                return
            for number, tensor in enumerate(tensors(output)):
                called = f"{name}[{number}]" if number else name
                self.passed.append(Passed(called, self._step, layer, reduce(tensor)))
                if self._keep and self._step == 0 and not number:
                    self.kept[called] = tensor.detach()[:KEPT_TOKENS].to("cpu", torch.bfloat16, copy=True)

        return hook

    def remove(self) -> None:
        """The model is as before."""
        for handle in self._handles:
            handle.remove()

    def table(self) -> list[dict]:
        """Everything that passed, in order; reads the device once."""
        if not self.passed:
            return []
        rows = torch.stack([each.stats for each in self.passed]).tolist()
        return [
            {"name": each.name, "step": each.step, "layer": each.layer} | dict(zip(FIELDS, row))
            for each, row in zip(self.passed, rows)
        ]
