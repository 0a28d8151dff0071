# SPDX-License-Identifier: Apache-2.0
"""A model directory's tokenizer, by the `tokenizers` package alone: a data file, from which no code is run."""

from collections.abc import Callable
from typing import Any

from .directory import Directory
from .finding import Report, WrongUse
from .model import printable


class Tokenizer:
    """Ids of texts and texts of ids."""

    def __init__(self, directory: Directory):
        try:
            import tokenizers
        except ImportError:
            raise WrongUse(
                "tokenizers is not installed; this command encodes text. Run pip install tokenizers."
            ) from None
        text = directory.text("tokenizer.json")
        if text is None:
            raise WrongUse(
                f"{printable(str(directory.path))} has no tokenizer.json; other kinds of tokenizer are not read. "
                "Convert it with transformers' AutoTokenizer(...).save_pretrained."
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except BaseException as error:  # a panic of the reader's is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            raise ValueError(
                f"tokenizer.json is refused ({printable(str(error))}); it must be a tokenizer. Download it again."
            ) from None
        self.config: dict[str, Any] = directory.json("tokenizer_config.json") or {}
        self.added = {token.content: number for number, token in self._tokenizer.get_added_tokens_decoder().items()}
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids; special tokens that the text spells out become theirs, as engines do it."""
        ids = list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        bos = self.id_of(self.named("bos_token"))
        if add_special_tokens and bos is not None and self.config.get("add_bos_token") is True and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text, special tokens spelled out."""
        return self._tokenizer.decode([number for number in ids if 0 <= number < 1 << 32], skip_special_tokens=False)

    def piece(self, number: int) -> str:
        """One id, readable: `'<think>'`."""
        text = self._tokenizer.id_to_token(number) if 0 <= number < 1 << 32 else None
        if text is None:
            return "no such id"
        return repr(text if number in self.added.values() else self.decode([number]))

    def id_of(self, text: str | None) -> int | None:
        """Of a whole token."""
        return self._tokenizer.token_to_id(text) if text else None

    def named(self, name: str) -> str | None:
        """`bos_token` and its like, as tokenizer_config.json has them."""
        value = self.config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else None

    def adds_bos(self) -> bool:
        """Does encoding put a BOS first unasked?"""
        bos = self.id_of(self.named("bos_token"))
        return bos is not None and self.encode("a", add_special_tokens=True)[:1] == [bos]


def report_of(command: str, path: str, examine: Callable[[Report, Directory, Tokenizer], None]) -> Report:
    """Of a model directory and its tokenizer; a file of it that cannot be read is a finding."""
    report = Report(command, path)
    directory = Directory(path)
    try:
        examine(report, directory, Tokenizer(directory))
    except ValueError as error:
        report.sentence("unreadable-file", str(error))
    return report
