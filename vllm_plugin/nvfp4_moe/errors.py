# SPDX-License-Identifier: Apache-2.0
"""What the library fails with: an `Error` with its status, which also is what Python calls that kind of failure."""

import re


class Error(RuntimeError):
    """A failure of the library: `<name> is <value>; <rule>. <what to do>`. Source: the statuses of nvfp4_moe.h."""

    status: int = 0
    """NVFP4_MOE_*: the number that the C ABI gives."""


class InvalidArgumentError(Error, ValueError):
    """A value breaks a rule."""

    status = 1


class UnsupportedError(Error, NotImplementedError):
    """Valid, but not on this device or in this build."""

    status = 2


class WorkspaceTooSmallError(Error, ValueError):
    """Workspace or storage is smaller than its size query says."""

    status = 3


class NotPreparedError(Error):
    """Forward before prepare, or static scales that were never given."""

    status = 4


class CheckpointError(Error, ValueError):
    """The files were read, and are wrong."""

    status = 5


class FileError(Error, OSError):
    """The files could not be read."""

    status = 6


class MissingFileError(FileError, FileNotFoundError):
    """There are no such files."""


class CudaError(Error):
    """The driver refused; the text names call, kernel and device."""

    status = 7


class InternalError(Error):
    """A bug in the library, or no threads to be had."""

    status = 8


class OutOfMemoryError(Error, MemoryError):
    """Memory that the system refused."""

    status = 9


_KINDS = {kind.status: kind for kind in Error.__subclasses__()}

# Names of the C ABI, and what they are called here.
_NAMES = (
    (re.compile(r"\bnvfp4_moe_(layer|linear|checkpoint)_(\w+)"), lambda m: f"{m[1].capitalize()}.{m[2]}"),
    (re.compile(r"\bone of NVFP4_MOE_(\w+)_\*"), lambda m: "one that the documentation names"),
    (re.compile(r"\bnvfp4_moe_(device_status_\w+|quantize|dequantize)"), lambda m: m[1]),
)


def in_pythons_words(sentence: str) -> str:
    """The sentence with this package's names in place of the C ABI's."""
    for pattern, name in _NAMES:
        sentence = pattern.sub(name, sentence)
    return sentence


def of(error: RuntimeError, failure: tuple[int, str]) -> RuntimeError:
    """The `Error` that an op's exception stands for; the exception itself if `failure`, the last of this thread, is
    another one, so that torch raised it."""
    status, sentence = failure
    if not sentence or sentence not in str(error):
        return error
    kind = _KINDS.get(status, Error)
    if kind is FileError and "No such file" in sentence:
        kind = MissingFileError
    return kind(in_pythons_words(sentence))
