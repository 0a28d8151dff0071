"""NVFP4 checkpoints: MoE layers out of a directory of safetensors files.

Reads ModelOpt's, compressed-tensors' and DeepSeek-V4's own naming. Every scale is checked, and global scales come out
in decode direction. Source: nvfp4_moe_checkpoint_* in nvfp4_moe.h.
"""

import os
import weakref
from typing import NamedTuple

import torch

from . import ops
from .layer import Layer
from .weights import LayerWeights


class CheckpointLayer(NamedTuple):
    """What a checkpoint says about one MoE layer; 0 where it says nothing."""

    format: str
    """"modelopt", "compressed-tensors" or "deepseek-v4-mixed"."""
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


class Checkpoint:
    """A directory of safetensors files with its config.json; opening it reads headers only."""

    def __init__(self, directory: str | os.PathLike):
        self._ops = ops.load()
        self.id: int = self._ops.checkpoint_open(os.fspath(directory))
        self._destroy = weakref.finalize(self, self._ops.checkpoint_destroy, self.id)

    def layer_info(self, layer: int) -> CheckpointLayer:
        """Describe MoE layer `layer` (its index in the model); checks names, shapes, dtypes and all its scales."""
        return CheckpointLayer(*self._ops.checkpoint_layer_info(self.id, layer))

    def read_layer(self, layer: int, *, first_expert: int = 0, num_experts: int | None = None) -> LayerWeights:
        """Copy experts [first_expert, first_expert + num_experts) of a layer (default: to the last) to host tensors.

        The input scales are those over ALL experts of the layer.
        """
        info = self.layer_info(layer)
        count = info.num_experts - first_expert if num_experts is None else num_experts
        scales = {"w13_input_scale": info.w13_input_scale, "w2_input_scale": info.w2_input_scale}
        weights = LayerWeights.empty(count, info.hidden_size, info.intermediate_size, **scales)
        self._ops.checkpoint_read_layer(*weights.tensors(), first_expert, layer, self.id)
        return weights

    def make_layer(
        self,
        layer: int,
        *,
        first_expert: int = 0,
        num_experts: int | None = None,
        mode: str = "default",
        scale_policy: str = "static",
        device: torch.device | str = "cpu",
    ) -> Layer:
        """A prepared layer of those experts, as the checkpoint describes it."""
        info = self.layer_info(layer)
        weights = self.read_layer(layer, first_expert=first_expert, num_experts=num_experts)
        made = Layer(
            hidden_size=info.hidden_size,
            intermediate_size=info.intermediate_size,
            num_experts=info.num_experts,
            num_local_experts=weights.w13.shape[0],
            first_local_expert=first_expert,
            top_k=info.top_k,
            mode=mode,
            scale_policy=scale_policy,
            swiglu_limit=info.swiglu_limit,
            device=device,
        )
        return made.prepare(weights.to(made.device))

    def inspect(self, *, as_json: bool = False) -> str:
        """What was found, with warnings: a table, or JSON."""
        return self._ops.checkpoint_inspect(self.id, as_json)
