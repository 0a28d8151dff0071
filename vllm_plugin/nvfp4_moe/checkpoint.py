# SPDX-License-Identifier: Apache-2.0
"""NVFP4 checkpoints: MoE layers out of a directory of safetensors files.

Reads ModelOpt's, compressed-tensors', DeepSeek-V4's own and gpt-oss's naming. Every scale is checked, and global
scales come out in decode direction. Source: nvfp4_moe_checkpoint_* in nvfp4_moe.h.
"""

import json
import os
import warnings
from functools import cached_property
from typing import NamedTuple

import torch

from . import errors
from .handle import Handle
from .layer import Layer
from .ops import OPS
from .weights import LayerWeights

AS_TABLE, AS_JSON, SURVEY = 0, 1, 2  # `as_json` of nvfp4_moe_checkpoint_inspect


ACTIVATION = ("activation", "swiglu_limit", "swiglu_alpha", "swiglu_beta")


class CheckpointLayer(NamedTuple):
    """What a checkpoint says about one MoE layer; 0 where it says nothing."""

    format: str
    """"modelopt", "compressed-tensors", "deepseek-v4-mixed" or "mxfp4", which is read as NVFP4 of the same values."""
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    swiglu_limit: float
    routed_scaling_factor: float
    """The engine folds it into topk_weights."""
    lossless_cast: bool
    """True if every block scale is a power of two, equal for neighbouring blocks (cast from MXFP4)."""
    w13_input_scale: float
    """Maximum over all experts."""
    w2_input_scale: float
    swiglu_alpha: float
    """1 for SiLU."""
    swiglu_beta: float
    activation: str
    """As `Layer` takes it."""
    has_bias: bool

    @property
    def gated(self) -> bool:
        """Does w13 stack gate and up?"""
        return self.activation not in ("relu2", "silu")

    @property
    def scale_block_size(self) -> int:
        """Weights that share one scale, as `Layer` takes it."""
        return 32 if self.lossless_cast or self.format == "mxfp4" else 16


class Checkpoint(Handle):
    """A directory of safetensors files with its config.json; opening it reads headers only.

    prefix  of the tensors to look at: one tower ("thinker.") of a model that has the same layers in several
    """

    def __init__(self, directory: str | os.PathLike, *, prefix: str = ""):
        self._directory = os.fspath(directory)
        self._own(OPS.checkpoint_open(self._directory, prefix), OPS.checkpoint_destroy)

    def __repr__(self) -> str:
        return f"Checkpoint({self._directory!r})"

    def layer_info(self, layer: int, *, any_activation: bool = False) -> CheckpointLayer:
        """Describe MoE layer `layer` (its index in the model); checks names, shapes, dtypes and all its scales.

        A layer whose activation this library does not have is refused; with `any_activation` it is described, with 0
        for the activation's parameters.
        """
        return CheckpointLayer(*OPS.checkpoint_layer_info(self.id, layer, any_activation))

    def read_layer(self, layer: int, *, first_expert: int = 0, num_experts: int | None = None) -> LayerWeights:
        """Copy experts [first_expert, first_expert + num_experts) of a layer (default: to the last) to host tensors.

        The input scales are those over ALL experts of the layer. Weights are read whatever the activation is.
        """
        info = self.layer_info(layer, any_activation=True)
        count = info.num_experts - first_expert if num_experts is None else num_experts
        scales = {"w13_input_scale": info.w13_input_scale, "w2_input_scale": info.w2_input_scale}
        sizes = (count, info.hidden_size, info.intermediate_size)
        weights = LayerWeights.empty(*sizes, gated=info.gated, has_bias=info.has_bias, **scales)
        OPS.checkpoint_read_layer(*weights.tensors(), first_expert, layer, self.id)
        return weights

    def make_layer(
        self,
        layer: int,
        *,
        first_expert: int = 0,
        num_experts: int | None = None,
        mode: str = "default",
        scale_policy: str = "static",
        top_k: int | None = None,
        activation: str | None = None,
        swiglu_limit: float | None = None,
        swiglu_alpha: float | None = None,
        swiglu_beta: float | None = None,
        fp8_max_error: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> Layer:
        """A prepared layer of those experts, as the checkpoint describes it.

        top_k     instead of the config's, or where it has none
        activation, swiglu_*
                  the activation and its parameters, instead of the config's; with any of them the caller answers for
                  the activation, and those that are not given are 0, 1 and 0 unless the config's can be read
        fp8_max_error
                  of mode fp8, as `Layer` takes it
        """
        given = {
            "activation": activation,
            "swiglu_limit": swiglu_limit,
            "swiglu_alpha": swiglu_alpha,
            "swiglu_beta": swiglu_beta,
        }
        given = {name: value for name, value in given.items() if value is not None}
        info = self.layer_info(layer, any_activation=bool(given))
        if not (top_k or info.top_k):
            raise errors.CheckpointError(
                "top_k is not said in config.json; a layer needs it. Pass top_k to make_layer."
            )
        for text in self._left_out(layer):
            warnings.warn(text, stacklevel=2)
        weights = self.read_layer(layer, first_expert=first_expert, num_experts=num_experts)
        made = Layer(
            hidden_size=info.hidden_size,
            intermediate_size=info.intermediate_size,
            num_experts=info.num_experts,
            num_local_experts=weights.w13.shape[0],
            first_local_expert=first_expert,
            top_k=top_k or info.top_k,
            mode=mode,
            scale_policy=scale_policy,
            **{name: getattr(info, name) for name in ACTIVATION} | given,
            has_bias=info.has_bias,
            fp8_max_error=fp8_max_error,
            scale_block_size=info.scale_block_size if mode == "fp8" and not fp8_max_error else 16,
            device=device,
        )
        return made.prepare(weights.to(made.device))

    def inspect(self, *, as_json: bool = False) -> str:
        """What was found, with warnings: a table, or JSON."""
        return OPS.checkpoint_inspect(self.id, AS_JSON if as_json else AS_TABLE)

    @cached_property
    def survey(self) -> dict:
        """The same out of headers and single scales, parsed: no block scale is read, so it takes no time."""
        return json.loads(OPS.checkpoint_inspect(self.id, SURVEY))

    def _left_out(self, layer: int) -> list[str]:
        """A sentence for each GEMM of which the layer's input scale is not the maximum over all experts."""
        described = [found for found in self.survey["layers"] if found["layer"] == layer]
        return [
            f"layer {layer}: input scales of {gemm} were never measured ({'; '.join(scales[:3])}); the maximum over "
            f"the others, {found[f'{gemm}_input_scale']['max']:.3e}, is used. Calibrate if mode nvfp4 saturates."
            for found in described
            for gemm in ("w13", "w2")
            if (scales := found[f"{gemm}_input_scale"]["left_out"])
        ]
