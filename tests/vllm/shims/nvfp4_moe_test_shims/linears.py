# SPDX-License-Identifier: Apache-2.0
"""Test-only: one arithmetic for every linear that is vLLM's own, whatever the CPU and however its weight is stored.

vLLM's CPU build has a kernel for each form of a weight and each kind of CPU (FP8 by AMX tiles, bf16 by AMX tiles for
small weights, else oneDNN), and each adds in its own order. Flavours of one model would differ in what they do not
name. Here all of them run `exact_linear`: sums of products of bf16 values lose almost nothing in float64, so that after
rounding to bf16 no bit shows who added them, in which order, or beside which other rows of a batch.
"""

import torch


def exact_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [.., in] by weight [out, in] and bias [out], summed in float64, rounded once to x's type."""
    bias = None if bias is None else bias.double()
    return torch.nn.functional.linear(x.double(), weight.double(), bias).to(x.dtype)


def unquantised() -> None:
    """Linears, routers' gates and the head, stored in bf16 or float32."""
    from vllm.model_executor.layers import utils

    def dispatch(layer, remove_weight):
        layer.cpu_linear = exact_linear

    utils.dispatch_cpu_unquantized_gemm = dispatch


def fp8_blocks() -> None:
    """FP8 with scales of 128x128 blocks: decoded once to bf16, which holds e4m3 times a power of two."""
    try:
        from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUFp8BlockScaledMMKernel
    except ImportError:  # vLLM 0.26 has no such kernel on the CPU, and its tests no FP8
        return
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

    class DecodedFp8Linear(CPUFp8BlockScaledMMKernel):
        @classmethod
        def is_supported(cls, compute_capability=None):
            return True, None

        def process_weights_after_loading(self, layer):
            params = self._get_layer_params(layer)
            scale = params.weight_scale if params.weight_scale_inv is None else params.weight_scale_inv
            decoded = decode(params.weight.data, scale.data, self.weight_group_shape)
            layer.decoded_weight = decoded.bfloat16()
            assert torch.equal(layer.decoded_weight.float(), decoded), "a scale is no power of two"

        def apply_weights(self, layer, x, bias=None, **_):
            return exact_linear(x, layer.decoded_weight, bias)

    # Alone: beside it vLLM would choose by the CPU.
    linear._POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU][:] = [DecodedFp8Linear]


def decode(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """f32 [rows, cols]: e4m3 weights times the scales of their blocks."""
    weight, scale = (tensor.as_subclass(torch.Tensor).float() for tensor in (weight, scale))
    scale = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return weight * scale[: weight.shape[0], : weight.shape[1]]
