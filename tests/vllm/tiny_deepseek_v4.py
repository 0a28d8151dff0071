# SPDX-License-Identifier: Apache-2.0
"""One tiny random DeepSeek-V4, in DeepSeek's own tensor names, written in NVFP4, in MXFP4 and in float32.

    mixed                fp8 128x128 linears, NVFP4 experts: quant_method fp8 with moe_quant_algo NVFP4, as NVIDIA's
    modelopt             NVFP4 experts in ModelOpt's naming, the rest bf16
    compressed-tensors   the same in compressed-tensors' naming, global scales inverted
    float32              every weight decoded: the same model without any quantisation, for the reference
    original             as DeepSeek publishes it: MXFP4 experts, no moe_quant_algo
    cast, cast-float32   as mixed and float32, with the experts cast from original's: block scales are powers of two

All but original and the cast ones hold the same values: fp8 linears are stored decoded (exactly, in bf16) where a
flavour has none.

    python tests/vllm/tiny_deepseek_v4.py OUT
"""

import json
import sys
from pathlib import Path

import tiny_tokenizer
import torch
from safetensors.torch import save_file

from reference import mxfp4, nvfp4

NVFP4_FLAVOURS = ("mixed", "modelopt", "compressed-tensors")

H, INTER, VOCAB, EXPERTS, TOP_K, HEADS, HEAD_DIM = 256, 256, tiny_tokenizer.VOCAB_SIZE, 64, 6, 4, 512
Q_LORA, O_LORA, O_GROUPS, INDEX_HEADS, INDEX_DIM, HC = 128, 128, 2, 8, 128, 4
COMPRESS_RATIOS, HASH_LAYERS = [0, 4, 128, 4], 2

CONFIG = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "vocab_size": VOCAB,
    "hidden_size": H,
    "moe_intermediate_size": INTER,
    "num_hidden_layers": len(COMPRESS_RATIOS),
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "head_dim": HEAD_DIM,
    "qk_rope_head_dim": 64,
    "q_lora_rank": Q_LORA,
    "o_lora_rank": O_LORA,
    "o_groups": O_GROUPS,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "n_shared_experts": 1,
    "num_hash_layers": HASH_LAYERS,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "max_position_embeddings": 4096,
    "sliding_window": 128,
    "compress_ratios": COMPRESS_RATIOS,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "index_n_heads": INDEX_HEADS,
    "index_head_dim": INDEX_DIM,
    "index_topk": 512,
    "hc_mult": HC,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "num_nextn_predict_layers": 0,
    "torch_dtype": "bfloat16",
}

FP8_CONFIG = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
    "scale_fmt": "ue8m0",
    "moe_quant_algo": "NVFP4",
}
ORIGINAL_CONFIG = {name: value for name, value in FP8_CONFIG.items() if name != "moe_quant_algo"}
GROUP = {"num_bits": 4, "type": "float", "group_size": 16}
MODELOPT_CONFIG = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "group_size": 16,
    "ignore": ["*attn*", "*shared_experts*", "*ffn.gate", "lm_head"],
    "kv_cache_scheme": None,
    "config_groups": {
        "group_0": {
            "weights": GROUP | {"dynamic": False},
            "input_activations": GROUP | {"dynamic": False},
            "targets": ["Linear"],
        }
    },
}
CT_GROUP = GROUP | {"strategy": "tensor_group", "symmetric": True}
COMPRESSED_TENSORS_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["re:.*attn.*", "re:.*shared_experts.*", "re:.*gate$", "lm_head"],
    "config_groups": {
        "group_0": {
            "weights": CT_GROUP | {"dynamic": False},
            "input_activations": CT_GROUP | {"dynamic": "local"},
            "targets": ["Linear"],
            "format": "nvfp4-pack-quantized",
        }
    },
}


