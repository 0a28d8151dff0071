# SPDX-License-Identifier: Apache-2.0
"""The oracle's codec against the golden vectors that every language reads."""

import struct
from pathlib import Path

import pytest
import torch

from reference import fp8, nvfp4, rounding
from reference.layer import ACTIVATIONS

GOLDEN = Path(__file__).parent / "golden"


def golden_lines(name: str) -> list[list[str]]:
    lines = (GOLDEN / name).read_text().splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def f32(words: list[str]) -> torch.Tensor:
    return torch.tensor(struct.unpack(f">{len(words)}f", bytes.fromhex("".join(words))))


@pytest.mark.parametrize(("name", "encode"), [("e2m1.txt", nvfp4.encode_e2m1), ("e4m3.txt", nvfp4.encode_e4m3)])
def test_encode_is_golden(name, encode):
    lines = [words for words in golden_lines(name) if words[0] == "encode"]
    x, codes = f32([words[1] for words in lines]), torch.tensor([int(words[2], 16) for words in lines])
    if name == "e4m3.txt":  # the oracle's scales carry no sign
        positive = ~torch.signbit(x) | x.isnan()
        x, codes = x[positive], codes[positive]
    assert len(codes) > 500
    assert torch.equal(encode(x).int(), codes.int())


def test_decode_is_golden():
    for words in golden_lines("e2m1.txt"):
        if words[0] == "decode":
            code = torch.full((1, 16), int(words[1], 16), dtype=torch.uint8)
            value = nvfp4.decode_blocks(nvfp4.pack(code), torch.tensor([[0x38]], dtype=torch.uint8))  # times 1
            assert torch.equal(value[0, :2].view(torch.int32), f32([words[2]] * 2).view(torch.int32)), words
    for words in golden_lines("e4m3.txt"):
        code = int(words[1], 16)
        if words[0] == "decode" and code < 0x7F:
            assert nvfp4.decode_e4m3(torch.tensor([code], dtype=torch.uint8)) == f32([words[2]]).double(), words


def test_activations_are_golden():
    """KINDS are in the order of the header's numbers; without a gate the activation is of up."""
    for _, kind, *words in golden_lines("activation.txt"):
        limit, alpha, beta, gate, up, value = f32(words).double()
        numbers = [0.0 if limit.isinf() else float(limit), float(alpha), float(beta)]
        got = list(ACTIVATIONS.values())[int(kind)](*numbers)(gate, up)
        assert abs(got - value) <= max(2e-7 * abs(value), 2.0**-30 * abs(up)), words


def golden_cases(name: str) -> list:
    """Blocks of `case`, then `field values...`, a field going on over lines."""
    cases: list[dict[str, list[str]]] = []
    for field, *words in golden_lines(name):
        if field == "case":
            cases.append({})
        cases[-1].setdefault(field, []).extend(words)
    return [pytest.param(case, id=case["case"][0]) for case in cases]


@pytest.mark.parametrize("case", golden_cases("quantize.txt"))
def test_quantize_is_golden(case):
    rows, cols = int(case["rows"][0]), int(case["cols"][0])
    x = f32([word + "0000" for word in case["x"]]).view(rows, cols)
    static = case["policy"] == ["static"]
    q = nvfp4.quantize(x, float(f32(case["global_scale"])) if static else None)
    as_bytes = {
        name: torch.tensor(list(bytes.fromhex("".join(case[name]))), dtype=torch.uint8)
        for name in ("packed", "block_scale")
    }
    assert torch.equal(nvfp4.pack(q.codes).flatten(), as_bytes["packed"])
    assert torch.equal(q.block_scale.flatten(), as_bytes["block_scale"])
    if not static:
        assert torch.equal(q.global_scale.flatten(), f32(case["global_scale"]))


@pytest.mark.parametrize("case", golden_cases("fp8_rows.txt"))
def test_fp8_rows_are_golden(case):
    rows, cols = int(case["rows"][0]), int(case["cols"][0])
    q = fp8.quantize(f32([word + "0000" for word in case["x"]]).view(rows, cols))
    assert bytes(q.codes.flatten().tolist()) == bytes.fromhex("".join(case["codes"]))
    assert torch.equal(q.row_scale.flatten(), f32(case["row_scale"]))


@pytest.mark.parametrize("case", golden_cases("rounding.txt"))
def test_rounding_is_golden(case):
    cols = int(case["cols"][0])
    packed, block_scale = (
        torch.tensor(list(bytes.fromhex("".join(case[name]))), dtype=torch.uint8) for name in ("packed", "block_scale")
    )
    matrix = packed.view(-1, cols // 2), block_scale.view(-1, cols // 16)
    assert torch.equal(
        rounding.rounded_values(*matrix).flatten().view(torch.int32), f32(case["weights"]).view(torch.int32)
    )
    error = rounding.error(*matrix)
    rel_l2, block_rel_l2, index = case["error"]
    assert (error.rel_l2, error.block_rel_l2) == pytest.approx((float(rel_l2), float(block_rel_l2)), rel=1e-12)
    assert error.row * (cols // 16) + error.block == int(index)


def test_swizzle_is_golden():
    num_checked = 0
    for words in golden_lines("sf_layout.txt"):
        if words[0] == "offset":
            row, col, cols, offset = map(int, words[1:])
            block_scale = torch.zeros(row + 1, max(cols, col + 1), dtype=torch.uint8)
            if col < cols:  # beyond lies padding
                block_scale[row, col] = 1
                assert nvfp4.swizzle(block_scale).argmax() == offset
                num_checked += 1
    assert num_checked > 100
