# SPDX-License-Identifier: Apache-2.0
"""The golden vectors of the cast from MXFP4: a part of make_golden.py, which writes them."""

import random
from fractions import Fraction

from make_golden import E4M3, f32_hex, words

MX_BLOCK_SIZE = 32


def case(name: str, cols: int, codes: list[int], scales: list[int]) -> list[str]:
    """codes in row order, e8m0 scales; what comes out, or `refused`."""
    blocks = [codes[i : i + MX_BLOCK_SIZE] for i in range(0, len(codes), MX_BLOCK_SIZE)]
    counts = [any(code & 7 for code in block) for block in blocks]
    kept = [scale - 127 for scale, counted in zip(scales, counts) if counted]
    lines = [f"case {name}", f"cols {cols}"]
    lines += words([low | high << 4 for low, high in zip(codes[::2], codes[1::2])], 2, 32, "packed")
    lines += words(scales, 2, 32, "e8m0_scale")
    if 255 in scales or (kept and max(kept) - min(kept) > 17):
        return [*lines, "refused 1", "end"]
    g = max(max(kept) - 8, -126) if kept else 0
    # Exact: the byte whose value is that power of two.
    byte_of = {value: byte for byte, value in enumerate(E4M3)}
    cast = [byte_of[Fraction(2) ** (s - 127 - g)] if counted else 0 for s, counted in zip(scales, counts)]
    lines += words([byte for byte in cast for _ in range(2)], 2, 32, "block_scale")
    return [*lines, f"global_scale {f32_hex(2.0**g)}", "refused 0", "end"]


def lines() -> list[str]:
    rng = random.Random("mxfp4")

    def codes(blocks: int) -> list[int]:
        return [rng.getrandbits(4) for _ in range(blocks * MX_BLOCK_SIZE)]

    def between(low: int, high: int, blocks: int) -> list[int]:
        """Both ends, and anything between."""
        return [low, high, *(rng.randint(low, high) for _ in range(blocks - 2))]

    found = ["# mxfp4: packed u8 [rows, cols/2], e8m0_scale u8 [rows, cols/32]; block_scale u8 [rows, cols/16] and"]
    found += ["# global_scale f32 come out, or it is refused."]
    for low, high in [(120, 120), (110, 121), (100, 117), (0, 17), (0, 9), (237, 254), (1, 1), (0, 0), (254, 254)]:
        found += case(f"from_{low}_to_{high}", 64, codes(8), between(low, high, 8))
    for low, high in [(100, 118), (0, 18), (236, 254), (0, 254), (120, 255)]:
        found += case(f"too_wide_from_{low}_to_{high}", 64, codes(8), between(low, high, 8))
    zeros = codes(6)
    for block in (1, 4):
        zeros[block * 32 : block * 32 + 32] = [rng.choice((0, 8)) for _ in range(32)]
    found += case("zeros_constrain_nothing", 96, zeros, [120, 0, 121, 119, 254, 127])
    found += case("nan_of_zeros", 96, zeros, [120, 255, 121, 119, 254, 127])
    found += case("nothing_counts", 32, [8] * 64, [3, 254])
    one = [0] * 64
    one[63] = 9
    found += case("one_code_counts", 64, one, [254, 90])
    return found
