#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the golden vectors that every language reads: `make_golden.py [--check]`.

Independent of the Rust code: codes are found by exact rational distance to a table written down here, and every f32
operation is done in f64 (exact for a product of two f32, innocuous for a quotient) and rounded once. Files are
lines of words; `#` starts a comment. f32 and bf16 are hexadecimal bit patterns.

`--check` compares instead of writing, and exits 1 if a file differs.
"""

import ctypes
import itertools
import math
import random
import struct
import sys
from fractions import Fraction
from pathlib import Path

from activations import activation_lines
from routing import routing_lines

HERE = Path(__file__).parent
BLOCK_SIZE = 16
INF, NAN = math.inf, math.nan

# --- f32 and bf16 -----------------------------------------------------------------------------------------------


def f32(x: float) -> float:
    """Round once to f32, ties to even; overflow gives infinity."""
    return ctypes.c_float(x).value


def f32_hex(x: float) -> str:
    return "7fc00000" if math.isnan(x) else struct.pack(">f", x).hex()


def f32_from_bits(bits: int) -> float:
    return struct.unpack(">f", struct.pack(">I", bits))[0]


def next_f32(x: float, up: bool) -> float:
    bits = struct.unpack(">i", struct.pack(">f", x))[0]
    return f32_from_bits((bits + (1 if up == (x > 0) else -1)) & 0xFFFFFFFF)


def bf16_bits(x: float) -> int:
    """Truncate to bf16: enough where any bf16 value will do."""
    return struct.unpack(">I", struct.pack(">f", f32(x)))[0] >> 16


def bf16_value(bits: int) -> float:
    return f32_from_bits(bits << 16)


# --- Codecs, by exact distance to a table -----------------------------------------------------------------------

E2M1 = [Fraction(v) for v in ("0", "1/2", "1", "3/2", "2", "3", "4", "6")]
# Exponent bias 7, three mantissa bits; all-ones is NaN, so 126 (448) is the largest of 127 magnitudes.
E4M3 = [
    Fraction(code, 512) if code < 8 else (1 + Fraction(code % 8, 8)) * Fraction(2) ** (code // 8 - 7)
    for code in range(127)
]


def nearest(x: float, table: list[Fraction]) -> int:
    """Index of the value nearest to |x|, the even index where two are as near; infinity takes the last."""
    if math.isinf(x):
        return len(table) - 1
    a = abs(Fraction(x))
    return min(range(len(table)), key=lambda code: (abs(table[code] - a), code % 2))


def is_negative(x: float) -> bool:
    return math.copysign(1, x) < 0


def e2m1_encode(x: float) -> int:
    """NaN becomes +6, as PTX cvt.rn.satfinite.e2m1x2."""
    return 7 if math.isnan(x) else nearest(x, E2M1) | (8 if is_negative(x) else 0)


def e4m3_encode(x: float) -> int:
    return 0x7F if math.isnan(x) else nearest(x, E4M3) | (0x80 if is_negative(x) else 0)


def e2m1_decode(code: int) -> float:
    return math.copysign(float(E2M1[code & 7]), -1 if code & 8 else 1)


def e4m3_decode(byte: int) -> float:
    return NAN if byte & 0x7F == 0x7F else math.copysign(float(E4M3[byte & 0x7F]), -1 if byte & 0x80 else 1)


def codec_lines(name: str, codes: int, table: list[Fraction], decode, encode, random_exponents: range) -> list[str]:
    """decode: every code. encode: every value and midpoint with both neighbours, extremes, random patterns."""
    rng = random.Random(name)
    inputs = [0.0, f32_from_bits(1), INF, NAN, f32_from_bits(0x7F7FFFFF), 1e30]
    for low, high in itertools.pairwise(table):
        middle = float((low + high) / 2)
        inputs += [float(high), middle, next_f32(middle, True), next_f32(middle, False)]
    for _ in range(400):
        exponent = rng.choice(random_exponents)
        inputs.append(f32_from_bits((127 + exponent) << 23 | rng.getrandbits(23)))
    inputs += [f32_from_bits(rng.getrandbits(31)) for _ in range(100)]
    lines = [f"# {name}: decode CODE F32 | encode F32 CODE; NaN decodes to any NaN"]
    lines += [f"decode {code:02x} {f32_hex(decode(code))}" for code in range(codes)]
    for x in inputs:
        for signed in (x, -x):
            lines.append(f"encode {f32_hex(signed)} {encode(signed):02x}")
    return lines


# --- The block quantiser ----------------------------------------------------------------------------------------

MIN_GLOBAL_SCALE = 2.0**-110


def quantize_row(x: list[float], global_scale: float):
    """-> (packed bytes, block scales, saturated blocks). Each operation rounds once to f32."""
    encode = f32(1.0 / global_scale)
    encode_sixth = f32(encode / 6.0)
    packed, scales, saturated = [], [], 0
    for start in range(0, len(x), BLOCK_SIZE):
        block = x[start : start + BLOCK_SIZE]
        has_nan = any(math.isnan(v) for v in block)
        wanted = NAN if has_nan else f32(max(abs(v) for v in block) * encode_sixth)
        scale = e4m3_encode(wanted)
        decoded = e4m3_decode(scale)
        factor = 0.0 if decoded == 0 else f32(encode / decoded)
        codes = [e2m1_encode(f32(v * factor)) for v in block]
        packed += [low | high << 4 for low, high in zip(codes[::2], codes[1::2])]
        scales.append(scale)
        saturated += wanted > 448
    return packed, scales, saturated


def dynamic_global_scale(row: list[float]) -> float:
    amax = max((abs(v) for v in row if math.isfinite(v)), default=0.0)
    return 1.0 if amax == 0 else max(f32(amax / 2688.0), MIN_GLOBAL_SCALE)


def words(values, width: int, per_line: int, key: str) -> list[str]:
    """`key` and its values in hexadecimal, over as many lines as needed; readers append repeated keys."""
    texts = [f"{v:0{width}x}" for v in values]
    return [f"{key} {' '.join(texts[i : i + per_line])}" for i in range(0, len(texts), per_line)]


def quantize_case(name: str, policy: str, rows: list[list[int]], global_scale: float = 0.0) -> list[str]:
    packed, scales, global_scales, saturated, nonfinite = [], [], [], 0, 0
    for row in rows:
        x = [bf16_value(bits) for bits in row]
        g = global_scale if policy == "static" else dynamic_global_scale(x)
        row_packed, row_scales, row_saturated = quantize_row(x, g)
        packed += row_packed
        scales += row_scales
        saturated += row_saturated
        nonfinite += sum(not math.isfinite(v) for v in x)
        global_scales.append(g)
    if policy == "static":
        global_scales = [global_scale]
    lines = [f"case {name}", f"policy {policy}", f"rows {len(rows)}", f"cols {len(rows[0])}"]
    lines += words([bits for row in rows for bits in row], 4, 16, "x")
    lines += [f"global_scale {' '.join(f32_hex(g) for g in global_scales)}"]
    lines += words(packed, 2, 32, "packed") + words(scales, 2, 32, "block_scale")
    return [*lines, f"saturated {saturated}", f"nonfinite {nonfinite}", "end"]


def quantize_lines() -> list[str]:
    rng = random.Random("quantize")

    def normal(count: int, sigma: float) -> list[int]:
        return [bf16_bits(rng.gauss(0, sigma)) for _ in range(count)]

    def around(values: list[float]) -> list[int]:
        return [bf16_bits(v) for v in values] + [0] * (-len(values) % BLOCK_SIZE)

    inf, nan, minus_zero, subnormal = 0x7F80, 0x7FC0, 0x8000, 0x0001
    ties = [sign * m for m in (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0) for sign in (1, -1)] + [6.0, -6.0]
    specials = normal(16, 1.0)
    specials[3] = nan
    infinities = normal(16, 1.0)
    infinities[0], infinities[9] = inf, inf | minus_zero
    mixed = [normal(32, 1.0), [*infinities, *normal(16, 1.0)], [*specials, *normal(16, 1.0)], [0] * 32]
    out_of_reach = [*normal(15, 1.0), bf16_bits(-8.0)]
    any_bits = [[rng.getrandbits(16) for _ in range(48)] for _ in range(6)]

    lines = ["# quantize: x bf16 [rows, cols], packed [rows, cols/2], block_scale [rows, cols/16] linear; both outputs"]
    lines += ["# row-major. global_scale: one (static, given) or one a row (dynamic, written)."]
    for policy in ("static", "dynamic"):

        def add(name: str, rows: list[list[int]], global_scale: float, policy: str = policy):
            nonlocal lines
            lines += quantize_case(f"{policy}_{name}", policy, rows, global_scale)

        add("normal", [normal(64, 1.0) for _ in range(3)], f32(4.0 / 2688))
        add("ties", [around(ties)], 1.0)
        add("zeros_and_minus_zeros", [[0] * 16 + [minus_zero] * 16], 0.5)
        add("subnormals", [[subnormal, 0x8001, 0x007F, 0x807F] * 8, [0x0080, subnormal] * 16], MIN_GLOBAL_SCALE)
        add("largest", [[0x7F7F, 0xFF7F] * 8], f32(1e-3))
        add("nan_and_infinity", mixed, f32(3.0 / 2688))
        add("one_nan", [[*specials, *normal(16, 1.0)]], 1.0)
        add("saturation", [out_of_reach, normal(16, 100.0)], f32(0.676 / 2688))
        add("scale_underflow", [normal(16, 1e-3), normal(16, 1e-4)], 1.0)
        add("wide_range_in_a_row", [normal(16, 1e-6) + normal(16, 1.0) + normal(16, 1e5)], f32(1e-2))
        add("any_bits", any_bits, f32(0.37))
        add("huge_global_scale", [normal(16, 1e38)], f32(2.0**127))
        for exponent in (-3, -7, 2, 9):
            add(f"power_of_two_{exponent}", [normal(32, 2.0**exponent)], 2.0 ** (exponent - 10))
    return lines


# --- The row quantiser of mode fp8 ------------------------------------------------------------------------------


def fp8_row_case(name: str, rows: list[list[int]]) -> list[str]:
    scales, codes, nonfinite = [], [], 0
    for row in rows:
        x = [bf16_value(bits) for bits in row]
        amax = max((abs(v) for v in x if math.isfinite(v)), default=0.0)
        scale = 1.0 if amax == 0 else max(f32(amax / 448.0), MIN_GLOBAL_SCALE)
        encode = f32(1.0 / scale)
        scales.append(scale)
        codes += [e4m3_encode(f32(v * encode)) for v in x]
        nonfinite += sum(not math.isfinite(v) for v in x)
    lines = [f"case {name}", f"rows {len(rows)}", f"cols {len(rows[0])}"]
    lines += words([bits for row in rows for bits in row], 4, 16, "x")
    lines += [f"row_scale {' '.join(f32_hex(scale) for scale in scales)}", *words(codes, 2, 32, "codes")]
    return [*lines, f"nonfinite {nonfinite}", "end"]


def fp8_row_lines() -> list[str]:
    rng = random.Random("fp8_rows")

    def normal(count: int, sigma: float) -> list[int]:
        return [bf16_bits(rng.gauss(0, sigma)) for _ in range(count)]

    def scaled(values, scale: float) -> list[int]:
        return [bf16_bits(v * scale) for v in values] + [0] * (-len(values) % BLOCK_SIZE)

    inf, nan, minus = 0x7F80, 0x7FC0, 0x8000
    codes = [float(value) for value in E4M3] + [-float(value) for value in E4M3]
    ties = [448.0] + [float((low + high) / 2) for low, high in itertools.pairwise(E4M3)]
    specials = normal(32, 1.0)
    specials[3], specials[9], specials[20], specials[31] = nan, nan | minus, inf, inf | minus
    lines = ["# fp8_rows: x bf16 [rows, cols], row_scale [rows] decodes, codes e4m3 [rows, cols]; both outputs."]
    lines += fp8_row_case("normal", [normal(64, 1.0) for _ in range(3)])
    lines += fp8_row_case("one_value", [normal(1, 3.0) + [0] * 15])
    lines += fp8_row_case("zeros_and_minus_zeros", [[0] * 16 + [minus] * 16, normal(32, 1.0)])
    lines += fp8_row_case("every_code", [scaled(codes, 1.0), scaled(codes, 2.0**-9), scaled(codes, 2.0**90)])
    lines += fp8_row_case("ties", [scaled(ties, 1.0), scaled([-v for v in ties], 2.0**-20)])
    lines += fp8_row_case("subnormals", [[0x0001, 0x8001, 0x007F, 0x807F] * 4, [0x0080, 0x0001] * 8])
    lines += fp8_row_case(
        "smallest_scale", [[bf16_bits(v * 2.0**e) for v in (1.0, -1.5)] * 8 for e in (-101, -102, -112)]
    )
    lines += fp8_row_case("largest", [[0x7F7F, 0xFF7F] * 8])
    lines += fp8_row_case("nan_and_infinity", [specials, normal(32, 1.0), [nan] * 32, [inf, inf | minus] * 16])
    lines += fp8_row_case("wide_range_in_a_row", [normal(16, 1e-3) + normal(16, 1.0) + normal(16, 1e3)])
    lines += fp8_row_case("any_bits", [[rng.getrandbits(16) for _ in range(48)] for _ in range(6)])
    # Every mantissa an amax can have: some lift it above 448 by rounding, some leave it below.
    lines += fp8_row_case("every_mantissa", [[0x3F80 + m, 0xBF80 + m, 0x3F80, *normal(13, 0.3)] for m in range(128)])
    return lines


# --- Layouts ----------------------------------------------------------------------------------------------------


def sf_layout_lines() -> list[str]:
    """Where each scale lands when the scales are dealt out tile by tile, byte by byte: the picture, not the formula."""
    lines = ["# sf_layout: size ROWS SF_COLS BYTES | offset ROW SF_COL SF_COLS BYTE; 128x4 tiles, along columns first"]
    rng = random.Random("layout")
    for rows, cols in [(1, 1), (1, 4), (32, 4), (33, 3), (127, 5), (128, 8), (129, 9), (256, 16), (300, 45)]:
        tiles = [(r, c) for r in range(0, rows, 128) for c in range(0, cols, 4)]
        order = [
            (tile_row + quarter * 32 + lane, tile_col + col)
            for tile_row, tile_col in tiles
            for lane in range(32)
            for quarter in range(4)
            for col in range(4)
        ]
        lines.append(f"size {rows} {cols} {len(order)}")
        byte_of = {place: byte for byte, place in enumerate(order)}
        corners = {(r, c) for r in (0, 1, 31, 32, 64, 96, 127, 128, rows - 1) for c in (0, 3, 4, cols - 1)}
        chosen = sorted(place for place in corners if place in byte_of)
        chosen += rng.sample(order, min(len(order), 30))
        lines += [f"offset {row} {col} {cols} {byte_of[row, col]}" for row, col in chosen]
    return lines


def files() -> dict[str, list[str]]:
    import make_mxfp4  # which import this file
    import make_rounding

    return {
        "e2m1.txt": codec_lines("e2m1", 16, E2M1, e2m1_decode, e2m1_encode, range(-4, 4)),
        "e4m3.txt": codec_lines("e4m3", 256, E4M3, e4m3_decode, e4m3_encode, range(-12, 10)),
        "quantize.txt": quantize_lines(),
        "fp8_rows.txt": fp8_row_lines(),
        "mxfp4.txt": make_mxfp4.lines(),
        "rounding.txt": make_rounding.lines(),
        "sf_layout.txt": sf_layout_lines(),
        "routing.txt": routing_lines(),
        "activation.txt": activation_lines(),
    }


def main() -> int:
    differing = []
    for name, lines in files().items():
        path, text = HERE / name, "".join(f"{line.rstrip()}\n" for line in lines)
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            differing.append(name)
    if differing:
        print(f"tests/golden: {', '.join(differing)} differ from what make_golden.py writes")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
