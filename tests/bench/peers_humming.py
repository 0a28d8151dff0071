# SPDX-License-Identifier: Apache-2.0
"""Humming 0.1.20 as a peer of peers_bench.py: its package, driven as vLLM 0.33 drives it for clamped experts on Hopper.

    prepare x (where it is quantised once a token) -> route -> quantise -> GEMM1 -> SwiGLU and quantise -> GEMM2 -> sum

W4A16 takes NVFP4. W4A8 takes MXFP4 alone, in Humming as in vLLM: e4m3 rows, with a scale for each group of 128 (vLLM's
default for MXFP4 experts on Hopper) or for each row. vLLM takes the GEMM type "grouped" under expert parallelism and
"indexed" else; both are offered here.

Whose code runs: GEMMs and process_input are Humming's, with the configurations that its heuristics choose for each
size; routing, permuting and the weighted sum are vLLM 0.33's (tests/bench/peers_fetch.py). One thing is not vLLM's: it
quantises in groups before routing by a kernel of its own, here Humming's does.

Needs the folder of peers_fetch.py on sys.path, before any other Humming, and a vLLM to import helpers from.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import humming
import torch
from gpu_layer import expert_map
from humming import dtypes, ops
from humming.config import InputQuantizationMode
from humming.forward import humming_forward, may_process_input
from humming.jit.compiler import NVRTCCompiler
from humming.kernel.humming import HummingKernel
from humming.schema import BaseWeightSchema, HummingInputSchema
from humming.transform import prepare_and_transform_humming_tensors
from humming.tune import get_heuristics_config
from humming.utils.nvrtc import get_nvrtc_library_path
from peers_data import LIMIT, SHAPES, Weights, tuned_rows

FOLDER = Path(humming.__file__).parents[1]
CUBINS = FOLDER / "cubins"
VERSION = "0.1.20"
GROUP = 128
E4M3 = torch.float8_e4m3fn

# GEMM type (None: as vLLM chooses) and activations of each form.
FORMS = {
    "humming_w4a16_indexed": ("indexed", "bf16"),
    "humming_w4a16_grouped": ("grouped_contiguous", "bf16"),
    "humming_w4a8_group": (None, "group"),
    "humming_w4a8_row": (None, "row"),
}
WEIGHTS = {
    "bf16": {"quant_method": "modelopt", "quant_algo": "nvfp4"},
    "group": {"quant_method": "mxfp4"},
    "row": {"quant_method": "mxfp4"},
}
ACTIVATIONS = {
    "bf16": HummingInputSchema(),
    "group": HummingInputSchema(
        a_dtype=dtypes.float8e4m3,
        input_scale_group_size=GROUP,
        input_scale_dtype=dtypes.float32,
        input_quant_mode=InputQuantizationMode.DynamicGroup,
    ),
    "row": HummingInputSchema(a_dtype=dtypes.float8e4m3),
}
CLAMPED_SWIGLU = {
    "activation_type": "binary_split",
    "activation_impl": f"fminf(a, {LIMIT}f) / (1.f + expf(-fminf(a, {LIMIT}f))) * fmaxf(fminf(b, {LIMIT}f), -{LIMIT}f)",
}


def install() -> None:
    """Load vLLM's operators, and let compiled kernels be found by what they are compiled of.

    Humming's own cache asks for paths and times of files, too, so it cannot come from another machine.
    """
    assert humming.__version__ == VERSION, f"humming is {humming.__version__}; it must be {VERSION}: peers_fetch.py"
    torch.ops.load_library(str(FOLDER / "vllm33/operators.so"))
    # Its compiler, a process of its own, finds NVRTC's built-in headers there.
    libraries = [str(Path(get_nvrtc_library_path()).resolve().parent), os.environ.get("LD_LIBRARY_PATH", "")]
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
    compile_anew = NVRTCCompiler.compile.__func__

    def compile_once(cls, code, sm_version, kernel_expr, disable_fast_math=False, postprocess_cubin=None):
        source = repr((VERSION, code, sm_version, kernel_expr, disable_fast_math))
        path = CUBINS / f"{hashlib.sha256(source.encode()).hexdigest()[:24]}.cubin"
        if not path.exists():
            made = compile_anew(cls, code, sm_version, kernel_expr, disable_fast_math, postprocess_cubin)
            partial = path.with_suffix(f".{os.urandom(4).hex()}")
            shutil.copyfile(made, partial)
            partial.rename(path)
        return str(path)

    NVRTCCompiler.compile = classmethod(compile_once)


@dataclass
class Gemm:
    """One of a layer's two GEMMs, with its weights in Humming's order and a configuration for each number of rows."""

    config: object
    compute: str
    weight: torch.Tensor
    weight_scale: torch.Tensor
    weight_scale_2: torch.Tensor | None
    configurations: dict[int, dict]

    def __post_init__(self) -> None:
        edges = [0, *sorted(self.configurations)]
        ranges = [[low, high, self.configurations[high]] for low, high in zip(edges, edges[1:])]
        self.tuning = json.dumps(ranges)

    def tile_rows(self, rows: int) -> int:
        return self.configurations[rows]["block_shape"][0]

    def __call__(self, x, scale, out, locks, **options) -> None:
        humming_forward(
            self.config, inputs=x, weight=self.weight, weight_scale=self.weight_scale,
            weight_scale_2=self.weight_scale_2, input_scale=scale, outputs=out, locks=locks,
            compute_config=self.compute, tuning_config=self.tuning, **options,
        )  # fmt: skip


def make_gemm(weights: Weights, name: str, activations: str, gemm_type: str, sizes: list[int]) -> Gemm:
    layer = weights.layer
    packed = getattr(layer, name)
    local, rows, cols = packed.shape[0], packed.shape[1], 2 * packed.shape[2]
    if activations == "bf16":
        block_scale = getattr(layer, f"{name}_block_scale").view(E4M3)
        tensors = {"weight_scale": block_scale, "weight_scale_2": getattr(layer, f"{name}_global_scale")}
    else:
        tensors = {"weight_scale": weights.e8m0[name]}
    schema, tensors = BaseWeightSchema.from_config(WEIGHTS[activations]).convert_humming(
        tensors={"weight": packed, **tensors},
        shape_n_stacks=[rows // 2] * 2 if name == "w13" else [rows],
        shape_k_stacks=[cols],
        param_dtype=torch.bfloat16,
        num_experts=local,
    )
    config, tensors = prepare_and_transform_humming_tensors(
        tensors=tensors, shape_n=rows, shape_k=cols, pad_n_to_multiple=256, pad_k_to_multiple=128,
        input_schema=ACTIVATIONS[activations], weight_schema=schema, num_experts=local, torch_dtype=torch.bfloat16,
        device=packed.device,
    )  # fmt: skip
    options = {"use_batch_invariant": False, "use_f16_accum": False, "gemm_type": gemm_type}
    configurations = {size: get_heuristics_config(config, shape_m=tuned_rows(size), **options) for size in sizes}
    parts = tensors["weight"], tensors["weight_scale"], tensors.get("weight_scale_2")
    return Gemm(config, json.dumps(options), *parts, configurations)


_workspaces: dict[int, torch.Tensor] = {}


def workspace(which: int, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """One of two buffers of all layers, between which steps alternate. A layer asks for the most when it is made."""
    size = math.prod(shape) * dtype.itemsize
    if which not in _workspaces or _workspaces[which].numel() < size:
        _workspaces[which] = torch.empty(size, dtype=torch.uint8, device="cuda")
    return _workspaces[which][:size].view(dtype).view(shape)


class Humming:
    """A layer as vLLM's HummingIndexedExperts or HummingGroupedExperts; called with x, topk_ids and topk_weights."""

    def __init__(self, form: str, shape: str, weights: Weights, tokens: list[int]):
        from vllm33.moe_permute_unpermute import MoEPermuteScratch

        gemm_type, self.activations = FORMS[form]
        self.hidden, self.inter, self.experts, self.local, self.top_k = SHAPES[shape]
        self.gemm_type = gemm_type or ("indexed" if self.local == self.experts else "grouped_contiguous")
        self.expert_map = expert_map(shape)
        sizes = sorted({self.rows(count) for count in tokens})
        self.gemm1, self.gemm2 = (
            make_gemm(weights, name, self.activations, self.gemm_type, sizes) for name in ("w13", "w2")
        )
        multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
        self.scatter_above = 2 * multiprocessors  # slots, beyond which vLLM leaves out those of other ranks
        self.locks = torch.zeros(8 * multiprocessors, dtype=torch.int32, device="cuda")
        self.scratch = MoEPermuteScratch(self.experts, self.local, torch.device("cuda", 0))
        self.scratch.reserve(max(tokens) * self.top_k)
        self.buffers(max(tokens) * self.top_k, max(tokens) * self.top_k)

    def rows(self, num_tokens: int) -> int:
        """What vLLM expects of uniform routing, to choose a configuration by."""
        return math.ceil(num_tokens * self.top_k * self.local / self.experts)

    def __call__(self, x: torch.Tensor, ids: torch.Tensor, topk_weights: torch.Tensor, out=None) -> torch.Tensor:
        out = torch.empty_like(x) if out is None else out
        scale = None
        if self.activations == "group":
            x, scale, _ = ops.process_input(
                x, quant_mode="dynamic_group", quant_dtype="float8e4m3", quant_group_size=GROUP,
                group_scale_dtype="float32",
            )  # fmt: skip
        run = self.indexed if self.gemm_type == "indexed" else self.grouped
        return run(x, scale, ids, topk_weights, out)

    def process(self, gemm: Gemm, x, out, **options) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Quantise, scatter or activate, as `options` and the GEMM's activations ask for; x itself if nothing does."""
        config = gemm.config
        if not (config.input_quant_mode.should_quantize or options):
            return x, None
        layout = "scatter" if options.get("scatter_idx") is not None else "normal"
        x, groups, rows = may_process_input(
            config, inputs=x, outputs=out, hadamard_block_size=0, layout=layout, **options
        )
        return x, groups if config.input_quant_mode.has_group_scale else rows

    def buffers(self, rows_in: int, slots: int) -> list[torch.Tensor]:
        """x as GEMM1 reads it, gate and up, h as GEMM2 reads it, its result."""
        inputs = torch.bfloat16 if self.activations == "bf16" else E4M3
        return [
            workspace(0, (rows_in, self.hidden), inputs),
            workspace(1, (slots, 2 * self.inter), torch.bfloat16),
            workspace(0, (slots, self.inter), inputs),
            workspace(1, (slots, self.hidden), torch.bfloat16),
        ]

    def indexed(self, x, scale, ids, topk_weights, out) -> torch.Tensor:
        """GEMMs gather rows by a list of slots, in blocks of one expert each."""
        from vllm33.moe_align_block_size import moe_align_block_size
        from vllm33.moe_fused_mul_sum import moe_fused_mul_sum

        slots, rows = ids.numel(), self.rows(len(ids))
        x_in, gate_up, h_in, y = self.buffers(len(ids), slots)

        def blocks(gemm: Gemm, **options):
            names = "sorted_ids", "expert_ids", "num_tokens_padded"
            lists = moe_align_block_size(
                ids, gemm.tile_rows(rows), self.experts, self.expert_map, ignore_invalid_experts=True, **options
            )
            return dict(zip(names, lists)), lists[3] if len(lists) > 3 else None

        scatters = self.expert_map is not None and slots > self.scatter_above
        lists, scatter_idx = blocks(self.gemm1, return_scatter_idx=scatters)
        same = self.gemm1.tile_rows(rows) == self.gemm2.tile_rows(rows)
        lists2 = lists if same else blocks(self.gemm2)[0]
        if scale is None:
            x, scale = self.process(self.gemm1, x, x_in)
        self.gemm1(x, scale, gate_up, self.locks, valid_shape_m=rows, top_k=self.top_k, **lists)
        h, scale = self.process(self.gemm2, gate_up, h_in, scatter_idx=scatter_idx, **CLAMPED_SWIGLU)
        self.gemm2(h, scale, y, self.locks, valid_shape_m=rows, top_k=1, **lists2)
        moe_fused_mul_sum(y.view(*ids.shape, -1), topk_weights, out, ids, self.expert_map)
        return out

    def grouped(self, x, scale, ids, topk_weights, out) -> torch.Tensor:
        """GEMMs read rows that lie expert by expert."""
        from vllm33.moe_permute_unpermute import moe_permute, moe_prepare_scatter, moe_unpermute

        slots, rows = ids.numel(), self.rows(len(ids))
        x_in, gate_up, h_in, y = self.buffers(slots, slots)
        if scale is None:
            offsets, scatter_idx = moe_prepare_scatter(ids, self.expert_map, self.scratch)
            places = scatter_idx.flatten()
            x, scale = self.process(self.gemm1, x, x_in, scatter_idx=scatter_idx, num_valid_tokens=offsets[-1:])
        else:
            x, scale, offsets, places, _ = moe_permute(
                x, scale, ids, self.experts, self.local, self.expert_map, x_in, self.scratch
            )
        self.gemm1(x, scale, gate_up, self.locks, valid_shape_m=rows, expert_layout=offsets)
        h, scale = self.process(self.gemm2, gate_up, h_in, num_valid_tokens=offsets[-1:], **CLAMPED_SWIGLU)
        self.gemm2(h, scale, y, self.locks, valid_shape_m=rows, expert_layout=offsets)
        moe_unpermute(out, y.view(*ids.shape, -1), topk_weights, places, offsets)
        return out


def compile_all(layers: list[Humming]) -> None:
    """Compile or load the GEMMs of layers, all at once: one takes seconds, and there are hundreds."""

    def compiled(gemm: Gemm) -> None:
        with contextlib.suppress(Exception):  # raised again by whoever calls it
            HummingKernel.prepare_kernels(gemm.config.to_str(), gemm.compute, gemm.tuning, 0)

    gemms = [gemm for layer in layers for gemm in (layer.gemm1, layer.gemm2)]
    with ThreadPoolExecutor(len(gemms)) as pool:
        list(pool.map(compiled, gemms))
