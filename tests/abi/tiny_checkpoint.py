# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of one small MoE layer in ModelOpt's form, for the C and C++ programs; standard library only."""

import json
import random
import struct
from pathlib import Path

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K = 64, 32, 3, 2


def write(directory: Path) -> None:
    """config.json and model.safetensors: layer 0, experts 0 to 2, random codes, scales 1 to 1.875."""
    rng = random.Random("tiny checkpoint")
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": 1,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": INTERMEDIATE,
        "num_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    }
    header, data = {}, bytearray()

    def add(name: str, dtype: str, shape: list[int], values: bytes) -> None:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data.extend(values)

    shapes = {
        "gate_proj": (INTERMEDIATE, HIDDEN),
        "up_proj": (INTERMEDIATE, HIDDEN),
        "down_proj": (HIDDEN, INTERMEDIATE),
    }
    for expert in range(EXPERTS):
        for projection, (rows, cols) in shapes.items():
            name = f"model.layers.0.mlp.experts.{expert}.{projection}"
            add(f"{name}.weight", "U8", [rows, cols // 2], rng.randbytes(rows * cols // 2))
            scales = bytes(rng.randrange(0x38, 0x40) for _ in range(rows * cols // 16))
            add(f"{name}.weight_scale", "F8_E4M3", [rows, cols // 16], scales)
            add(f"{name}.weight_scale_2", "F32", [], struct.pack("<f", 0.01 + 0.001 * expert))
            add(f"{name}.input_scale", "F32", [], struct.pack("<f", 0.002))

    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
