# SPDX-License-Identifier: Apache-2.0
"""The count of docs/blackwell.md: the document has the script's tables, and the script the kernels' tiles."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/bench"))

import blackwell_count as count


@pytest.mark.parametrize("chip", count.CHIPS, ids=lambda chip: chip.name)
def test_the_document_has_the_scripts_tables(chip):
    document = count.DOC.read_text()
    assert count.marks(chip)[0] in document
    assert count.put(document, chip) == document, "run: python3 tests/bench/blackwell_count.py --write"


def test_tiles_are_those_of_the_kernels():
    for family in ("sm100", "sm120"):
        if not (ROOT / f"rust/cuda/{family}").exists():
            pytest.skip(f"{family} is not here")

    def numbers(family: str, name: str) -> list[float]:
        found = re.search(rf"const {name}:[^=]*= (?:&\[)?([^;]*);", (ROOT / f"rust/cuda/{family}/tiles.rs").read_text())
        return [float(number) for number in re.findall(r"[\d.]+", found[1])]

    by_mean = [number for pair in count.SM120_SIZE_BY_MEAN_ROWS for number in pair]
    assert numbers("sm120", "SIZE_BY_MEAN_ROWS") == by_mean
    assert numbers("sm120", "LARGEST") == [count.SM120_LARGEST]
    assert numbers("sm100", "LAYER_ROWS") == list(count.SM100_LAYER_ROWS)


def test_rows_are_counted_right():
    """Of few tokens, by every outcome: 2 tokens, each of which takes an expert with odds of a quarter."""
    shape = count.Shape("", 16, 16, experts=8, local=8, top_k=2)
    one, two = 2 * 0.25 * 0.75, 0.25**2
    assert count.multiplied_rows(shape, 2, count.Tiling(1, 1)) == pytest.approx(8 * (one + 2 * two))
    assert count.multiplied_rows(shape, 2, count.Tiling(64, 8)) == pytest.approx(8 * 8 * (one + two))
    assert count.multiplied_rows(shape, 2, count.Tiling(128, 128)) == pytest.approx(8 * 128 * (one + two))
    assert count.experts_read(shape, 2) == pytest.approx(8 * (one + two))
