# SPDX-License-Identifier: Apache-2.0
"""One NVFP4 linear of the library over vLLM's parameters."""

import torch

from nvfp4_moe import Linear, LinearWeights

from . import scales, settings, support
from .lifetime import Handle
from .linear_parameters import data, free_weights, global_scales, input_scale, name


class Nvfp4Linear:
    """bf16 [..., in_features] to bf16 [..., out_features]."""

    def __init__(self):
        self.handle = Handle()
        self.linear: Linear | None = None
        self.calibrating: scales.LayerCalibration | None = None

    def prepare(self, layer) -> None:
        """Take vLLM's parameters; those that are loaded again into the same memory."""
        mode, _ = support.resolved_linear_mode(settings.mode())
        policy = settings.scale_policy() if mode == "nvfp4" else "static"
        self.name = name(layer)
        part_scales = global_scales(layer)
        self.linear = self.handle.make_once(
            self.name,
            Linear,
            in_features=layer.input_size_per_partition,
            out_features=layer.output_size_per_partition,
            num_parts=len(part_scales),
            mode=mode,
            scale_policy="dynamic" if policy == "dynamic" else "static",
            device=layer.weight.device,
            name=self.name,  # compiled graphs are cached by vLLM, and name the linear
        )
        weights = LinearWeights(
            weight=data(layer.weight),
            block_scale=data(layer.weight_scale),
            global_scale=part_scales,
            part_rows=layer.logical_widths if len(part_scales) > 1 else (),
            input_scale=self._input_scale(layer, mode, policy),
        )
        read = self.handle.prepare(self.name, weights)
        if self.linear.device.type == "cpu":
            layer.weight.data, layer.weight_scale.data = read.weight, read.block_scale
        else:
            free_weights(layer, self.linear.storage)

    def _input_scale(self, layer, mode: str, policy: str) -> float:
        """Decoding input scale, 0 for none."""
        if mode != "nvfp4" or policy == "dynamic":
            return 0.0
        if policy == "calibrated":
            known = scales.calibration().known(self.name)
            if known is None:
                read = lambda: [self.linear.calibrated_scale()]  # noqa: E731
                self.calibrating = scales.LayerCalibration(self.name, read, self.linear.set_input_scale, use_ep=False)
            return known[0] if known else 0.0
        return input_scale(layer)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """bf16 [..., in_features] to bf16 [..., out_features]."""
        if self.calibrating:
            return self._calibrate(x)
        if x.dim() != 2:  # vLLM's tokens lie in two dimensions, and in eager mode the GPU waits for every microsecond
            return self(x.flatten(0, -2)).view(*x.shape[:-1], -1)
        out = x.new_empty((x.shape[0], self.linear.out_features))
        self.linear.forward(x, out=out)
        return out

    def _calibrate(self, x: torch.Tensor) -> torch.Tensor:
        """In bf16, remembering the largest input."""
        rows = x.reshape(-1, x.shape[-1])
        out = self.linear.calibrate(rows)
        if self.calibrating.finish(rows):
            self.calibrating = None
        return out.view(*x.shape[:-1], -1)
