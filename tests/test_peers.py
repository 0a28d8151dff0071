# SPDX-License-Identifier: Apache-2.0
"""The benchmark beside peers, as far as it needs no GPU; and the documents say what their record says."""

import re
import struct
import sys
from pathlib import Path

import pytest
import torch

from nvfp4_moe import Layer, LayerWeights
from reference import generate

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests/bench"))

import peers_data
import peers_fetch
import peers_record


@pytest.mark.parametrize("name", peers_record.DOCUMENTS)
def test_documents_say_what_their_record_says(name):
    text = (ROOT / name).read_text()
    part = text.split(peers_record.BEGIN)[1].split(peers_record.END)[0]
    record = peers_record.read((ROOT / name).parent / re.search(r"\[record\]\((.*?)\)", part)[1])
    assert text == peers_record.written(text, peers_record.DOCUMENTS[name](record)), "peers_record.py --publish"


def record_of(tmp_path: Path, rows: str) -> peers_record.Record:
    path = tmp_path / "peers.csv"
    head = "# NVIDIA H200, 2026-11-30, torch\n# read 4.40 TB/s, bf16 765, fp8 1377 TFLOP/s in the same run\n"
    columns = "shape,tokens,floor_us,floor_fp8_us,ours_us,ours_fp8_us,humming_w4a8_group_us,humming_w4a8_row_us\n"
    path.write_text(head + columns + rows)
    return peers_record.read(path)


def test_the_faster_form_of_a_peer_counts_and_a_missing_time_does_not(tmp_path):
    record = record_of(tmp_path, "pro8,1,5,5,20,30,40,60\npro8,8,5,5,20,30,,15\nflash8,8,5,5,20,,7,8\n")
    assert [point.us.get("Humming W4A8") for point in record.points] == [40, 15, 7]
    (ratio,) = peers_record.ratios(record)
    assert (ratio.least[0], ratio.most[0], ratio.behind, ratio.points) == (0.5, 40 / 30, 1, 2)
    assert "| 30 | **15.0** |" in peers_record.table(record)[3]
    assert "Behind at 1 of 2 points, most on Pro, EP8, 8 tokens." in peers_record.claims(record)[0]


def test_configurations_are_those_of_hummings_table():
    def coarse(m):
        return (m > 1024 and m % 16) or (m > 2048 and m % 32) or (m > 4096 and m % 64) or (m > 16384 and m % 128)

    sizes = [1, 2, 4, *(m for m in range(8, 65536, 8) if not coarse(m))]
    for rows in (*range(1, 20), 1020, 1024, 1025, 2047, 2049, 4095, 4100, 6144, 16383, 16390, 49152):
        assert peers_data.tuned_rows(rows) == next(m for m in sizes if m >= rows), rows


def test_only_hoppers_machine_code_is_kept():
    def entry(kind, architecture, payload):
        size = peers_fetch.ENTRY.size
        return peers_fetch.ENTRY.pack(kind, 0, size, len(payload), 0, 0, 0, 0, architecture) + payload

    parts = [entry(2, 80, b"ampere"), entry(2, 90, b"hopper"), entry(1, 90, b"ptx code")]
    fatbin = peers_fetch.FATBIN.pack(peers_fetch.MAGIC, 1, peers_fetch.FATBIN.size, sum(map(len, parts)))
    library = b"host code" + fatbin + b"".join(parts) + struct.pack("<I", 7)
    kept = peers_fetch.only_hopper(library)
    assert len(kept) == len(library)
    assert kept == library.replace(b"ampere", bytes(6)).replace(b"ptx code", bytes(8))


def test_exact_rows_are_the_layers(monkeypatch):
    hidden, inter, experts, local, top_k, num_tokens = 128, 128, 8, 4, 3, 16
    monkeypatch.setitem(peers_data.SHAPES, "tiny", (hidden, inter, experts, local, top_k))
    generator = torch.Generator().manual_seed(0)

    def random(*size, low, high):
        return torch.randint(low, high, size, dtype=torch.uint8, generator=generator)

    w13_global, w2_global = (0.01 * (1 + torch.rand(local, generator=generator)) for _ in range(2))
    weights = LayerWeights(
        random(local, 2 * inter, hidden // 2, low=0, high=256),
        random(local, 2 * inter, hidden // 16, low=40, high=60),
        w13_global[:, None].repeat(1, 2).contiguous(),
        random(local, hidden, inter // 2, low=0, high=256),
        random(local, hidden, inter // 16, low=40, high=60),
        w2_global,
    )
    layer = Layer(
        hidden_size=hidden,
        intermediate_size=inter,
        num_experts=experts,
        num_local_experts=local,
        top_k=top_k,
        mode="bf16",
        swiglu_limit=peers_data.LIMIT,
    ).prepare(weights)
    x = 3 * generate.tokens(num_tokens, hidden, generator)
    ids = torch.rand(num_tokens, experts, generator=generator).topk(top_k, dim=1).indices.int()
    ids[0] = experts - 1  # no local expert: its row is zero
    topk_weights = torch.rand(num_tokens, top_k, generator=generator)
    rows = peers_data.sampled_rows("tiny", ids)
    assert 0 in rows.tolist()
    wanted = peers_data.exact("tiny", weights, x[rows], ids[rows], topk_weights[rows])
    out = layer(x, ids, topk_weights)[rows]
    rel, worst = peers_data.errors(out, wanted)
    assert 0 < rel <= worst < 1e-2
    out[0, 5] = 1e-6  # not zero any more
    assert peers_data.errors(out, wanted)[0] == float("inf")
