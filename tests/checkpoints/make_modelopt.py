#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""NVIDIA ModelOpt quantises and exports a small Qwen3-MoE: input that nobody here wrote.

    make_modelopt.py OUT [--hidden 512 --intermediate 256 --experts 16 --layers 2 --top-k 4]

OUT gets ModelOpt's export (experts and attention in NVFP4), OUT/unquantized the bf16 model it was made from, both under
Hugging Face's names. Needs the packages of requirements-modelopt.txt and no network; runs on the CPU.
"""

import argparse
import os
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

VOCABULARY = 1024
CALIBRATION_BATCHES = 16
CALIBRATION_BATCH = (4, 128)  # sequences, tokens: every expert sees some


def make_model(args: argparse.Namespace) -> Qwen3MoeForCausalLM:
    """An untrained model whose weights are as large as a trained one's: rows of unit gain, not initialiser noise."""
    config = Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=args.hidden,
        intermediate_size=2 * args.hidden,
        moe_intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_experts=args.experts,
        num_experts_per_tok=args.top_k,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        norm_topk_prob=True,
        tie_word_embeddings=False,
    )
    model = Qwen3MoeForCausalLM(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def calibrate(model: Qwen3MoeForCausalLM) -> None:
    for _ in range(CALIBRATION_BATCHES):
        model(torch.randint(0, VOCABULARY, CALIBRATION_BATCH))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--intermediate", type=int, default=256)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    start = time.monotonic()
    torch.manual_seed(args.seed)
    model = make_model(args)
    model.save_pretrained(args.out / "unquantized")
    model.config.dtype = torch.bfloat16  # saving left its name there, which ModelOpt's export takes for a device
    with torch.inference_mode():
        model = mtq.quantize(model, mtq.NVFP4_DEFAULT_CFG, calibrate)
        export_hf_checkpoint(model, export_dir=args.out)
    size = sum(path.stat().st_size for path in args.out.glob("*.safetensors"))
    print(f"{args.out}: {size / 1e6:.1f} MB by NVIDIA ModelOpt in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
