# SPDX-License-Identifier: Apache-2.0
"""The NVFP4 mixture-of-experts layer."""

from typing import NamedTuple

import torch

from .device import is_portable, resolve_device
from .handle import Handle, refuse_gradients
from .ops import OPS
from .weights import LayerWeights

MATRICES = ("gate", "up", "down")  # by NVFP4_MOE_MATRIX_*
ONE_ORDER = 1
"""As `tile_rows`: NVFP4_MOE_TILE_ROWS_ONE_ORDER."""


class WeightError(NamedTuple):
    """What rounding to e4m3 did to a layer's weights: |rounded - exact| / |exact|, global scales left out."""

    rel_l2: float
    """Of the matrix that it cost most; 0: no weight changed."""
    expert: int
    matrix: str
    """"gate", "up" or "down" of that local expert."""
    block_rel_l2: float
    """Of the block of 16 that it cost most."""
    block_expert: int
    block_matrix: str
    block_row: int
    """Of w13 or w2."""
    block: int
    """In that row."""

    def __str__(self) -> str:
        return (
            f"relative L2 error {self.rel_l2:.4f} at most ({self.matrix} of expert {self.expert}), worst block "
            f"{self.block_rel_l2:.4f} ({self.block_matrix} of expert {self.block_expert}, row {self.block_row}, block "
            f"{self.block})"
        )


