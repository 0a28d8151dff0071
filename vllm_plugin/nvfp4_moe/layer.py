# SPDX-License-Identifier: Apache-2.0
"""The NVFP4 mixture-of-experts layer."""

import weakref

import torch

from . import ops
from .device import is_portable, resolve_device
from .weights import LayerWeights


class Layer:
    """One MoE layer: out[t] = sum over k of topk_weights[t, k] * expert(topk_ids[t, k])(x[t]).

    Owns a handle of the library, which keeps the weights alive; both go with this object. On the CPU the weights are
    used in place: do not change them. Source: nvfp4_moe_layer_* in nvfp4_moe.h.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        num_local_experts: int | None = None,
        first_local_expert: int = 0,
        mode: str = "default",
        scale_policy: str = "static",
        swiglu_limit: float = 0.0,
        swiglu_alpha: float = 1.0,
        swiglu_beta: float = 0.0,
        tile_rows: int = 0,
        device: torch.device | str = "cpu",
    ):
        """Make a layer without weights; refuses what the header's nvfp4_moe_layer_desc refuses.

        mode          "default", "bf16" (W4A16), "nvfp4" (W4A4) or "fp8" (W4A8: e4m3 rows with a dynamic scale each;
                      `prepare` refuses weights whose block scales are not powers of two within a factor of 2^11 in
                      each expert's gate, up and down matrix; not on "cuda-portable")
        scale_policy  of mode nvfp4: "static" (input scales) or "dynamic" (per row)
        swiglu_limit  gate = min(gate, limit), up = clamp(up, -limit, limit), before the sigmoid; 0 is none
        tile_rows     rows of a GEMM tile, for benchmarks that sweep them; 0: the library chooses
        device        "cpu", "cuda" (Hopper's kernels) or "cuda-portable" (any GPU of compute capability 8.0 or later)
        """
        self.device = resolve_device(device)
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_experts = num_experts
        self.num_local_experts = num_experts if num_local_experts is None else num_local_experts
        self.top_k = top_k
        self._ops = ops.load()
        self.id: int = self._ops.layer_create(
            self.device,
            is_portable(device),
            mode,
            scale_policy,
            hidden_size,
            intermediate_size,
            num_experts,
            self.num_local_experts,
            first_local_expert,
            top_k,
            swiglu_limit,
            swiglu_alpha,
            swiglu_beta,
            tile_rows,
        )
        self._destroy = weakref.finalize(self, self._ops.layer_destroy, self.id)
        self.expert_slices: torch.Tensor | None = None
        """u8 [L, bytes]: each local expert in kernel layout. None before `prepare`, and on the CPU, where weights are
        used where they lie. Rows may be moved, and exchanged with those of another rank's equal layer."""

    def prepare(self, weights: LayerWeights) -> "Layer":
        """Take the weights: check their scales, bring them into kernel layout.

        May be called again with new ones: they take the place of the old, so that captured graphs compute with them.
        """
        scales = weights.w13_input_scale, weights.w2_input_scale
        self._ops.layer_prepare(*weights.tensors(), *scales, weights.up_first, None, self.id)
        self.expert_slices = self._ops.layer_storage(self.id)
        return self

    def forward(
        self,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor | None = None,
        *,
        expert_map: torch.Tensor | None = None,
        workspace: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the layer and return `out`, bf16 [T, H], made if it is not given.

        x             bf16 [T, H], rows may be strided
        topk_ids      i32 or i64 [T, k], global ids; one out of range is unrouted and counted, never an error
        topk_weights  f32 [T, k], applied once; None is 1
        expert_map    i32 [num_experts], global to local id, -1 = not here
        workspace     u8 or bf16, `workspace_size(T)` bytes; None is the library's own, one for a stream
        """
        return self._run(self._ops.moe_forward.default, x, topk_ids, topk_weights, expert_map, workspace, out)

    __call__ = forward

    def calibrate(
        self,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor | None = None,
        *,
        expert_map: torch.Tensor | None = None,
        workspace: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`forward` in mode bf16 that also remembers the largest finite input of both GEMMs, over all calls."""
        return self._run(self._ops.moe_calibrate.default, x, topk_ids, topk_weights, expert_map, workspace, out)

    def _run(self, op, x, topk_ids, topk_weights, expert_map, workspace, out):
        if out is None:
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
        op(x, topk_ids, topk_weights, expert_map, workspace, self.id, out)
        return out

    def calibrated_scales(self) -> tuple[float, float]:
        """What `calibrate` saw as (w13_input_scale, w2_input_scale), amax / (6 * 448), and forget it.

        The scales are returned, not applied: save them, or reduce them over ranks, then `set_input_scales`.
        """
        return self._ops.layer_calibrated_scales(self.id)

    def set_input_scales(self, w13_input_scale: float, w2_input_scale: float) -> None:
        """Use these input scales instead of the checkpoint's; each is finite and at least 2^-110."""
        self._ops.layer_set_input_scales(self.id, w13_input_scale, w2_input_scale)

    def workspace_size(self, max_tokens: int) -> int:
        """Bytes of a u8 workspace tensor for up to `max_tokens` tokens, whatever the routing."""
        return self._ops.layer_workspace_size(self.id, max_tokens)

    def close(self) -> None:
        """Free the handle now; any later use of this layer is an error."""
        self._destroy()
