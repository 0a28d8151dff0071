# SPDX-License-Identifier: Apache-2.0
"""DeepSeek-V4 as a checkpoint on disk, of any number of layers: valid tensors, written as fast as the disk takes them.

Names, types and shapes are those of the published NVFP4 checkpoints, one file a layer and one for the rest. The bytes
are cut from pools of random values, so that 40 GB need no 40 GB of random numbers: what is timed is reading.
"""

import json
import math
import multiprocessing
import os
import random
import struct
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from . import model
from .weights import E2M1_RMS, SCALE_BITS, SCALE_RMS

BLOCK = 16
TILE = 128  # rows and columns of a scale of the fp8 linears
POOL_BYTES = 16 << 20
TYPES = {"U8": 1, "F8_E4M3": 1, "F8_E8M0": 1, "BF16": 2, "F32": 4, "I32": 4}
Shape = tuple[int, ...]


def nvfp4(name: str, rows: int, columns: int) -> Iterator[tuple[str, str, Shape]]:
    """An expert's matrix."""
    yield f"{name}.weight", "U8", (rows, columns // 2)
    yield f"{name}.weight_scale", "F8_E4M3", (rows, columns // BLOCK)
    yield f"{name}.weight_scale_2", "F32", ()
    yield f"{name}.input_scale", "F32", ()


def fp8(name: str, rows: int, columns: int) -> Iterator[tuple[str, str, Shape]]:
    """A linear outside of the experts."""
    yield f"{name}.weight", "F8_E4M3", (rows, columns)
    yield f"{name}.scale", "F8_E8M0", (rows // TILE, columns // TILE)


def connection(name: str, rows: int, scales: int, config: dict) -> Iterator[tuple[str, str, Shape]]:
    """A hyper-connection's three tensors."""
    yield f"{name}_fn", "F32", (rows, config["hc_mult"] * config["hidden_size"])
    yield f"{name}_base", "F32", (rows,)
    yield f"{name}_scale", "F32", (scales,)


def compressor(name: str, dim: int, ratio: int, hidden: int) -> Iterator[tuple[str, str, Shape]]:
    """What shortens the KV cache by a ratio; windows of ratio 4 overlap, and carry two series."""
    width = dim * (2 if ratio == 4 else 1)
    yield f"{name}.ape", "F32", (ratio, width)
    yield f"{name}.norm.weight", "BF16", (dim,)
    yield f"{name}.wkv.weight", "BF16", (width, hidden)
    yield f"{name}.wgate.weight", "BF16", (width, hidden)


def layer(index: int, config: dict) -> Iterator[tuple[str, str, Shape]]:
    """Every tensor of a layer."""
    hidden, inter, ratio = config["hidden_size"], config["moe_intermediate_size"], config["compress_ratios"][index]
    heads, dim, groups, q = (config[key] for key in ("num_attention_heads", "head_dim", "o_groups", "q_lora_rank"))
    experts, output = config["n_routed_experts"], groups * config["o_lora_rank"]
    name, mixes = f"layers.{index}", (2 + config["hc_mult"]) * config["hc_mult"]
    for block, norm in (("hc_attn", "attn_norm"), ("hc_ffn", "ffn_norm")):
        yield from connection(f"{name}.{block}", mixes, 3, config)
        yield f"{name}.{norm}.weight", "BF16", (hidden,)
    attn, ffn = f"{name}.attn", f"{name}.ffn"
    yield f"{attn}.attn_sink", "F32", (heads,)
    yield f"{attn}.q_norm.weight", "BF16", (q,)
    yield f"{attn}.kv_norm.weight", "BF16", (dim,)
    linears = {"wq_a": (q, hidden), "wkv": (dim, hidden), "wq_b": (heads * dim, q), "wo_b": (hidden, output)}
    for linear, shape in (linears | {"wo_a": (output, heads * dim // groups)}).items():
        yield from fp8(f"{attn}.{linear}", *shape)
    if ratio:
        yield from compressor(f"{attn}.compressor", dim, ratio, hidden)
    if ratio == 4:
        yield from fp8(f"{attn}.indexer.wq_b", config["index_n_heads"] * config["index_head_dim"], q)
        yield f"{attn}.indexer.weights_proj.weight", "BF16", (config["index_n_heads"], hidden)
        yield from compressor(f"{attn}.indexer.compressor", config["index_head_dim"], ratio, hidden)
    yield f"{ffn}.gate.weight", "BF16", (experts, hidden)
    if index < config["num_hash_layers"]:
        yield f"{ffn}.gate.tid2eid", "I32", (config["vocab_size"], config["num_experts_per_tok"])
    else:
        yield f"{ffn}.gate.bias", "F32", (experts,)
    shapes = {"w1": (inter, hidden), "w3": (inter, hidden), "w2": (hidden, inter)}
    for matrix, shape in shapes.items():
        yield from fp8(f"{ffn}.shared_experts.{matrix}", *shape)
        for expert in range(experts):
            yield from nvfp4(f"{ffn}.experts.{expert}.{matrix}", *shape)


def rest(config: dict) -> Iterator[tuple[str, str, Shape]]:
    """What belongs to no layer."""
    yield "embed.weight", "BF16", (config["vocab_size"], config["hidden_size"])
    yield "head.weight", "BF16", (config["vocab_size"], config["hidden_size"])
    yield "norm.weight", "BF16", (config["hidden_size"],)
    yield from connection("hc_head", config["hc_mult"], 1, config)


class Pools:
    """Random bytes by kind of tensor; a tensor takes a piece that begins anywhere in them."""

    def __init__(self, config: dict):
        self.config, self.random = config, random.Random(20261130)
        torch.manual_seed(20261130)
        count = POOL_BYTES
        scales = torch.tensor(SCALE_BITS, dtype=torch.uint8)
        self.bytes = {
            "codes": torch.randint(0, 256, (count,), dtype=torch.uint8),
            "scales": scales[torch.randint(0, len(SCALE_BITS), (count // 2,))].repeat_interleave(2),
            "e4m3": torch.randn(count // 4)
            .mul(64)
            .clamp(-448, 448)
            .to(torch.float8_e4m3fn)
            .view(torch.uint8)
            .repeat(4),
            "bf16": (torch.randn(count // 8) / 64).bfloat16().view(torch.uint8).repeat(4),
            "f32": (torch.randn(count // 8) / 64).view(torch.uint8).repeat(2),
        }

    def of(self, name: str, kind: str, shape: Shape) -> memoryview:
        """A tensor's bytes."""
        size = math.prod(shape) * TYPES[kind]
        leaf = name.rsplit(".", 1)[-1]
        if kind == "U8":
            return self.piece("codes", size)
        if kind == "F8_E4M3":
            return self.piece("scales" if leaf == "weight_scale" else "e4m3", size)
        if kind == "I32":
            return memoryview(self.experts_of_tokens(shape).numpy()).cast("B")
        if "norm" in name:
            return memoryview(torch.ones(shape).bfloat16().view(torch.uint8).numpy()).cast("B")
        if kind == "F8_E8M0":
            return memoryview(bytes([127 - round(math.log2(64 * math.sqrt(shape[-1] * TILE)))]) * size)
        if leaf in ("weight_scale_2", "input_scale", "attn_sink", "bias"):
            return memoryview(struct.pack("<f", self.constant(name, leaf)) * (size // 4))
        return self.piece("bf16" if kind == "BF16" else "f32", size)

    def piece(self, pool: str, size: int) -> memoryview:
        """Bytes from anywhere in a pool, repeated where it is too small."""
        data = memoryview(self.bytes[pool].numpy()).cast("B")
        if size > len(data) // 2:
            return memoryview((bytes(data) * (size // len(data) + 1))[:size])
        start = self.random.randrange(0, len(data) - size, 32)
        return data[start : start + size]

    def constant(self, name: str, leaf: str) -> float:
        """A scale that keeps activations near 1, as weights.py has them."""
        hidden, inter = self.config["hidden_size"], self.config["moe_intermediate_size"]
        is_down = ".w2." in name
        if leaf == "weight_scale_2":
            return (inter if is_down else hidden) ** -0.5 / (E2M1_RMS * SCALE_RMS)
        return (100.0 if is_down else 8.0) / (6 * 448) if leaf == "input_scale" else 0.0

    def experts_of_tokens(self, shape: Shape) -> torch.Tensor:
        """Distinct experts of each token."""
        experts = self.config["n_routed_experts"]
        first = torch.randint(0, experts, (shape[0], 1))
        return ((first + experts // shape[1] * torch.arange(shape[1])) % experts).int()


def write_file(path: Path, tensors: list[tuple[str, str, Shape]], config: dict) -> int:
    """One safetensors file; its size."""
    header, offset = {}, 0
    for name, kind, shape in tensors:
        end = offset + math.prod(shape) * TYPES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pools = Pools(config)
    with path.open("wb", buffering=1 << 20) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, kind, shape in tensors:
            file.write(pools.of(name, kind, shape))
        file.flush()
        os.fsync(file.fileno())
    return path.stat().st_size


def write_config(folder: Path, config: dict) -> None:
    """What vLLM reads first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def write(folder: Path, config: dict, workers: int = 1) -> int:
    """The whole checkpoint; its bytes. Several workers are spawned: a fork of a process with torch's threads hangs."""
    write_config(folder, config)
    parts = [list(rest(config)), *(list(layer(index, config)) for index in range(config["num_hidden_layers"]))]
    files = [folder / f"model-{index + 1:05}-of-{len(parts):05}.safetensors" for index in range(len(parts))]
    arguments = files, parts, [config] * len(parts)
    if workers == 1:
        sizes = list(map(write_file, *arguments))
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            sizes = list(pool.map(write_file, *arguments))
    names = {name: file.name for file, tensors in zip(files, parts, strict=True) for name, _, _ in tensors}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(sizes)


def bytes_in(tensors: Iterator[tuple[str, str, Shape]]) -> int:
    """Of all of them."""
    return sum(math.prod(shape) * TYPES[kind] for _, kind, shape in tensors)


def bytes_of(config: dict) -> int:
    """What `write` would write, but for headers."""
    return bytes_in(rest(config)) + sum(bytes_in(layer(i, config)) for i in range(config["num_hidden_layers"]))


def of_size(size: str, gigabytes: float) -> dict:
    """The configuration of so many layers of a model that they take at most so many gigabytes."""
    full = model.config(size)
    total, fits = bytes_in(rest(full)), 0
    while fits < full["num_hidden_layers"] and (total := total + bytes_in(layer(fits, full))) <= gigabytes * 1e9:
        fits += 1
    if not fits:
        raise ValueError(
            f"gigabytes is {gigabytes}; it must be at least {total / 1e9:.1f}, what one layer of {size} takes."
        )
    return model.config(size, fits)
