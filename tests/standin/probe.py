#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A few layers whose CTAs have several tiles each, with the stand-in in the middle: `probe.py [nvfp4] [bf16]`.

Device cuda against cuda-portable, whose kernels are other ones and run on Hopper as they are. Small enough for a run a
planted mistake; tests/layertest.py and tests/test_layer_matrix.py compare with float64. Ends with PASS or FAIL.
"""

import sys

import torch

import runner
from reference import generate
from reference.layer import Relu2, Swiglu, relative_l2

# The kernels sum in other orders, and then now and then round a value of h to another code.
BOUND = {"bf16": 1e-2, "nvfp4": 3e-2}
# hidden, intermediate, experts, top_k, tokens: 192 tiles for 132 multiprocessors; columns past the last whole slab;
# many rows of one expert.
SHAPES = ((2048, 1024, 24, 4, 48), (528, 272, 4, 2, 7), (512, 256, 2, 2, 300))


def differs(mode: str, policy: str, activation: Swiglu, shape: tuple[int, ...]) -> bool:
    hidden, intermediate, experts, top_k, tokens = shape
    generator = torch.Generator().manual_seed(hidden + tokens)
    weights = generate.random_code_weights(
        experts, hidden, intermediate, generator, range(experts), gated=activation.gated
    ).with_input_scales(5.0, 40.0)
    x = generate.tokens(tokens, hidden, generator)
    ids = generate.random_ids(tokens, experts, top_k, generator)
    topk_weights = generate.random_topk_weights(tokens, top_k, generator)
    outs = []
    for device in ("cuda-portable", "cuda"):
        layer = runner.make_layer(weights, num_experts=experts, top_k=top_k, mode=mode, scale_policy=policy,
                                  swiglu=activation, device=device)  # fmt: skip
        outs.append(runner.run(layer, x, ids, topk_weights).double())
    error = relative_l2(outs[1], outs[0])
    wrong = not error <= BOUND[mode]
    print(f"{mode} {policy} {activation.name} {shape}: rel-L2 {error:.2e}{' WRONG' if wrong else ''}", flush=True)
    return wrong


def main() -> int:
    wrong = False
    for mode in sys.argv[1:] or BOUND:
        for shape in SHAPES:
            wrong |= differs(mode, "static", Swiglu(limit=10.0), shape)
        wrong |= differs(mode, "dynamic", Relu2(), SHAPES[1])
    print("FAIL" if wrong else "PASS")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
