# SPDX-License-Identifier: Apache-2.0
"""Humming 0.1.20 as a backend of vLLM 0.26: DeepSeek-V4's NVFP4 experts, run as vLLM 0.33 runs them.

vLLM 0.26 knows this backend, with Humming 0.1.10, and refuses it for a clamped SwiGLU. Its NVFP4 method is replaced
here by one of ours, if FULL_HUMMING says which activations to take:

    w4a16   NVFP4 weights, bf16 activations
    w4a8    the same numbers as MXFP4 weights, e4m3 activations with a scale for 128 values: what vLLM 0.33 does with
            DeepSeek-V4's own MXFP4 experts on Hopper. Humming refuses NVFP4 with 8-bit activations

The layer is that of tests/bench/peers_humming.py, with vLLM 0.33's own routing kernels, from the folder that
tests/bench/peers_fetch.py makes: $SITE/humming20. As with vLLM's table of configurations, the number of rows chooses
one; but the table is not made ahead, and a kernel is compiled when it is first met.
"""

import functools
import json
import os
import sys
import types
from pathlib import Path

import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"
ACTIVATIONS = {"w4a16": "bf16", "w4a8": "group"}
E4M3_BIAS, E8M0_BIAS = 7, 127


def folder() -> Path:
    """Where peers_fetch.py's folder lies, once unpacked."""
    return Path(os.environ.get("SITE", BENCH.parents[1] / ".peers")) / "humming20"


@functools.cache
def peer():
    """peers_humming.py, with its operators loaded and its cache of kernels in use."""
    import peers_humming

    peers_humming.install()
    return peers_humming


def mxfp4_scales(block_scale: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """e8m0 bits [L, rows, cols / 32] of the same weights; NVFP4's scales must be powers of two, equal in pairs."""
    bits = block_scale.view(torch.uint8)
    mantissa, exponent = torch.frexp(global_scale)
    powers = not bool((bits & 7).any()) and bool((bits >= 8).all()) and bool((mantissa == 0.5).all())
    if not powers or not torch.equal(bits[..., ::2], bits[..., 1::2]):
        raise ValueError("scales are no powers of two, equal in pairs; w4a8 must have such. Take w4a16.")
    ones = (exponent - 1 + E8M0_BIAS - E4M3_BIAS).view(-1, 1, 1)
    return ((bits[..., ::2] >> 3) + ones).to(torch.uint8)


@functools.cache
def scratch_of(experts: int, local: int, slots: int):
    """Routing's, shared by all layers, which run one after another."""
    from vllm33.moe_permute_unpermute import MoEPermuteScratch

    scratch = MoEPermuteScratch(experts, local, torch.device("cuda", torch.cuda.current_device()))
    scratch.reserve(slots)
    return scratch


def served_gemm(gemm):
    """A GEMM that takes any number of rows: its configuration is looked up when rows are first met."""
    from humming.tune import get_heuristics_config
    from peers_data import tuned_rows

    options = json.loads(gemm.compute)

    @functools.cache
    def found(rows: int) -> tuple[dict, str]:
        chosen = get_heuristics_config(gemm.config, shape_m=tuned_rows(rows), **options)
        return chosen, json.dumps([[0, 1 << 30, chosen]])

    class Served(type(gemm)):
        """Of any number of rows."""

        def tile_rows(self, rows: int) -> int:
            """Of one expert, that a block holds."""
            return found(rows)[0]["block_shape"][0]

        def __call__(self, x, scale, out, locks, *, valid_shape_m: int, **options) -> None:
            """Multiply, with the configuration for so many rows."""
            self.tuning = found(valid_shape_m)[1]
            super().__call__(x, scale, out, locks, valid_shape_m=valid_shape_m, **options)

    return Served(gemm.config, gemm.compute, gemm.weight, gemm.weight_scale, gemm.weight_scale_2, {})


def served_layer(kind: str, layer, config):
    """peers_humming's layer, of a vLLM layer's weights as they were loaded."""
    module = peer()

    class Served(module.Humming):
        """Sizes and weights are vLLM's."""

        def __init__(self):
            self.activations, self.hidden, self.inter = (
                ACTIVATIONS[kind], config.hidden_dim, config.intermediate_size_per_partition
            )  # fmt: skip
            self.experts, self.local, self.top_k = (
                config.num_experts,
                config.num_local_experts,
                config.experts_per_token,
            )
            self.gemm_type = "grouped_contiguous" if config.moe_parallel_config.use_ep else "indexed"
            self.expert_map = layer.expert_map
            self.gemm1, self.gemm2 = (self.gemm(name) for name in ("w13", "w2"))
            multiprocessors = torch.cuda.get_device_properties(layer.w13_weight.device).multi_processor_count
            self.scatter_above = 2 * multiprocessors
            self.locks = torch.zeros(8 * multiprocessors, dtype=torch.int32, device=layer.w13_weight.device)
            slots = config.max_num_tokens * config.dp_size * self.top_k
            self.scratch = scratch_of(self.experts, self.local, slots)
            self.buffers(slots, slots)

        def gemm(self, name: str):
            """One of both, with vLLM's parameters given up for its own."""
            packed, block, whole = (getattr(layer, f"{name}_weight{end}").data for end in ("", "_scale", "_scale_2"))
            e8m0 = {name: mxfp4_scales(block, whole if whole.dim() == 1 else whole[:, 0])} if kind == "w4a8" else {}
            own = {name: packed, f"{name}_block_scale": block, f"{name}_global_scale": whole}
            weights = types.SimpleNamespace(layer=types.SimpleNamespace(**own), e8m0=e8m0)
            made = served_gemm(module.make_gemm(weights, name, self.activations, self.gemm_type, []))
            for end, tensor in (("", made.weight), ("_scale", made.weight_scale)):
                getattr(layer, f"{name}_weight{end}").data = tensor
            return made

    return Served()


def register() -> None:
    """vLLM's entry point: put Humming in the place of vLLM's NVFP4 experts, if FULL_HUMMING asks for it."""
    kind = os.environ.get("FULL_HUMMING")
    if not kind:
        return
    if kind not in ACTIVATIONS:
        raise ValueError(f"FULL_HUMMING is {kind}; it must be one of {', '.join(ACTIVATIONS)}.")
    if not folder().is_dir():
        raise FileNotFoundError(
            f"{folder()} does not exist; it must, for FULL_HUMMING. Unpack peers_fetch.py's archive."
        )
    sys.path.insert(0, str(folder()))  # before the Humming of vLLM 0.26
    sys.path += [str(BENCH), str(BENCH.parent)]
    from vllm.model_executor.layers.quantization import modelopt

    from .humming_method import HummingMethod

    modelopt.ModelOptNvFp4FusedMoE = HummingMethod
