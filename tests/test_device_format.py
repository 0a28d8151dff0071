"""kernels/common/format.cuh, compiled for the host, against the golden vectors: the law is seen kept without a GPU."""

import struct
import subprocess

import pytest

from test_golden import quantize_cases, read_lines


@pytest.fixture(scope="module")
def ask(host_program):
    """ask(questions): one line of answer for each; tests/layout/device_format.cpp has the words."""
    program = host_program("device_format", "-O1", "-ffp-contract=off")

    def ask(questions: list[str]) -> list[str]:
        done = subprocess.run([program], input="\n".join(questions), check=True, capture_output=True, text=True)
        answers = done.stdout.splitlines()
        assert len(answers) == len(questions)
        return answers

    return ask


@pytest.mark.parametrize("codec", ["e2m1", "e4m3"])
def test_codecs(ask, codec):
    decodes, encodes = {}, {}
    for what, a, b in read_lines(f"{codec}.txt"):
        if what == "decode":
            decodes[f"{codec}_decode {a}"] = int(b, 16)
        elif codec == "e2m1" or int(a, 16) < 0x80000000:  # block scales are not negative
            encodes[f"{codec} {a}"] = int(b, 16)
    assert (len(decodes), len(encodes) > 250) == ({"e2m1": 16, "e4m3": 256}[codec], True)
    for question, answer, wanted in zip(decodes, ask(list(decodes)), decodes.values()):
        is_nan = wanted & 0x7FFFFFFF > 0x7F800000
        assert int(answer, 16) & 0x7FFFFFFF > 0x7F800000 if is_nan else int(answer, 16) == wanted, question
    for question, answer, wanted in zip(encodes, ask(list(encodes)), encodes.values()):
        assert int(answer, 16) == wanted, question


def test_values_round_as_the_borders_say(ask):
    assert ask(["e2m1_borders"]) == ["0"]


def test_swizzled_layout(ask):
    offsets = [words[1:] for words in read_lines("sf_layout.txt") if words[0] == "offset"]
    answers = ask([f"sf_offset {row} {col} {cols}" for row, col, cols, _ in offsets])
    assert len(offsets) > 100
    assert [int(answer, 16) for answer in answers] == [int(wanted) for *_, wanted in offsets]


@pytest.mark.parametrize("case", quantize_cases(), ids=lambda case: case["case"][0])
def test_quantised_blocks(ask, case):
    """Packed rows, block scales and dynamic global scales, as quantize_row strings them together."""
    cols = int(case["cols"][0])
    x = [f"{word}0000" for word in case["x"]]
    num_rows = len(x) // cols
    global_scale = case["global_scale"]
    if case["policy"] == ["static"]:
        global_scale = global_scale * num_rows
    else:
        # The amax of finite values; bf16 bits of magnitudes order as integers.
        magnitudes = [int(word, 16) & 0x7FFFFFFF for word in x]
        rows = [magnitudes[i : i + cols] for i in range(0, len(x), cols)]
        amax = [max((m for m in row if m < 0x7F800000), default=0) for row in rows]
        answers = ask([f"dynamic {bits:08x}" for bits in amax])
        assert [int(answer, 16) for answer in answers] == [int(word, 16) for word in global_scale]
    blocks = [x[i : i + 16] for i in range(0, len(x), 16)]
    questions = [f"block {global_scale[16 * i // cols]} {' '.join(block)}" for i, block in enumerate(blocks)]
    answers = [answer.split() for answer in ask(questions)]
    assert [int(scale, 16) for scale, _ in answers] == [int(word, 16) for word in case["block_scale"]]
    packed = b"".join(struct.pack("<Q", int(codes, 16)) for _, codes in answers)
    assert packed == bytes(int(word, 16) for word in case["packed"])