class Model:
    """The random tensors by kind: `plain` as they are, `fp8` and `experts` before quantisation."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)
        self.plain: dict[str, torch.Tensor] = {}
        self.fp8: dict[str, torch.Tensor] = {}
        self.experts: dict[str, torch.Tensor] = {}
        self.plain["embed.weight"] = self.normal(VOCAB, H).bfloat16()
        self.plain["head.weight"] = self.linear(VOCAB, H).bfloat16()
        self.plain["norm.weight"] = torch.ones(H).bfloat16()
        self.hyper_connection("hc_head", HC, 1)
        for layer, ratio in enumerate(COMPRESS_RATIOS):
            self.attention(f"layers.{layer}.", ratio)
            self.moe(f"layers.{layer}.", layer < HASH_LAYERS)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def linear(self, rows: int, cols: int) -> torch.Tensor:
        """A weight that keeps the size of what passes through."""
        return self.normal(rows, cols) * cols**-0.5

    def hyper_connection(self, prefix: str, rows: int, num_scales: int) -> None:
        self.plain[f"{prefix}_fn"] = self.linear(rows, HC * H)
        self.plain[f"{prefix}_base"] = self.normal(rows) * 0.1
        self.plain[f"{prefix}_scale"] = torch.full((num_scales,), 0.5)

    def compressor(self, prefix: str, dim: int, ratio: int) -> None:
        width = dim * (2 if ratio == 4 else 1)  # overlapping windows carry two series
        self.plain[prefix + "ape"] = self.normal(ratio, width) * 0.1
        self.plain[prefix + "norm.weight"] = torch.ones(dim).bfloat16()
        self.plain[prefix + "wkv.weight"] = self.linear(width, H).bfloat16()
        self.plain[prefix + "wgate.weight"] = self.linear(width, H).bfloat16()

    def attention(self, layer: str, ratio: int) -> None:
        self.hyper_connection(layer + "hc_attn", (2 + HC) * HC, 3)
        self.plain[layer + "attn_norm.weight"] = torch.ones(H).bfloat16()
        attn = layer + "attn."
        self.plain[attn + "attn_sink"] = torch.zeros(HEADS)
        self.plain[attn + "q_norm.weight"] = torch.ones(Q_LORA).bfloat16()
        self.plain[attn + "kv_norm.weight"] = torch.ones(HEAD_DIM).bfloat16()
        self.fp8[attn + "wq_a"] = self.linear(Q_LORA, H)
        self.fp8[attn + "wkv"] = self.linear(HEAD_DIM, H)
        self.fp8[attn + "wq_b"] = self.linear(HEADS * HEAD_DIM, Q_LORA)
        self.fp8[attn + "wo_a"] = self.linear(O_GROUPS * O_LORA, HEADS * HEAD_DIM // O_GROUPS)
        self.fp8[attn + "wo_b"] = self.linear(H, O_GROUPS * O_LORA)
        if ratio:
            self.compressor(attn + "compressor.", HEAD_DIM, ratio)
        if ratio == 4:
            self.fp8[attn + "indexer.wq_b"] = self.linear(INDEX_HEADS * INDEX_DIM, Q_LORA)
            self.plain[attn + "indexer.weights_proj.weight"] = self.linear(INDEX_HEADS, H).bfloat16()
            self.compressor(attn + "indexer.compressor.", INDEX_DIM, ratio)

    def moe(self, layer: str, hashed: bool) -> None:
        self.hyper_connection(layer + "hc_ffn", (2 + HC) * HC, 3)
        self.plain[layer + "ffn_norm.weight"] = torch.ones(H).bfloat16()
        ffn = layer + "ffn."
        self.plain[ffn + "gate.weight"] = self.linear(EXPERTS, H).bfloat16()
        if hashed:
            scores = torch.rand(VOCAB, EXPERTS, generator=self.generator)
            self.plain[ffn + "gate.tid2eid"] = scores.topk(TOP_K).indices.int()
        else:
            self.plain[ffn + "gate.bias"] = self.normal(EXPERTS) * 0.01
        for name, rows, cols in (("w1", INTER, H), ("w3", INTER, H), ("w2", H, INTER)):
            self.fp8[ffn + f"shared_experts.{name}"] = self.linear(rows, cols)
            # A spread of sizes: every expert, and its gate and up, get their own global scale.
            size = 1.0 + 0.5 * (torch.arange(EXPERTS) % 3) + (0.4 if name == "w3" else 0.0)
            size *= cols**-0.5
            self.experts[ffn + "experts.{}." + name] = self.normal(EXPERTS, rows, cols) * size[:, None, None]


def quantize_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(e4m3, UE8M0 scale of each 128x128 block, decoded f32: exact in bf16)."""
    rows, cols = weight.shape
    blocks = weight.reshape(rows // 128, 128, cols // 128, 128)
    scale = torch.exp2(torch.ceil(torch.log2(blocks.abs().amax((1, 3), keepdim=True) / 448)))
    quantized = (blocks / scale).to(torch.float8_e4m3fn)
    decoded = (quantized.float() * scale).reshape(rows, cols)
    return quantized.reshape(rows, cols), scale[:, 0, :, 0].to(torch.float8_e8m0fnu), decoded


def quantize_experts(weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """[E, rows, cols] to (packed, block scales, encoding global scales [E], decoded f32), expert by expert.

    The decoding scale is 1 / encoding in every flavour: 1 / (1 / s) may differ from s in the last bit.
    """
    encoding = (6 * 448) / weights.abs().amax((1, 2))
    codes, block_scale, _ = nvfp4.quantize((weights * encoding[:, None, None]).flatten(0, 1), 1.0)
    codes, block_scale = codes.unflatten(0, weights.shape[:2]), block_scale.unflatten(0, weights.shape[:2])
    packed = nvfp4.pack(codes)
    decoded = nvfp4.decode_blocks(packed, block_scale) * (1.0 / encoding)[:, None, None]
    return packed, block_scale.view(torch.float8_e4m3fn), encoding, decoded


def quantize_mxfp4(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[E, rows, cols] to MXFP4: packed, and the exponents of the scales, at most 2^11 apart, as mode fp8 takes them."""
    blocks = weights.unflatten(-1, (-1, mxfp4.BLOCK_SIZE))
    exponents = torch.log2(blocks.abs().amax(-1)).floor() - 2  # amax in e2m1's last binade
    exponents = exponents.clamp(min=exponents.amax((1, 2), keepdim=True) - 11)
    return nvfp4.pack(nvfp4.encode_e2m1(blocks * torch.exp2(-exponents)[..., None]).flatten(-2)), exponents


def cast_experts(packed: torch.Tensor, exponents: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """MXFP4 to what `quantize_experts` returns: the largest block scale is 2^8."""
    top = exponents.amax((1, 2), keepdim=True)
    block_scale = nvfp4.encode_e4m3(torch.exp2(exponents - top + 8).repeat_interleave(2, -1))
    encoding = torch.exp2(8 - top[:, 0, 0])
    decoded = nvfp4.decode_blocks(packed, block_scale) / encoding[:, None, None]
    return packed, block_scale.view(torch.float8_e4m3fn), encoding, decoded


def write(directory: Path, tensors: dict[str, torch.Tensor], quantization: dict | None) -> Path:
    """A model directory: config, tokenizer, one safetensors file."""
    directory.mkdir(parents=True, exist_ok=True)
    config = CONFIG | ({"quantization_config": quantization, "expert_dtype": "fp4"} if quantization else {})
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    tiny_tokenizer.save(directory)
    save_file({name: t.contiguous() for name, t in tensors.items()}, directory / "model.safetensors")
    return directory


def fp8_linears(model: Model) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The linears outside of the experts: quantised, and what they decode to."""
    fp8, linears = {}, {}
    for name, weight in model.fp8.items():
        quantized, scale, values = quantize_fp8(weight)
        fp8 |= {f"{name}.weight": quantized, f"{name}.scale": scale}
        linears[f"{name}.weight"] = values
    return fp8, linears


def make(root: Path) -> dict[str, Path]:
    """Write all flavours below `root`; returns their directories by name."""
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other
    model = Model()
    fp8, linears = fp8_linears(model)
    bf16 = {name: values.bfloat16() for name, values in linears.items()}
    modelopt, compressed, decoded = expert_tensors({name: quantize_experts(w) for name, w in model.experts.items()})
    original = {name: quantize_mxfp4(w) for name, w in model.experts.items()}
    cast, _, decoded_cast = expert_tensors({name: cast_experts(*stacks) for name, stacks in original.items()})
    return {
        "mixed": write(root / "mixed", model.plain | fp8 | modelopt, FP8_CONFIG),
        "modelopt": write(root / "modelopt", model.plain | bf16 | modelopt, MODELOPT_CONFIG),
        "compressed-tensors": write(
            root / "compressed-tensors", model.plain | bf16 | compressed, COMPRESSED_TENSORS_CONFIG
        ),
        "float32": write(root / "float32", model.plain | linears | decoded, None),
        "original": write(root / "original", model.plain | fp8 | original_tensors(original), ORIGINAL_CONFIG),
        "cast": write(root / "cast", model.plain | fp8 | cast, FP8_CONFIG),
        "cast-float32": write(root / "cast-float32", model.plain | linears | decoded_cast, None),
    }


def original_tensors(experts: dict[str, tuple[torch.Tensor, ...]]) -> dict[str, torch.Tensor]:
    """MXFP4 experts as DeepSeek stores them: signed bytes, and e8m0."""
    tensors = {}
    for pattern, (packed, exponents) in experts.items():
        scales = torch.exp2(exponents).to(torch.float8_e8m0fnu)
        for expert, (codes, scale) in enumerate(zip(packed.view(torch.int8), scales, strict=True)):
            name = pattern.format(expert)
            tensors |= {f"{name}.weight": codes, f"{name}.scale": scale}
    return tensors


def expert_tensors(experts: dict[str, tuple[torch.Tensor, ...]]) -> tuple[dict, dict, dict]:
    """The experts in ModelOpt's naming, in compressed-tensors', and decoded."""
    modelopt, compressed, decoded = {}, {}, {}
    for pattern, stacks in experts.items():
        for expert, parts in enumerate(zip(*stacks, strict=True)):
            packed, block_scale, encoding, values = parts
            name = pattern.format(expert)
            modelopt |= {
                f"{name}.weight": packed,
                f"{name}.weight_scale": block_scale,
                f"{name}.weight_scale_2": 1.0 / encoding,
                f"{name}.input_scale": torch.tensor(0.01),
            }
            compressed |= {
                f"{name}.weight_packed": packed,
                f"{name}.weight_scale": block_scale,
                f"{name}.weight_global_scale": encoding.reshape(1),
                f"{name}.input_global_scale": torch.tensor([100.0]),
            }
            decoded[f"{name}.weight"] = values
    return modelopt, compressed, decoded


if __name__ == "__main__":
    for flavour, path in make(Path(sys.argv[1])).items():
        print(f"{flavour}: {(path / 'model.safetensors').stat().st_size / 1e6:.1f} MB in {path}")
