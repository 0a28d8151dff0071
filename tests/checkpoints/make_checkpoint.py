#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a generated MoE checkpoint with real NVFP4 or MXFP4 weights, in any of the formats and namings that exist.

    make_checkpoint.py OUT --naming deepseek|hf
                       --format modelopt|compressed-tensors|deepseek-v4-mixed|deepseek-v4-original
                       --hidden H --intermediate I --experts E --layers N --top-k K

Weights are normal; each expert's input scales are calibrated on tokens of its own. deepseek-v4-mixed adds
what NVIDIA's DeepSeek-V4 checkpoints have beside NVFP4 experts: FP8 shared experts, and an MXFP4 expert in the
multi-token-prediction layer. deepseek-v4-original is what DeepSeek publishes: all experts are MXFP4. With
--keep-unquantized, OUT/unquantized gets the bf16 weights under the same names.
The same arguments give the same bytes.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference import generate, nvfp4
from reference.layer import Swiglu

SWIGLU_LIMIT = 10.0
CALIBRATION_TOKENS = 64
MX_BLOCK_SIZE = 32
E4M3_MAX_EXPONENT = 8  # of the largest power of two in e4m3, 256

Tensors = dict[str, torch.Tensor]


class Naming(NamedTuple):
    stem: str
    gate: str
    up: str
    down: str


NAMINGS = {
    "deepseek": Naming("layers.{layer}.ffn", "w1", "w3", "w2"),
    "hf": Naming("model.layers.{layer}.mlp", "gate_proj", "up_proj", "down_proj"),
}


class Matrix(NamedTuple):
    """A quantised matrix; both f32 scales decode."""

    packed: torch.Tensor  # u8 [rows, cols/2]
    block_scale: torch.Tensor  # u8 [rows, cols/16], e4m3
    global_scale: float

    @classmethod
    def quantize(cls, weight: torch.Tensor, amax: float) -> "Matrix":
        """As ModelOpt does: the global scale is amax / (6 * 448)."""
        global_scale = amax / (6 * 448)
        q = nvfp4.quantize(weight, global_scale)
        return cls(nvfp4.pack(q.codes), q.block_scale, float(q.global_scale[0]))

    @classmethod
    def cast_from_mxfp4(cls, weight: torch.Tensor, exponent: int) -> "Matrix":
        """MXFP4's codes, and its scale as block scale of both halves; `exponent` is the largest of the scales'."""
        codes, exponents = quantize_mxfp4(weight)
        global_exponent = exponent - E4M3_MAX_EXPONENT
        block_scale = torch.exp2((exponents - global_exponent).float()).repeat_interleave(2, dim=-1)
        if block_scale.min() < 2.0**-9:
            sys.exit("make_checkpoint: the blocks' scales are too far apart for a lossless cast. Use other weights.")
        return cls(nvfp4.pack(codes), nvfp4.encode_e4m3(block_scale), 2.0**global_exponent)


def mxfp4_exponents(weight: torch.Tensor) -> torch.Tensor:
    """Per block of 32 the power of two that brings its amax into e2m1's last binade, 4 to 8."""
    amax = weight.float().unflatten(-1, (-1, MX_BLOCK_SIZE)).abs().amax(dim=-1)
    return torch.floor(torch.log2(amax)).int() - 2


