# SPDX-License-Identifier: Apache-2.0
"""A model directory, read as hostile: plain files of the directory itself, bounded; no pickle, no code, no surprise.

A file may be a symbolic link, since hubs keep files elsewhere and link to them. Its NAME is ours, or a plain one that
the directory lists.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .finding import WrongUse
from .model import printable

MAX_JSON_BYTES = 1 << 27  # tokenizer.json of the largest vocabularies is some 30 MB
MAX_HEADER_BYTES = 100_000_000  # as the format's own readers
MAX_SMALL_BYTES = 1 << 22  # a norm, a scale
PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class Directory:
    """Of a model."""

    def __init__(self, path: str):
        self.path = Path(path)
        if not self.path.is_dir():
            raise WrongUse(
                f"{printable(path)} is no directory; this command reads a model's. Download one that is on a hub."
            )

    def text(self, name: str, most: int = MAX_JSON_BYTES) -> str | None:
        """A file's text; None if there is none. ValueError with a sentence if it is too long, or no text."""
        path = self.path / plain(name)
        if not path.is_file():
            return None
        size = path.stat().st_size
        if size > most:
            raise ValueError(f"{name} has {size} bytes; it is read up to {most}. This is not a file of that kind.")
        with path.open("rb") as file:
            data = file.read(most)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is not UTF-8 at byte {error.start}; it must be. Download it again.") from None

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON object; None if there is no such file."""
        text = self.text(name)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            said = printable(str(error)) or "nested too deeply"
            raise ValueError(f"{name} is malformed ({said}); it must be a JSON object. Download it again.") from None
        if not isinstance(value, dict):
            raise ValueError(f"{name} is a {type(value).__name__}; it must be a JSON object. Download it again.")
        return value

    def names(self, suffix: str) -> list[str]:
        """Plain files that end so, sorted."""
        return sorted(path.name for path in self.path.iterdir() if path.name.endswith(suffix) and path.is_file())

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, and the object of its language model laid over it."""
        config = self.json("config.json") or {}
        inner = config.get("text_config")
        return config | {k: v for k, v in inner.items() if v is not None} if isinstance(inner, dict) else config

    @cached_property
    def index(self) -> dict[str, str] | None:
        """Which tensor lies in which file; None without an index."""
        index = self.json("model.safetensors.index.json")
        places = index.get("weight_map") if index else None
        return {str(k): str(v) for k, v in places.items()} if isinstance(places, dict) else None

    @cached_property
    def weights(self) -> list[str]:
        """Safetensors files that engines read: the index's, or model.safetensors, or all."""
        present = self.names(".safetensors")
        if self.index is not None:
            return [name for name in present if name in set(self.index.values())]
        return ["model.safetensors"] if "model.safetensors" in present else present

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the weights by name; damaged files are left out (the library's reader names them)."""
        found: dict[str, Tensor] = {}
        for file in self.weights:
            try:
                found |= read_header(self.path / file)
            except (OSError, ValueError, RecursionError):
                continue
        return found

    def small(self, name: str) -> list[float] | None:
        """The values of a small float tensor; None if it is missing, large or of another dtype."""
        tensor = self.tensors.get(name)
        if tensor is None or tensor.num_bytes > MAX_SMALL_BYTES or tensor.dtype not in ("F32", "BF16", "F16"):
            return None
        return floats(self.bytes(tensor), tensor.dtype)

    def pieces(self, tensor: Tensor) -> Iterator[bytes]:
        """A tensor's bytes as they are, some at a time."""
        with (self.path / tensor.file).open("rb") as file:
            file.seek(tensor.start)
            for at in range(0, tensor.num_bytes, PIECE_BYTES):
                yield file.read(min(PIECE_BYTES, tensor.num_bytes - at))

    def bytes(self, tensor: Tensor) -> bytes:
        """The same as one."""
        with (self.path / tensor.file).open("rb") as file:
            file.seek(tensor.start)
            return file.read(tensor.num_bytes)


def plain(name: str) -> str:
    """Refuse what would lead out; one folder below is the most that we ask for."""
    if name.startswith(("/", ".")) or ".." in name.split("/") or "\0" in name:
        raise ValueError(f"{printable(name)} is no plain name of a file; nothing outside the directory is read.")
    return name


def floats(data: bytes, dtype: str) -> list[float]:
    """Values of F32, BF16 (the upper half of an f32) or F16."""
    if dtype == "BF16":
        data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data) - 1, 2))
    kind, size = ("e", 2) if dtype == "F16" else ("f", 4)
    return list(struct.unpack(f"<{len(data) // size}{kind}", data[: len(data) // size * size]))


def read_header(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file: `u64 length | JSON | data`. ValueError if it is none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise ValueError("no safetensors file")
        entries = json.loads(file.read(length))
    if not isinstance(entries, dict):
        raise ValueError("no safetensors file")
    found = {}
    for name, entry in entries.items():
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        try:
            first, end = map(int, entry["data_offsets"])
            shape = tuple(map(int, entry["shape"]))
            dtype = str(entry["dtype"])
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if 0 <= first <= end <= size - 8 - length:
            found[name] = Tensor(path.name, dtype, shape, 8 + length + first, end - first)
    return found
