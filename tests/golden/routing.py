# SPDX-License-Identifier: Apache-2.0
"""Golden vectors of routing: one list of slots for each local expert, written out."""

import random

TILE_ROWS = 128


def route(ids, experts: int, local: int, first: int, expert_map):
    """-> (slot_to_row, row_to_slot, padded_row_offsets, out_of_range). One list of slots for each local expert."""
    slots_of: list[list[int]] = [[] for _ in range(local)]
    out_of_range = 0
    for slot, i in enumerate(ids):
        if not 0 <= i < experts:
            out_of_range += i != -1
            continue
        to = expert_map[i] if expert_map is not None else i - first
        if 0 <= to < local:
            slots_of[to].append(slot)
        elif expert_map is not None:
            out_of_range += to != -1
    slot_to_row, row_to_slot, offsets = [-1] * len(ids), [], [0]
    for slots in slots_of:
        for slot in slots:
            slot_to_row[slot] = len(row_to_slot)
            row_to_slot.append(slot)
        row_to_slot += [-1] * (-len(row_to_slot) % TILE_ROWS)
        offsets.append(len(row_to_slot))
    return slot_to_row, row_to_slot, offsets, out_of_range


def run_lengths(values: list[int]) -> str:
    """`VALUExCOUNT` words: the padding of row_to_slot is long and dull."""
    runs: list[list[int]] = []
    for v in values:
        if runs and runs[-1][0] == v:
            runs[-1][1] += 1
        else:
            runs.append([v, 1])
    return " ".join(str(v) if n == 1 else f"{v}x{n}" for v, n in runs)


def routing_case(name, tokens, top_k, experts, ids, *, local=None, first=0, expert_map=None, dtype="i64") -> list[str]:
    local = experts if local is None else local
    assert len(ids) == tokens * top_k, name
    slot_to_row, row_to_slot, offsets, out_of_range = route(ids, experts, local, first, expert_map)
    lines = [f"case {name}", f"shape {tokens} {top_k} {experts} {local} {first}", f"dtype {dtype}"]
    if expert_map is not None:
        lines.append(f"expert_map {' '.join(map(str, expert_map))}")
    lines += [f"ids {run_lengths(ids)}", f"slot_to_row {run_lengths(slot_to_row)}"]
    lines += [f"row_to_slot {run_lengths(row_to_slot)}", f"padded_row_offsets {' '.join(map(str, offsets))}"]
    return [*lines, f"out_of_range {out_of_range}", "end"]


def routing_lines() -> list[str]:
    rng = random.Random("routing")

    def any_ids(tokens, top_k, experts):
        return [rng.randrange(experts) for _ in range(tokens * top_k)]

    hostile32 = [-(2**31), -1, 8, 2**31 - 1, 123456789, 98765, 2071690107, -2, 0, 3, 7, 4]
    # Low halves that are valid ids: a reader that drops the high half would route them.
    hostile64 = [2**32, 2**32 + 1, -(2**63), 2**63 - 1, -(2**32) + 3, -1, 2**31, 5, 0, 8, 7, -8]
    shard_map = [-1, 0, -1, 1, 2, -1, -1, 3]
    broken_map = [4, 0, -2, 1, 2**31 - 1, -(2**31), -1, 3]
    lines = ["# routing: shape TOKENS TOP_K EXPERTS LOCAL FIRST; ids are [tokens, top_k]; VxN is V, N times."]
    lines += ["# Rows of an expert come in ascending slot order; each expert's rows are padded to 128 with -1."]
    lines += routing_case("no_tokens", 0, 2, 4, [])
    lines += routing_case("one_token", 1, 2, 4, [3, 1], dtype="i32")
    lines += routing_case("uniform", 24, 4, 8, any_ids(24, 4, 8))
    lines += routing_case("duplicate_ids_in_a_token", 3, 3, 4, [1, 1, 1, 2, 1, 2, 0, 0, 3])
    lines += routing_case("all_to_one", 150, 1, 3, [1] * 150, dtype="i32")
    lines += routing_case("exactly_one_tile", 64, 2, 2, [0, 1] * 64)
    lines += routing_case("one_row_past_a_tile", 129, 1, 2, [0] * 129)
    lines += routing_case("all_padding", 5, 2, 4, [-1] * 10)
    lines += routing_case("hostile_i32", 3, 4, 8, hostile32, dtype="i32")
    lines += routing_case("hostile_i64", 3, 4, 8, hostile64)
    lines += routing_case("contiguous_shard", 16, 3, 16, any_ids(16, 3, 16), local=4, first=8)
    lines += routing_case("last_shard", 16, 3, 16, any_ids(16, 3, 16), local=4, first=12, dtype="i32")
    lines += routing_case("hostile_on_a_shard", 3, 4, 8, hostile32, local=4, first=4, dtype="i32")
    lines += routing_case("expert_map", 10, 4, 8, any_ids(10, 4, 8), local=4, expert_map=shard_map)
    lines += routing_case("hostile_with_expert_map", 3, 4, 8, hostile64, local=4, expert_map=shard_map)
    lines += routing_case("broken_expert_map", 8, 2, 8, list(range(8)) * 2, local=4, expert_map=broken_map)
    lines += routing_case("nothing_local", 4, 2, 8, [0, 1] * 4, local=2, first=6)
    lines += routing_case("many_experts", 40, 8, 256, any_ids(40, 8, 256), local=32, first=64)
    return lines
