# SPDX-License-Identifier: Apache-2.0
"""A tiny Qwen3-MoE that NVIDIA ModelOpt itself quantised (MoE and linears), and two rewritings of its files.

modelopt             as ModelOpt exported it
compressed-tensors   the same bytes under compressed-tensors' names, global scales inverted
shards               ModelOpt's, dealt tensor by tensor to five files: an expert's codes and scales in different ones
rotated              ModelOpt's, each layer with the weights of the next: another model of the same size
float32              every weight decoded, for the reference

python tests/vllm/qwen3_moe.py OUT
"""

import json
import re
import shutil
import sys
from pathlib import Path

import tiny_tokenizer
import torch
from safetensors.torch import load_file, save_file

from reference import nvfp4

NVFP4_FLAVOURS = ("modelopt", "compressed-tensors")

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "vocab_size": tiny_tokenizer.VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    # Ten times the usual: logits are then far enough apart for greedy tokens to mean something.
    "initializer_range": 0.2,
}


def export_with_modelopt(directory: Path) -> None:
    """Random weights, NVFP4 by ModelOpt's default recipe, calibrated on random tokens, exported by ModelOpt."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**CONFIG)).to(torch.bfloat16).eval()

    def calibrate(model):
        for _ in range(8):
            model(torch.randint(3, CONFIG["vocab_size"], (4, 64)))

    model = mtq.quantize(model, mtq.NVFP4_DEFAULT_CFG, calibrate)
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=directory)
    tiny_tokenizer.save(directory)


def rewrite(source: Path, directory: Path, tensors: dict[str, torch.Tensor], quantization: dict | None) -> Path:
    """The model in `source` with other tensors and another quantization_config."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, directory)
    config = json.loads((source / "config.json").read_text())
    config.pop("quantization_config", None)
    if quantization:
        config["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    save_file({name: t.contiguous() for name, t in tensors.items()}, directory / "model.safetensors")
    return directory


def compressed_tensors_config(ignore: list[str]) -> dict:
    group = {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": {
            "group_0": {
                "weights": group | {"dynamic": False},
                "input_activations": group | {"dynamic": "local"},
                "targets": ["Linear"],
                "format": "nvfp4-pack-quantized",
            }
        },
    }


def write_shards(source: Path, directory: Path, tensors: dict[str, torch.Tensor], num_shards: int = 5) -> Path:
    """The model in `source` as exporters write a large one: several files and an index."""
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    files = [f"model-{shard + 1:05}-of-{num_shards:05}.safetensors" for shard in range(num_shards)]
    index = {name: files[at % num_shards] for at, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({name: tensors[name] for name in index if index[name] == file}, directory / file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    (directory / "model.safetensors.index.json").write_text(text)
    return directory


def in_next_layer(name: str) -> str:
    """The tensor's name in the layer behind its own, the first's behind the last."""
    layers = CONFIG["num_hidden_layers"]
    return re.sub(r"layers\.(\d+)\.", lambda found: f"layers.{(int(found[1]) + 1) % layers}.", name)


def make(root: Path) -> dict[str, Path]:
    """Write all flavours below `root`; returns their directories by name."""
    modelopt = root / "modelopt"
    export_with_modelopt(modelopt)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(modelopt.glob("*.safetensors")):
        tensors |= load_file(file)
    text, rotated = (modelopt / "config.json").read_text(), {in_next_layer(name): t for name, t in tensors.items()}
    shards = write_shards(modelopt, root / "shards", tensors)
    compressed, decoded = {}, {}
    quantized = [name.removesuffix("_scale_2") for name in tensors if name.endswith(".weight_scale_2")]
    for name in quantized:
        packed, block_scale = tensors.pop(name), tensors.pop(f"{name}_scale")
        global_scale = tensors.pop(f"{name}_scale_2").float()
        prefix = name.removesuffix(".weight")
        input_scale = tensors.pop(f"{prefix}.input_scale").float()
        compressed |= {
            f"{name}_packed": packed,
            f"{name}_scale": block_scale,
            f"{name}_global_scale": (1.0 / global_scale).reshape(1),
            f"{prefix}.input_global_scale": (1.0 / input_scale).reshape(1),
        }
        values = nvfp4.decode_blocks(packed, block_scale)
        decoded[name] = values * global_scale
    rest = {name: t for name, t in tensors.items() if not name.endswith(("k_scale", "v_scale"))}
    unquantized = sorted(n.removesuffix(".weight") for n in rest if n.endswith(".weight") and rest[n].dim() == 2)
    return {
        "modelopt": modelopt,
        "shards": shards,
        "rotated": rewrite(modelopt, root / "rotated", rotated, json.loads(text)["quantization_config"]),
        "compressed-tensors": rewrite(
            modelopt, root / "compressed-tensors", rest | compressed, compressed_tensors_config(unquantized)
        ),
        "float32": rewrite(modelopt, root / "float32", {n: t.float() for n, t in rest.items()} | decoded, None),
    }


if __name__ == "__main__":
    for flavour, path in make(Path(sys.argv[1])).items():
        print(f"{flavour}: {path}")
