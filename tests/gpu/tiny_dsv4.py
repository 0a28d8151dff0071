# SPDX-License-Identifier: Apache-2.0
"""The tiny DeepSeek-V4 of tests/vllm at sizes that vLLM's GPU kernels take: `tests/gpu/tiny_dsv4.py OUT FLOAT32 [MTP]`.

Its kernel of the hyper-connections walks hidden / 8 columns in steps of 256, so that hidden must be a multiple of 2048;
DeepGEMM's index kernel has 64 heads. Experts are NVFP4, linears fp8, as NVIDIA publishes it. FLOAT32 gets the same
model without quantisation, MTP the model with a layer that drafts a token more, whose experts are NVFP4, too.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "vllm")]

import tiny_deepseek_v4 as tiny
import torch

SIZES = {"H": 2048, "INTER": 256, "EXPERTS": 16, "HEADS": 8, "Q_LORA": 256, "O_LORA": 256, "INDEX_HEADS": 64}
IN_CONFIG = {
    "H": "hidden_size",
    "INTER": "moe_intermediate_size",
    "EXPERTS": "n_routed_experts",
    "HEADS": "num_attention_heads",
    "Q_LORA": "q_lora_rank",
    "O_LORA": "o_lora_rank",
    "INDEX_HEADS": "index_n_heads",
}


def quantised(model: tiny.Model) -> tuple[dict, dict]:
    """Every tensor as it is published, and in float32."""
    fp8, linears = tiny.fp8_linears(model)
    stacks = {name: tiny.quantize_experts(weights) for name, weights in model.experts.items()}
    experts, _, decoded = tiny.expert_tensors(stacks)
    return model.plain | fp8 | experts, model.plain | linears | decoded


class Drafting(tiny.Model):
    """The one layer that drafts: it has the sliding window alone, and its own routing."""

    def __init__(self, seed: int = 1):
        self.generator = torch.Generator().manual_seed(seed)
        self.plain, self.fp8, self.experts = {}, {}, {}
        for name in ("enorm", "hnorm", "norm"):
            self.plain[f"mtp.0.{name}.weight"] = torch.ones(tiny.H).bfloat16()
        for name in ("e_proj", "h_proj"):
            self.fp8[f"mtp.0.{name}"] = self.linear(tiny.H, tiny.H)
        self.hyper_connection("mtp.0.hc_head", tiny.HC, 1)
        self.attention("mtp.0.", 0)
        self.moe("mtp.0.", False)


def write(directory: Path, float32: Path, drafting: Path | None = None) -> Path:
    """All of them."""
    for name, size in SIZES.items():
        setattr(tiny, name, size)
    tiny.CONFIG |= {IN_CONFIG[name]: size for name, size in SIZES.items()}
    tensors, decoded = quantised(tiny.Model())
    tiny.write(float32, decoded, None)
    tiny.write(directory, tensors, tiny.FP8_CONFIG)
    if drafting:
        more, _ = quantised(Drafting())
        more["mtp.0.emb.tok_emb.weight"], more["mtp.0.head.weight"] = tensors["embed.weight"], tensors["head.weight"]
        tiny.CONFIG |= {"num_nextn_predict_layers": 1, "compress_ratios": [*tiny.COMPRESS_RATIOS, 0]}
        tiny.write(drafting, tensors | {name: tensor.clone() for name, tensor in more.items()}, tiny.FP8_CONFIG)
    return directory


if __name__ == "__main__":
    print(write(*map(Path, sys.argv[1:])))
