# SPDX-License-Identifier: Apache-2.0
"""The golden vectors of weights that are rounded to e4m3: a part of make_golden.py, which writes them."""

import random
from fractions import Fraction

from make_golden import E2M1, E4M3, f32_hex, nearest, words

BLOCK_SIZE = 16


def power_below(value: Fraction) -> Fraction:
    power = Fraction(2) ** 20
    while power > value:
        power /= 2
    return power


def rounded(code: int, scale: Fraction, floor: Fraction) -> Fraction:
    """A magnitude times a block scale."""
    exact = E2M1[code] * scale
    if exact == 0:
        return exact
    if scale < floor:
        return E2M1[nearest(exact / floor, E2M1)] * floor
    step = power_below(exact) / 8
    return round(exact / step) * step  # Python rounds a Fraction to even


def case(name: str, cols: int, codes: list[int], scales: list[int]) -> list[str]:
    """One matrix: what its weights become, the sums of their squares and of their changes', the worst block."""
    values = [E4M3[scale] for scale in scales]
    top = power_below(max(values)) if any(values) else Fraction(1)
    floor = top / (2**11 if max(values) <= top * Fraction(9, 8) else 2**10)
    weights = [rounded(code & 7, values[i // BLOCK_SIZE], floor) for i, code in enumerate(codes)]
    exact = [E2M1[code & 7] * values[i // BLOCK_SIZE] for i, code in enumerate(codes)]
    blocks = [slice(i, i + BLOCK_SIZE) for i in range(0, len(codes), BLOCK_SIZE)]
    squares = [sum(v * v for v in exact[block]) for block in blocks]
    errors = [sum((a - b) ** 2 for a, b in zip(exact[block], weights[block])) for block in blocks]
    shares = [error / square if square else Fraction(0) for error, square in zip(errors, squares)]
    worst = max(range(len(blocks)), key=lambda block: (shares[block], -block))
    total = sum(squares)
    lines = [f"case {name}", f"cols {cols}"]
    lines += words([low | high << 4 for low, high in zip(codes[::2], codes[1::2])], 2, 32, "packed")
    lines += words(scales, 2, 32, "block_scale")
    signed = [-float(w) if code & 8 else float(w) for w, code in zip(weights, codes)]
    lines += [f"weights {' '.join(map(f32_hex, signed[i : i + 16]))}" for i in range(0, len(signed), 16)]
    share = float(sum(errors) / total) if total else 0.0
    return [*lines, f"error {share**0.5!r} {float(shares[worst]) ** 0.5!r} {worst if shares[worst] else 0}", "end"]


def lines() -> list[str]:
    rng = random.Random("rounding")

    def codes(blocks: int) -> list[int]:
        return [rng.getrandbits(4) for _ in range(blocks * BLOCK_SIZE)]

    found = [
        "# rounding: packed u8 [rows, cols/2], block_scale u8 [rows, cols/16] of one matrix; its weights f32 as e4m3"
    ]
    found += ["# holds them, relative L2 error of the matrix and of its worst block, and that block's index."]
    every = [code for _ in range(8) for code in range(16)]
    for scale in (0x01, 0x03, 0x07, 0x30, 0x7E):
        found += case(f"largest_{scale:02x}", 64, every, [scale - m % (1 + scale % 8) for m in range(8)])
    for low, high in [(0x20, 0x7E), (0x10, 0x79), (0x00, 0x7E), (0x00, 0x7A), (0x00, 0x40), (0x18, 0x57)]:
        scales = [high, low, *(rng.randint(low, high) for _ in range(22))]
        found += case(f"from_{low:02x}_to_{high:02x}", 96, codes(24), scales)
    found += case("powers_of_two", 64, codes(12), [0x20 + 8 * i for i in range(12)])
    found += case("powers_of_two_too_wide", 64, codes(16), [0x78, *(8 * i for i in range(1, 16))])
    found += case("equally_bad", 32, [3] * 64, [0x39] * 4)
    found += case("zeros", 32, codes(4), [0] * 4)
    return found
