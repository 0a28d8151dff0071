# SPDX-License-Identifier: Apache-2.0
"""The weights that a checkpoint's maker quantised, where they were kept: DIR/unquantized, one tensor a projection."""

import re
from pathlib import Path

import torch

# Both namings: DeepSeek's w1 | w3 | w2 and Hugging Face's gate_proj | up_proj | down_proj.
EXPERT = re.compile(r"layers\.(\d+)\.(?:ffn|mlp)\.experts\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight$")
PLACE = {"w1": 0, "gate_proj": 0, "w3": 1, "up_proj": 1, "w2": 2, "down_proj": 2}


def read_originals(directory: Path, layer: int, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(w13 [count, 2I, H], w2 [count, H, I]) of experts from `first` on, or None if nothing was kept."""
    from safetensors import safe_open

    found: dict[int, list] = {expert: [None] * 3 for expert in range(first, first + count)}
    for path in sorted((directory / "unquantized").glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in list(file.keys()):
                match = EXPERT.search(name)
                if match and int(match[1]) == layer and int(match[2]) in found:
                    found[int(match[2])][PLACE[match[3]]] = file.get_tensor(name)
    if any(tensor is None for triple in found.values() for tensor in triple):
        return None
    gate_up = torch.stack([torch.cat(triple[:2]) for triple in found.values()])
    return gate_up, torch.stack([triple[2] for triple in found.values()])
