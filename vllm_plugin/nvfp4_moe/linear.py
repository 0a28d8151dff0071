# SPDX-License-Identifier: Apache-2.0
"""The NVFP4 linear."""

import torch

from .device import is_portable, resolve_device
from .handle import Handle, refuse_gradients
from .ops import OPS
from .weights import LinearWeights


class Linear(Handle):
    """One linear: out = x * weight^T + bias, f32 sums, rounded once to bf16.

    Owns a handle of the library, which keeps the weights alive; both go with this object. On the CPU the weights are
    used in place: do not change them. Source: nvfp4_moe_linear_* in nvfp4_moe.h.
    """

    def __init__(
        self,
        *,
        in_features: int,
        out_features: int,
        num_parts: int = 1,
        mode: str = "default",
        scale_policy: str = "static",
        tile_rows: int = 0,
        device: torch.device | str = "cpu",
        name: str = "",
    ):
        """Make a linear without weights; `mode` (but "fp8"), `scale_policy`, `tile_rows` and `device` as in `Layer`.

        name  of the module, for graphs that are cached between processes: they find the linear of this name in each.
              Without one, a graph of another process is refused.
        """
        self.device = resolve_device(device)
        self.in_features = in_features
        self.out_features = out_features
        self.mode = mode
        kernels = self.device, is_portable(device), mode, scale_policy
        id = OPS.linear_create(*kernels, in_features, out_features, num_parts, tile_rows, name)
        self._own(id, OPS.linear_destroy)
        self.storage: torch.Tensor | None = None
        """u8 [1, bytes]: the weight in kernel layout, at one address for life. None before `prepare`, and on the CPU,
        where weights are used where they lie."""

    def prepare(self, weights: LinearWeights) -> "Linear":
        """Take the weights: check their scales, bring them into kernel layout.

        May be called again with new ones: they take the place of the old, so that captured graphs compute with them.
        """
        OPS.linear_prepare(
            weights.weight,
            weights.block_scale,
            weights.global_scale,
            weights.bias,
            list(weights.part_rows),
            weights.input_scale,
            None,
            self.id,
        )
        self.storage = OPS.linear_storage(self.id)
        return self

    def forward(
        self, x: torch.Tensor, *, workspace: torch.Tensor | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run on bf16 [..., in_features]; returns bf16 [..., out_features], `out` (2-D, as x must then be) if given.

        Without a workspace a GPU's call takes one of torch's, of the current stream, or of the graph that is captured.
        """
        refuse_gradients(x)
        if out is not None:
            OPS.linear_forward(x, workspace, self.id, out)
            return out
        rows = x.reshape(-1, x.shape[-1])
        out = rows.new_empty((rows.shape[0], self.out_features))
        OPS.linear_forward(rows, workspace, self.id, out)
        return out.view(*x.shape[:-1], self.out_features)

    __call__ = forward

    def calibrate(self, x: torch.Tensor, *, workspace: torch.Tensor | None = None) -> torch.Tensor:
        """`forward` of [T, in_features] in mode bf16 that also remembers the largest finite input, over all calls."""
        refuse_gradients(x)
        out = x.new_empty((x.shape[0], self.out_features))
        OPS.linear_calibrate(x, workspace, self.id, out)
        return out

    def calibrated_scale(self) -> float:
        """What `calibrate` saw as an input scale, amax / (6 * 448), and forget it. It is not applied."""
        return OPS.linear_calibrated_scale(self.id)

    def set_input_scale(self, input_scale: float) -> None:
        """Use this input scale instead of the checkpoint's; finite and at least 2^-110."""
        OPS.linear_set_input_scale(self.id, input_scale)

    def workspace_size(self, max_tokens: int) -> int:
        """Bytes of a u8 workspace tensor for up to `max_tokens` tokens."""
        return OPS.linear_workspace_size(self.id, max_tokens)

    def __repr__(self) -> str:
        return (
            f"Linear(in_features={self.in_features}, out_features={self.out_features}, mode={self.mode!r}, "
            f"device={str(self.device)!r})"
        )
