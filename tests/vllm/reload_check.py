# SPDX-License-Identifier: Apache-2.0
"""What must hold of a model whose weights were loaded again while it was served: of serve.py --reload."""


def check(reloaded: dict, first: list, other: list, num_moe: int, num_linears: int) -> None:
    """`first` and `other` are the tokens that engines give which start with these weights."""
    assert first != other
    assert reloaded["tokens"] == first
    assert reloaded["reloaded"] == [other, first, other]
    # The same handles read the same memory, and all of it is vLLM's own parameters: nothing is held twice.
    assert reloaded["read_after"] == reloaded["read_before"]
    sizes = [(len(read), len(parameters)) for _, read, parameters in reloaded["read_after"]]
    assert sorted(sizes) == [(3, 2)] * num_linears + [(6, 6)] * num_moe  # but a linear's scale of each part
    assert (reloaded["moved"], reloaded["num_moved"]) == (other, num_moe)