class Layer(Handle):
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
        activation: str = "swiglu",
        has_bias: bool = False,
        fp8_max_error: float = 0.0,
        scale_block_size: int = 16,
        device: torch.device | str = "cpu",
    ):
        """Make a layer without weights; refuses what the header's nvfp4_moe_layer_desc refuses.

        mode          "default", "bf16" (W4A16), "nvfp4" (W4A4) or "fp8" (W4A8: e4m3 rows with a dynamic scale each;
                      `prepare` refuses weights whose block scales are not powers of two within a factor of 2^11 in
                      each expert's gate, up and down matrix; not on "cuda-portable")
        fp8_max_error of mode fp8: any weights are taken, and rounded to e4m3, where that costs no matrix more (relative
                      L2 error, up to 1; 0.04 lets pass what exporters made of normal weights); 0: refused as above
        scale_block_size
                      of mode fp8: 32 says that block scales come in equal pairs, as casts of MXFP4 have them: on
                      CUDA less to store, and faster. `prepare` refuses others
        scale_policy  of mode nvfp4: "static" (input scales) or "dynamic" (per row)
        activation    "swiglu", "swiglu_step", "situ", "gelu_tanh", "gelu"; without a gate "relu2", "silu". Formulas,
                      and what limit, alpha and beta mean in each: NVFP4_MOE_ACTIVATION_* in nvfp4_moe.h
        swiglu_limit  of "swiglu" gate = min(gate, limit), up = clamp(up, -limit, limit), before the sigmoid; 0 is none
        has_bias      the weights may have biases
        tile_rows     0: the library chooses; ONE_ORDER: among the sizes of GEMM tiles that add in one order, so that a
                      token has the same bits in any batch; not on the CPU: rows of a tile, for benchmarks
        device        "cpu", "cuda" (made for the GPU: 9.0, 10.x, 12.x) or "cuda-portable" (8.0 or later)
        """
        self.device = resolve_device(device)
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_experts = num_experts
        self.num_local_experts = num_experts if num_local_experts is None else num_local_experts
        self.top_k = top_k
        self.mode = mode
        self.scale_block_size = scale_block_size
        id = OPS.layer_create(
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
            activation,
            has_bias,
            fp8_max_error,
            scale_block_size,
        )
        self._own(id, OPS.layer_destroy)
        self.expert_slices: torch.Tensor | None = None
        """u8 [L, bytes]: each local expert in kernel layout. None before `prepare`, and on the CPU, where weights are
        used where they lie. Rows may be moved, and exchanged with those of another rank's equal layer."""

    def prepare(self, weights: LayerWeights) -> "Layer":
        """Take the weights: check their scales, bring them into kernel layout.

        May be called again with new ones: they take the place of the old, so that captured graphs compute with them.
        """
        scales = weights.w13_input_scale, weights.w2_input_scale
        OPS.layer_prepare(*weights.tensors(), *scales, weights.row_order, None, self.id)
        self.expert_slices = OPS.layer_storage(self.id)
        return self

    def weight_error(self) -> WeightError:
        """What rounding to e4m3 did to the weights, as `prepare` measured it; without `fp8_max_error` nothing."""
        rel_l2, expert, matrix, block_rel_l2, block_expert, block_matrix, row, block = OPS.layer_weight_error(self.id)
        names = MATRICES[matrix], MATRICES[block_matrix]
        return WeightError(rel_l2, expert, names[0], block_rel_l2, block_expert, names[1], row, block)

    def forward(
        self,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor | None = None,
        *,
        expert_map: torch.Tensor | None = None,
        workspace: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        shared_output: torch.Tensor | None = None,
        shared_output_ready: torch.cuda.Event | None = None,
    ) -> torch.Tensor:
        """Run the layer and return `out`, bf16 [T, H], made if it is not given.

        x             bf16 [T, H], rows may be strided; [..., H] with ids and weights [..., k] gives [..., H]
        topk_ids      i32 or i64 [T, k], global ids; one out of range is unrouted and counted, never an error
        topk_weights  f32 [T, k], applied once; None is 1
        expert_map    i32 [num_experts], global to local id, -1 = not here
        workspace     u8 or bf16, `workspace_size(T)` bytes; None is the library's own, one for a stream
        shared_output bf16 [T, H], rows may be strided: what each token's f32 sum begins with, such as the output of
                      shared experts. If another stream makes it, `shared_output_ready` is an event recorded there
                      behind it: only the last kernel waits for that
        """
        shared = shared_output, shared_output_ready
        return self._run(OPS.moe_forward, x, topk_ids, topk_weights, expert_map, workspace, out, shared)

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
        shared_output: torch.Tensor | None = None,
        shared_output_ready: torch.cuda.Event | None = None,
    ) -> torch.Tensor:
        """`forward` in mode bf16 that also remembers the largest finite input of both GEMMs, over all calls."""
        shared = shared_output, shared_output_ready
        return self._run(OPS.moe_calibrate, x, topk_ids, topk_weights, expert_map, workspace, out, shared)

    def _run(self, op, x, topk_ids, topk_weights, expert_map, workspace, out, shared):
        shared_output, ready = shared
        refuse_gradients(x, topk_weights, shared_output)
        if out is None:
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
        rows = out
        if x.dim() > 2:
            rows = out.view(-1, out.shape[-1])
            x, topk_ids = x.reshape(-1, x.shape[-1]), topk_ids.reshape(-1, topk_ids.shape[-1])
            topk_weights = None if topk_weights is None else topk_weights.reshape(-1, topk_weights.shape[-1])
            shared_output = None if shared_output is None else shared_output.reshape(-1, shared_output.shape[-1])
        event = 0 if ready is None else ready.cuda_event
        op(x, topk_ids, topk_weights, expert_map, workspace, self.id, rows, shared_output, event)
        return out

    def __repr__(self) -> str:
        return (
            f"Layer(hidden_size={self.hidden_size}, intermediate_size={self.intermediate_size}, "
            f"num_experts={self.num_experts}, num_local_experts={self.num_local_experts}, top_k={self.top_k}, "
            f"mode={self.mode!r}, device={str(self.device)!r})"
        )

    def calibrated_scales(self) -> tuple[float, float]:
        """What `calibrate` saw as (w13_input_scale, w2_input_scale), amax / (6 * 448), and forget it.

        The scales are returned, not applied: save them, or reduce them over ranks, then `set_input_scales`.
        """
        return OPS.layer_calibrated_scales(self.id)

    def set_input_scales(self, w13_input_scale: float, w2_input_scale: float) -> None:
        """Use these input scales instead of the checkpoint's; each is finite and at least 2^-110."""
        OPS.layer_set_input_scales(self.id, w13_input_scale, w2_input_scale)

    def workspace_size(self, max_tokens: int) -> int:
        """Bytes of a u8 workspace tensor for up to `max_tokens` tokens, whatever the routing."""
        return OPS.layer_workspace_size(self.id, max_tokens)
