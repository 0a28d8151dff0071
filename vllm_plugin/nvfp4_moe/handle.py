# SPDX-License-Identifier: Apache-2.0
"""What every object that owns a handle of the library does alike."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import Self

from .errors import UnsupportedError


class Handle:
    """Owns a handle, by its id; it goes with this object, at `close`, or at the end of a `with`."""

    id: int

    def _own(self, id: int, destroy: Callable[[int], None]) -> None:
        self.id = id
        self._destroy = weakref.finalize(self, destroy, id)

    def close(self) -> None:
        """Free the handle now; any later use of this object is an error."""
        self._destroy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copying and pickling would make two owners of one handle."""
        kind = type(self).__name__
        raise TypeError(f"a {kind} cannot be copied or pickled: it owns memory of this process. Make another {kind}.")


def refuse_gradients(*tensors: torch.Tensor | None) -> None:
    """No gradient is ever dropped in silence: the library computes none."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise UnsupportedError(
            "requires_grad is True; the library computes no gradients. Call it under torch.no_grad(), or detach()."
        )
