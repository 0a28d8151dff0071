# SPDX-License-Identifier: Apache-2.0
"""Golden vectors of the activations: each formula as its model's reference states it, in f64, rounded once to f32.

Sources: swiglu with alpha 1 the SiLU of most models, with 1.702, limit 7 and beta 1 gpt-oss's; swiglu_step Step-3.5's
`SwigluStepAndMul`; situ Kimi-K3's `SituAndMul`; gelu_tanh PyTorch's `gelu(approximate="tanh")`, Gemma's; gelu its
`gelu`; relu2 Nemotron-H's `ReLUSquared`.
"""

import math
import random
import struct

INF = math.inf


def f32(x: float) -> float:
    return struct.unpack(">f", struct.pack(">f", x))[0]


def f32_hex(x: float) -> str:
    return struct.pack(">f", x).hex()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def swiglu(limit, alpha, beta, gate, up):
    gate, up = min(gate, limit), max(min(up, limit), -limit)
    return (up + beta) * (gate * sigmoid(gate * alpha))


def swiglu_step(limit, alpha, beta, gate, up):
    return min(gate * sigmoid(gate), limit) * max(min(up, limit), -limit)


def situ(limit, alpha, beta, gate, up):
    bounded = up if math.isinf(limit) else limit * math.tanh(up / limit)
    return beta * math.tanh(gate / beta) * sigmoid(gate) * bounded


def gelu_tanh(limit, alpha, beta, gate, up):
    # 1 + tanh(z) is 2 sigmoid(2 z), which loses nothing where tanh is near -1.
    z = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return gate * sigmoid(2 * z) * up


def relu2(limit, alpha, beta, gate, up):
    return max(up, 0.0) ** 2


def silu(limit, alpha, beta, gate, up):
    return up * sigmoid(up)


def gelu(limit, alpha, beta, gate, up):
    # 1 + erf(z) is erfc(-z), which loses nothing where erf is near -1.
    return gate * math.erfc(-gate / math.sqrt(2)) / 2 * up


# Number of the kind, formula, (limit, alpha, beta) of some models.
KINDS = [
    (0, swiglu, [(INF, 1.0, 0.0), (10.0, 1.0, 0.0), (7.0, 1.702, 1.0)]),
    (1, swiglu_step, [(7.0, 1.0, 0.0)]),
    (2, situ, [(25.0, 1.0, 4.0), (INF, 1.0, 1.0)]),
    (3, gelu_tanh, [(INF, 1.0, 0.0)]),
    (4, relu2, [(INF, 1.0, 0.0)]),
    (5, silu, [(INF, 1.0, 0.0)]),
    (6, gelu, [(INF, 1.0, 0.0)]),
]
# Around 0, where tanh and sigmoid are nearly linear, around the limits, and beyond them.
VALUES = [0.0, 2.0**-20, -(2.0**-20), 0.001, -0.001, 0.5, -0.5, 1.0, -3.0, 6.96875, 7.03125, -7.5, 10.5, -12.0, 40.0]


def activation_lines() -> list[str]:
    rng = random.Random("activation")
    lines = [
        "# activation KIND LIMIT ALPHA BETA GATE UP VALUE: KIND is NVFP4_MOE_ACTIVATION_*, the rest f32; without a"
    ]
    lines += ["# gate the activation of UP. Held to 2^-20 of VALUE, or 2^-30 of UP where that is more."]
    for kind, formula, numbers in KINDS:
        for limit, alpha, beta in numbers:
            alpha, beta = f32(alpha), f32(beta)
            pairs = [(gate, VALUES[(3 * i + 5) % len(VALUES)]) for i, gate in enumerate(VALUES)]
            pairs += [(f32(rng.gauss(0, 5)), f32(rng.gauss(0, 5))) for _ in range(17)]
            for gate, up in pairs:
                words = [limit, alpha, beta, f32(gate), f32(up), formula(limit, alpha, beta, f32(gate), f32(up))]
                lines.append(f"activation {kind} {' '.join(map(f32_hex, words))}")
    return lines
