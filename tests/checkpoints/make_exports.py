#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Exports of other people's tools, small enough to be committed: what tests/test_exports.py reads.

    make_exports.py OUT [NAME ...]      needs requirements-modelopt.txt, and compressed-tensors for those of that name

Each export becomes OUT/NAME.tar.xz: config.json, the safetensors files, and reference.json. The latter holds, of every
routed expert's matrices, the product with a fixed vector, of the values that the exporter's own code decodes, in
float64.
"""

import argparse
import copy
import io
import json
import math
import os
import tarfile
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import export_models as models
import torch
from export_models import EXPERTS, HIDDEN, INTER, VOCABULARY
from safetensors import safe_open
from safetensors.torch import save_file


def probe(columns: int) -> torch.Tensor:
    """The fixed vector."""
    return torch.cos(torch.arange(1, columns + 1, dtype=torch.float64) * math.sqrt(2))


def with_layers_left_out(config: dict, *patterns: str) -> dict:
    """ModelOpt's recipe without the modules of these names."""
    changed = copy.deepcopy(config)
    changed["quant_cfg"] += [{"quantizer_name": pattern, "enable": False} for pattern in patterns]
    return changed


def with_fp8_attention(config: dict) -> dict:
    """ModelOpt's recipe, and attention in e4m3 with a scale for each tensor."""
    changed = copy.deepcopy(config)
    for kind in ("weight", "input"):
        rule = {"quantizer_name": f"*self_attn*{kind}_quantizer", "cfg": {"num_bits": (4, 3), "axis": None}}
        changed["quant_cfg"].append(rule)
    return changed


def by_modelopt(model, config: dict, directory: Path) -> None:
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    torch.manual_seed(0)
    model = model.to(torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)

    def calibrate(model):
        for _ in range(8):
            model(torch.randint(2, VOCABULARY, (4, 32)))

    with torch.inference_mode():
        export_hf_checkpoint(mtq.quantize(model, config, calibrate), export_dir=directory)


def by_compressed_tensors(preset: str, directory: Path) -> None:
    """Linears under Qwen3-MoE's names, compressed by the library that llm-compressor writes with."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    torch.manual_seed(0)
    expert = lambda: torch.nn.ModuleDict(  # noqa: E731
        {
            "gate_proj": torch.nn.Linear(HIDDEN, INTER, bias=False),
            "up_proj": torch.nn.Linear(HIDDEN, INTER, bias=False),
            "down_proj": torch.nn.Linear(INTER, HIDDEN, bias=False),
        }
    )
    experts = torch.nn.ModuleList(expert() for _ in range(EXPERTS))
    layer = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"experts": experts})})
    model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})}).bfloat16()
    config = QuantizationConfig(config_groups={preset: ["Linear"]}, ignore=[])
    apply_quantization_config(model, config)
    for module in model.modules():
        if scheme := getattr(module, "quantization_scheme", None):
            blocks = module.weight.data.float().unflatten(-1, (-1, 16))
            lowest, highest = blocks.amin(-1), blocks.amax(-1)
            gparam = generate_gparam(lowest.min(), highest.max())
            module.weight_global_scale.data.copy_(gparam)
            scale, _ = calculate_qparams(lowest, highest, scheme.weights, global_scale=gparam)
            module.weight_scale.data.copy_(scale)
            if scheme.input_activations is not None:
                module.input_global_scale.data.copy_(generate_gparam(torch.tensor(-4.0), torch.tensor(4.0)))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    quantization = compressor.quantization_config.model_dump(mode="json")
    text = models.qwen3().config.to_dict() | {"quantization_config": quantization}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(text, indent=1, default=str))
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, directory / "model.safetensors")


def as_gpt_oss_is_published(directory: Path) -> None:
    """No exporter writes it: OpenAI's files are MXFP4 with codes [E, rows, columns / 32, 16] and biases."""
    torch.manual_seed(0)
    config = models.gpt_oss().config.to_dict() | {"quantization_config": {"quant_method": "mxfp4"}}
    tensors, stem = {}, "model.layers.0.mlp.experts"
    for name, rows, columns in (("gate_up_proj", 2 * INTER, HIDDEN), ("down_proj", HIDDEN, INTER)):
        shape = (EXPERTS, rows, columns // 32)
        tensors[f"{stem}.{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        tensors[f"{stem}.{name}_scales"] = torch.randint(118, 126, shape, dtype=torch.uint8)
        tensors[f"{stem}.{name}_bias"] = torch.randn(EXPERTS, rows).bfloat16()
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config, indent=1, default=str))
    save_file(tensors, directory / "model.safetensors")