def quantize_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [rows, cols] and exponents [rows, cols/32]."""
    exponents = mxfp4_exponents(weight)
    blocks = weight.float().unflatten(-1, (-1, MX_BLOCK_SIZE))
    return nvfp4.encode_e2m1(blocks * torch.exp2(-exponents.float())[..., None]).flatten(-2), exponents


def stored_mxfp4(weight: torch.Tensor) -> Tensors:
    """A matrix as DeepSeek stores it: signed bytes of codes, and e8m0 scales."""
    codes, exponents = quantize_mxfp4(weight)
    return {
        "weight": nvfp4.pack(codes).view(torch.int8),
        "scale": torch.exp2(exponents.float()).to(torch.float8_e8m0fnu),
    }


def stored(matrix: Matrix, input_scale: float, compressed_tensors: bool) -> Tensors:
    """The tensors of a matrix as the format stores them."""
    block_scale = matrix.block_scale.view(torch.float8_e4m3fn)
    if compressed_tensors:  # [1], and the inverse of what decodes
        scales = {"weight_global_scale": matrix.global_scale, "input_global_scale": input_scale}
        inverse = {name: 1 / torch.tensor([scale]) for name, scale in scales.items()}
        return {"weight_packed": matrix.packed, "weight_scale": block_scale, **inverse}
    scales = {"weight_scale_2": torch.tensor(matrix.global_scale), "input_scale": torch.tensor(input_scale)}
    return {"weight": matrix.packed, "weight_scale": block_scale, **scales}


class Maker:
    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.naming = NAMINGS[args.naming]
        self.swiglu = Swiglu(limit=SWIGLU_LIMIT if args.naming == "deepseek" else 0.0)
        self.generator = torch.Generator().manual_seed(args.seed)

    def weight(self, rows: int, cols: int, gain: float = 1.0) -> torch.Tensor:
        return (torch.randn(rows, cols, generator=self.generator) * gain * cols**-0.5).bfloat16()

    def expert(self, layer: int, expert: int) -> tuple[Tensors, Tensors]:
        """An expert's tensors, quantised and not."""
        hidden, inter = self.args.hidden, self.args.intermediate
        # Normal tokens times this gain: a few percent of gates and ups pass the clamp of 10.
        gate = self.weight(inter, hidden, 5.0)
        up = self.weight(inter, hidden, 2.0 if self.args.different_gate_up else 5.0)
        weights = {self.naming.gate: gate, self.naming.up: up, self.naming.down: self.weight(hidden, inter)}
        stem = f"{self.naming.stem.format(layer=layer)}.experts.{expert}"
        quantized, unquantized = {}, {}
        for name, tensors in self.stored(weights).items():
            quantized |= {f"{stem}.{name}.{suffix}": tensor for suffix, tensor in tensors.items()}
            unquantized[f"{stem}.{name}.weight"] = weights[name]
        return quantized, unquantized

    def stored(self, weights: Tensors) -> dict[str, Tensors]:
        """The tensors of each matrix, by its name."""
        if self.args.format == "deepseek-v4-original":
            return {name: stored_mxfp4(weight) for name, weight in weights.items()}
        matrices, scales = self.quantize(weights), self.calibrate(weights)
        compressed = self.args.format == "compressed-tensors"
        return {name: stored(matrix, scales[name], compressed) for name, matrix in matrices.items()}

    def quantize(self, weights: Tensors) -> dict[str, Matrix]:
        """Gate and up share a global scale, as exporters make them, unless they are to differ."""
        gate, up = weights[self.naming.gate], weights[self.naming.up]
        matrices = {}
        for name, weight in weights.items():
            shares = weight is not weights[self.naming.down] and not self.args.different_gate_up
            ranging = [gate, up] if shares else [weight]
            if self.args.lossless_cast:
                exponent = max(int(mxfp4_exponents(w).max()) for w in ranging)
                matrices[name] = Matrix.cast_from_mxfp4(weight, exponent)
            else:
                matrices[name] = Matrix.quantize(weight, max(float(w.abs().max()) for w in ranging))
        return matrices

    def calibrate(self, weights: Tensors) -> dict[str, float]:
        """Input scales, amax / (6 * 448), of normal tokens and of what the expert makes of them."""
        x = generate.tokens(CALIBRATION_TOKENS, self.args.hidden, self.generator).float()
        gate, up = (x @ weights[name].float().T for name in (self.naming.gate, self.naming.up))
        x_scale, h_scale = (float(t.abs().max()) / (6 * 448) for t in (x, self.swiglu(gate, up)))
        return {self.naming.gate: x_scale, self.naming.up: x_scale, self.naming.down: h_scale}

    def unquantized_parts(self) -> Tensors:
        """Routers and, in DeepSeek-V4's mixture, the FP8 and MXFP4 tensors that are none of the NVFP4 layers."""
        hidden, inter, tensors = self.args.hidden, self.args.intermediate, {}
        for layer in range(self.args.layers):
            stem = self.naming.stem.format(layer=layer)
            tensors[f"{stem}.gate.weight"] = self.weight(self.args.experts, hidden)
            if self.args.format.startswith("deepseek-v4"):
                for name, rows, cols in (("w1", inter, hidden), ("w3", inter, hidden), ("w2", hidden, inter)):
                    # One power-of-two scale for each tile of 128 x 128; here all are 1.
                    tiles = (-(-rows // 128), -(-cols // 128))
                    shared = f"{stem}.shared_experts.{name}"
                    tensors[f"{shared}.weight"] = self.weight(rows, cols).to(torch.float8_e4m3fn)
                    tensors[f"{shared}.scale"] = torch.ones(tiles).to(torch.float8_e8m0fnu)
        if self.args.format.startswith("deepseek-v4"):
            for name, rows, cols in (("w1", inter, hidden), ("w3", inter, hidden), ("w2", hidden, inter)):
                expert = stored_mxfp4(self.weight(rows, cols))
                tensors |= {f"mtp.0.ffn.experts.0.{name}.{part}": tensor for part, tensor in expert.items()}
        return tensors

    def config(self) -> dict:
        args = self.args
        fp8 = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
        quantization = {
            "modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            "compressed-tensors": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
            "deepseek-v4-mixed": {**fp8, "moe_quant_algo": "NVFP4", "group_size": nvfp4.BLOCK_SIZE},
            "deepseek-v4-original": fp8,
        }[args.format]
        model = {
            "hidden_size": args.hidden,
            "moe_intermediate_size": args.intermediate,
            "num_hidden_layers": args.layers,
            "num_experts_per_tok": args.top_k,
            "quantization_config": quantization,
        }
        if args.naming == "deepseek":
            routing = {"n_routed_experts": args.experts, "routed_scaling_factor": 1.5, "swiglu_limit": SWIGLU_LIMIT}
            return {"model_type": "deepseek_v4", "expert_dtype": "fp4", **model, **routing}
        return {"model_type": "qwen3_moe", **model, "num_experts": args.experts}

    def shards(self) -> Iterator[tuple[Tensors, Tensors]]:
        """Experts in order of layer, dealt to `--shards` files; a shard is all that is held in memory."""
        experts = [(layer, expert) for layer in range(self.args.layers) for expert in range(self.args.experts)]
        for shard in range(self.args.shards):
            first, end = (len(experts) * n // self.args.shards for n in (shard, shard + 1))
            quantized, unquantized = (self.unquantized_parts(), {}) if shard == 0 else ({}, {})
            for layer, expert in experts[first:end]:
                more_quantized, more_unquantized = self.expert(layer, expert)
                quantized |= more_quantized
                if self.args.keep_unquantized:
                    unquantized |= more_unquantized
            yield quantized, unquantized


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--naming", choices=NAMINGS, default="deepseek")
    formats = ("modelopt", "compressed-tensors", "deepseek-v4-mixed", "deepseek-v4-original")
    parser.add_argument("--format", choices=formats, default="deepseek-v4-mixed")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=128)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lossless-cast", action="store_true", help="cast from MXFP4: power-of-two block scales")
    parser.add_argument("--different-gate-up", action="store_true", help="gate and up have their own global scales")
    parser.add_argument("--keep-unquantized", action="store_true", help="write OUT/unquantized as well")
    args = parser.parse_args(argv)
    if args.format.startswith("deepseek-v4") and args.naming != "deepseek":
        parser.error(f"--format {args.format} goes with --naming deepseek")
    if args.hidden % MX_BLOCK_SIZE or args.intermediate % MX_BLOCK_SIZE:
        parser.error(
            f"--hidden {args.hidden} and --intermediate {args.intermediate} must be multiples of {MX_BLOCK_SIZE}"
        )
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    start = time.monotonic()
    maker = Maker(args)
    args.out.mkdir(parents=True, exist_ok=True)
    weight_map, num_bytes = {}, 0
    for number, (quantized, unquantized) in enumerate(maker.shards(), 1):
        name = "model.safetensors" if args.shards == 1 else f"model-{number:05}-of-{args.shards:05}.safetensors"
        save_file(quantized, args.out / name)
        weight_map |= dict.fromkeys(quantized, name)
        num_bytes += (args.out / name).stat().st_size
        print(f"{args.out}: {name}, {time.monotonic() - start:.0f} s", flush=True)
        if unquantized:
            (args.out / "unquantized").mkdir(exist_ok=True)
            save_file(unquantized, args.out / "unquantized" / name)
    if args.shards > 1:
        index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
        (args.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (args.out / "config.json").write_text(json.dumps(maker.config(), indent=1))
    print(f"{args.out}: {args.format}, {num_bytes / 1e6:.1f} MB in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
