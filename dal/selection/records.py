"""Read records in parts, when they are needed: a million may have been asked before."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]

MOST_ASKED = 20_000
"""Records asked before that are all looked at, in memory. Of more, those near candidates are."""
_BLOCK_NUMBERS = 2**21


class Unread(Protocol):
    """Records of which a part is read when it is indexed."""

    @property
    def shape(self) -> tuple[int, int]:
        """Their number, and their width."""

    def __len__(self) -> int:
        """Return their number."""

    def __getitem__(self, positions: Any, /) -> Floats32:  # noqa: ANN401 - a slice or an array
        """Read a part of them: a slice, a mask, or an array of positions from 0."""


Records: TypeAlias = Unread | Floats32


def at_once(X: Records) -> int:
    """Return how many records to read at a time: 8 MiB, or one where it is larger."""
    width: int = X.shape[1]
    return max(1, _BLOCK_NUMBERS // max(1, width))


def parts_of(X: Records) -> Iterator[slice]:
    """Yield the slices of records that are read at a time."""
    for start in range(0, len(X), at_once(X)):
        yield slice(start, start + at_once(X))


def joined(X: Records, more: Floats32) -> Records:
    """Return records with others behind them; unread ones stay unread."""
    return np.concatenate([X, more]) if isinstance(X, np.ndarray) else _Joined(X, more)


def _listed(positions: Any, count: int) -> Positions:  # noqa: ANN401
    """List the positions of a slice, of a mask, or of an array of positions, which is returned as it is."""
    if isinstance(positions, slice):
        return np.arange(*positions.indices(count))
    listed: Positions = np.flatnonzero(positions) if positions.dtype == bool else positions
    return listed


class Mapped:
    """Apply a function to unread records, when they are read.

    Parameters
    ----------
    X : Unread
    function : callable
        Of records, (n, d), to records, (n, width).
    width : int
    """

    def __init__(self, X: Unread, function: Callable[[Floats32], Floats32], width: int) -> None:
        self._X, self._function = X, function
        self.shape = len(X), width

    def __len__(self) -> int:
        return len(self._X)

    def __getitem__(self, positions: Any, /) -> Floats32:  # noqa: ANN401
        """Read a part of them, in blocks: they may be far wider than what the function returns."""
        wanted, X = _listed(positions, len(self)), self._X
        found = np.empty((len(wanted), self.shape[1]), np.float32)
        for start in range(0, len(wanted), at_once(X)):
            part = slice(start, start + at_once(X))
            found[part] = self._function(X[wanted[part]])
        return found


class _Joined:
    """Unread records, and others behind them."""

    def __init__(self, first: Unread, then: Floats32) -> None:
        self._first, self._then = first, then
        self.shape = len(self), first.shape[1]

    def __len__(self) -> int:
        return len(self._first) + len(self._then)

    def __getitem__(self, positions: Any, /) -> Floats32:  # noqa: ANN401
        """Read a part of them."""
        wanted = _listed(positions, len(self))
        X = np.empty((len(wanted), self.shape[1]), np.float32)
        before = wanted < len(self._first)
        X[before] = self._first[wanted[before]]
        X[~before] = self._then[wanted[~before] - len(self._first)]
        return X