def exports() -> dict:
    import modelopt.torch.quantization as mtq

    default = mtq.NVFP4_DEFAULT_CFG
    modelopt = {
        "modelopt-default": (models.qwen3, default),
        "modelopt-w4a16": (models.qwen3, mtq.W4A16_NVFP4_CFG),
        "modelopt-experts-only": (models.qwen3, mtq.NVFP4_EXPERTS_ONLY_CFG),
        "modelopt-fp8-attention": (models.qwen3, with_fp8_attention(mtq.NVFP4_EXPERTS_ONLY_CFG)),
        "modelopt-without-layer-1": (
            lambda: models.qwen3(num_hidden_layers=2),
            with_layers_left_out(default, "*layers.1.mlp*"),
        ),
        "modelopt-bf16-experts": (models.qwen3, with_layers_left_out(default, "*mlp.experts*")),
        "modelopt-ernie": (models.ernie, default),
        "modelopt-hunyuan": (models.hunyuan, default),
        "modelopt-llama4-stacked": (models.llama4, default),
        "modelopt-mixtral": (models.mixtral, default),
        "modelopt-deepseek-v3": (models.deepseek_v3, default),
        "modelopt-glm4-moe": (models.glm4_moe, default),
        "modelopt-minimax-m3": (models.minimax_m3, default),
        "modelopt-nemotron-h": (models.nemotron_h, default),
        "modelopt-gemma4": (models.gemma4, default),
        "modelopt-gpt-oss": (models.gpt_oss, default),
    }
    made = {name: lambda to, m=m, c=c: by_modelopt(m(), c, to) for name, (m, c) in modelopt.items()}
    for name, preset in (("compressed-tensors-nvfp4", "NVFP4"), ("compressed-tensors-nvfp4a16", "NVFP4A16")):
        made[name] = lambda to, preset=preset: by_compressed_tensors(preset, to)
    return made | {"gpt-oss-mxfp4": as_gpt_oss_is_published}


# ---- What the exporter's own code decodes ----------------------------------------------------------------------------


def decoded_by_modelopt(packed, block_scale, global_scale) -> torch.Tensor:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    shape = torch.Size((*packed.shape[:-1], packed.shape[-1] * 2))
    scales = {"scale": block_scale.double(), "double_scale": global_scale.double(), "block_sizes": {-1: 16}}
    return NVFP4QTensor(shape, torch.float64, packed).dequantize(dtype=torch.float64, **scales)


def decoded_by_compressed_tensors(packed, block_scale, global_scale) -> torch.Tensor:
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    codes = unpack_fp4_from_uint8(packed, *packed.shape[:-1], packed.shape[-1] * 2, dtype=torch.float64)
    return codes * (block_scale.double() / global_scale.double()).repeat_interleave(16, -1)


def decoded_by_transformers(blocks, scales) -> torch.Tensor:
    """gpt-oss's own layout, [E, rows, columns]."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(blocks, scales, dtype=torch.float64).transpose(1, 2)


def references(directory: Path) -> dict[str, list[float]]:
    """By the name of an expert's matrix in the files: its product with the fixed vector."""
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    found = {}
    for name in tensors:
        if ".experts." not in name:
            continue
        scales = lambda *ends, name=name: [tensors[f"{name}{end}"] for end in ends]  # noqa: E731
        if name.endswith(".weight_packed"):
            stem = name.removesuffix("_packed")
            of_stem = tensors[f"{stem}_scale"], tensors[f"{stem}_global_scale"]
            matrices = {stem: decoded_by_compressed_tensors(tensors[name], *of_stem)}
        elif name.endswith("_blocks"):
            stack = decoded_by_transformers(tensors[name], tensors[name.replace("_blocks", "_scales")])
            matrices = of_stack(directory, name.removesuffix("_blocks"), stack)
        elif f"{name}_scale_2" in tensors and tensors[name].dim() == 2:
            matrices = {name: decoded_by_modelopt(tensors[name], *scales("_scale", "_scale_2"))}
        elif f"{name}_weight_scale_2" in tensors:  # by columns
            packed, block_scale = (t.transpose(1, 2).contiguous() for t in (tensors[name], *scales("_weight_scale")))
            stack = decoded_by_modelopt(packed, block_scale, *scales("_weight_scale_2"))
            matrices = of_stack(directory, name, stack)
        else:
            continue
        for matrix_name, matrix in matrices.items():
            product = (matrix @ probe(matrix.shape[-1])).tolist()
            found[matrix_name.removesuffix(".weight")] = [float(f"{value:.10g}") for value in product]
    return found


def of_stack(directory: Path, name: str, stack: torch.Tensor) -> dict[str, torch.Tensor]:
    """[E, rows, columns] as transformers takes it apart, under the names that experts by themselves would have."""
    stem, _, projection = name.rpartition(".")
    if projection == "down_proj":
        return {f"{stem}.{expert}.down_proj": matrix for expert, matrix in enumerate(stack)}
    in_turn = json.loads((directory / "config.json").read_text())["model_type"] == "gpt_oss"
    gate, up = (stack[:, ::2], stack[:, 1::2]) if in_turn else stack.chunk(2, dim=1)
    halves = {"gate_proj": gate, "up_proj": up}
    return {f"{stem}.{e}.{half}": matrices[e] for half, matrices in halves.items() for e in range(len(stack))}


def pack(directory: Path, archive: Path) -> None:
    """The same bytes each time."""
    with tarfile.open(archive, "w:xz") as tar:
        for file in sorted(directory.iterdir()):
            if file.name in ("config.json", "hf_quant_config.json", "reference.json") or file.suffix == ".safetensors":
                info = tarfile.TarInfo(file.name)
                info.size = file.stat().st_size
                tar.addfile(info, io.BytesIO(file.read_bytes()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, make in exports().items():
        if arguments.names and name not in arguments.names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / name
            make(directory)
            (directory / "reference.json").write_text(json.dumps(references(directory)))
            pack(directory, arguments.out / f"{name}.tar.xz")
        print(f"{name}: {(arguments.out / f'{name}.tar.xz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
