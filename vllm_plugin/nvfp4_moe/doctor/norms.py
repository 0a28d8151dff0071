# SPDX-License-Identifier: Apache-2.0
"""RMS norms of a served model against their definition, and whether the last residual's size matters to the head."""

from typing import Any

import torch

from .hooks import layer_of

TOLERANCE = 0.03  # bf16 rounds to 0.004; a norm that is skipped, or has another weight, is off by more
SMALL = 3.0  # a residual whose hundredth is near the root of eps


class NormWatch:
    """Watches every RMS norm of one model during its first forward."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self._errors: dict[str, torch.Tensor] = {}  # relative error against the definition, read once at the end
        self.final: str | None = None
        self.residual: torch.Tensor | None = None  # what entered the final norm, last row
        self.head_input: torch.Tensor | None = None
        self.final_output: torch.Tensor | None = None
        self._before: dict[str, torch.Tensor] = {}
        self._handles = []
        for name, module in model.named_modules():
            if type(module).__name__ == "LogitsProcessor":
                self._handles.append(module.register_forward_pre_hook(self._head, with_kwargs=True))
            weight = getattr(module, "weight", None)
            if not is_plain(module) or not isinstance(weight, torch.Tensor) or weight.dim() != 1:
                continue
            if layer_of(name) < 0 and "mtp" not in name:
                self.final = name
            self._handles.append(module.register_forward_pre_hook(self._enter(name)))
            self._handles.append(module.register_forward_hook(self._leave(name)))

    def _enter(self, name: str):
        def hook(_module, inputs) -> None:
            if name in self._errors or not inputs:
                return
            given = [each for each in inputs[:2] if isinstance(each, torch.Tensor)]
            # A fused norm overwrites what it was given, so the sum is taken before.
            self._before[name] = sum(each.detach().float() for each in given)

        return hook

    def _leave(self, name: str):
        def hook(module, _inputs, output) -> None:
            if name in self._errors or name not in self._before:
                return
            before = self._before.pop(name)
            output = (output[0] if isinstance(output, tuple) else output).detach().float()
            expected = definition(module, before)
            if expected is None or expected.shape != output.shape:
                return
            norm = expected.norm()  # NaN where NaN came in, which is not the norm's fault
            self._errors[name] = torch.where(norm > 0, (output - expected).norm() / norm, 0.0)
            if name == self.final:
                self.residual, self.final_output = before.flatten(0, -2)[-1:], output.flatten(0, -2)[-1:]

        return hook

    def _head(self, _module, inputs, keywords) -> None:
        given = [each for each in (*inputs, *keywords.values()) if isinstance(each, torch.Tensor) and each.dim() == 2]
        if given and self.head_input is None:
            self.head_input = given[0].detach().float()[-1:]

    def remove(self) -> None:
        """The model is as before."""
        for handle in self._handles:
            handle.remove()

    def result(self) -> dict[str, Any]:
        """Numbers alone: errors, and what the head makes of the residual and of a hundredth of it."""
        errors = torch.stack(list(self._errors.values())).tolist() if self._errors else []
        found: dict[str, Any] = {"final": self.final, "errors": dict(zip(self._errors, errors))}
        found["ran"] = self.final in self._errors
        if self.head_input is not None and self.final_output is not None:
            head, norm = self.head_input, self.final_output
            found["head_differs"] = float((head - norm).norm() / norm.norm().clamp(min=1e-30))
        if self.residual is not None and self.final is not None:
            found |= self._scaled(self.residual, dict(self.model.named_modules())[self.final])
        return found

    @torch.inference_mode()
    def _scaled(self, residual: torch.Tensor, norm: torch.nn.Module) -> dict[str, Any]:
        """Logits of the residual and of a hundredth of it through the same norm and head; of the hundredfold, where a
        hundredth would be of eps's size."""
        rms = float(residual.square().mean().sqrt())
        factor = 0.01 if rms > SMALL else 100.0
        dtype = norm.weight.dtype if norm.weight.dtype != torch.float32 else torch.bfloat16
        rows = [norm((residual * times).to(dtype)) for times in (1.0, factor)]
        logits = [self.model.compute_logits(row[0] if isinstance(row, tuple) else row) for row in rows]
        if any(each is None for each in logits):  # a rank that has no head
            return {}
        one, other = (each.float().flatten() for each in logits)
        return {
            "factor": factor,
            "argmax": [int(one.argmax()), int(other.argmax())],
            "behind": float((one.max() - one[other.argmax()]) / one.std().clamp(min=1e-30)),
            "cosine": float(torch.nn.functional.cosine_similarity(one, other, dim=0)),
            "sizes": [float(one.norm()), float(other.norm())],
            "residual_rms": rms,
        }


def is_plain(module: torch.nn.Module) -> bool:
    """An RMS norm over the whole row; a gated one, or one over a part, has another definition."""
    kind = type(module).__name__
    return "RMSNorm" in kind and "Gated" not in kind and getattr(module, "variance_size_override", None) is None


def definition(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """x / rms(x) * weight, in f32; of 1 + weight where a family does so."""
    weight = module.weight.detach().float()
    if x.shape[-1] != weight.shape[0]:
        return None
    if "Gemma" in type(module).__name__:
        weight = 1 + weight
    eps = getattr(module, "variance_epsilon", None) or getattr(module, "eps", 1e-6)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
