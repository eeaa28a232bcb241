"""The explore share: rows drawn uniformly, regardless of their scores, as an honest sample of the pool."""

import math
from collections.abc import Iterator

import numpy as np

from dal.selection.order import Rows, row_hash, splitmix64

FIRST_RECORDS, FIRST_SHARE = 20, 0.5
"""Of a first batch, at least as many records are drawn uniformly, and at least this share (decision 0032)."""
BEATEN_SHARE = 0.5
"""Share of a batch that is drawn uniformly, at least, where one class for all beats the model."""


def first_share(share: float, k: int) -> float:
    """Return the explore share of a first batch: random records show whether chosen ones mislead the learner.

    Examples
    --------
    >>> first_share(0.05, 15), first_share(0.05, 25), first_share(0.05, 100), first_share(0.0, 100)
    (1.0, 0.8, 0.5, 0.0)
    """
    return max(share, FIRST_SHARE, min(1.0, FIRST_RECORDS / max(k, 1))) if share else 0.0


def share_in_doubt(share: float, weight: float, beaten: bool) -> float:
    """Return the explore share of a round: the less chosen labels weigh in its fit, the fewer records are chosen.

    Parameters
    ----------
    share : float
        Without doubt.
    weight : float
        Of chosen labels, from 0 to 1.
    beaten : bool
        Whether one class named for all random labels was right more often than the model.

    Examples
    --------
    >>> share_in_doubt(0.5, 1.0, False), share_in_doubt(0.25, 1.0, True), share_in_doubt(0.5, 0.25, True)
    (0.5, 0.5, 0.75)
    """
    return max(share + (1 - share) * (1 - math.sqrt(weight)), BEATEN_SHARE if beaten else 0.0)


def explore_count(share: float, due_before: float, explored_before: int, k: int) -> int:
    """Return the number of the next `k` records that are drawn uniformly.

    Fractions are carried forward: over any number of rounds the explored records are the sum of each round's share of
    its batch, rounded down.

    Parameters
    ----------
    share : float
        Of these records.
    due_before : float
        Records that the shares of the rounds before come to.
    explored_before : int
    k : int

    Examples
    --------
    >>> explore_count(0.05, 0.0, 0, 10), explore_count(0.05, 0.5, 0, 10), explore_count(0.05, 1.0, 1, 10)
    (0, 1, 0)
    """
    due = int(np.floor(due_before + share * k + 1e-9))
    return min(max(due - explored_before, 0), k)


def uniform_rows(n_rows: int, excluded: Rows, seed: int, round: int) -> Iterator[int]:
    """Draw rows uniformly, one after the other, out of those never asked; none twice.

    Parameters
    ----------
    n_rows : int
    excluded : ndarray of int64
        Rows that may not be drawn.
    seed, round : int

    Yields
    ------
    int
        Until a thousand draws in a row find nothing new: then the pool is all but exhausted, and the rest follows in
        the order of its hashes.
    """
    # Not a set: that of a million numbers takes eight times the memory.
    excluded = np.sort(excluded)
    excluded = excluded[np.diff(excluded, prepend=-1) > 0]
    seen = set[int]()
    salt, misses = splitmix64(np.array([seed % 2**64], dtype=np.uint64))[0], 0
    draw, left = 0, n_rows - len(excluded)
    while misses < 1000 and len(seen) < left:
        # The high 64 bits of a product map a hash onto 0..n_rows-1 without the bias that a remainder has.
        row = int(row_hash(np.array([draw]), int(salt), round)[0]) * n_rows >> 64
        draw += 1
        misses = misses + 1 if row in seen or _holds(excluded, row) else 0
        if not misses:
            seen.add(row)
            yield row
    if len(seen) < left:
        rest = np.setdiff1d(np.arange(n_rows), np.append(excluded, np.fromiter(seen, np.int64, len(seen))))
        yield from rest[np.argsort(row_hash(rest, seed, round))].tolist()


def _holds(ascending: Rows, row: int) -> bool:
    place = int(np.searchsorted(ascending, row))
    return place < len(ascending) and int(ascending[place]) == row


def interleaved(chosen: list[int], drawn: list[int]) -> list[int]:
    """Mix the drawn rows evenly among the chosen, so that a batch left half answered is still a fair sample of both.

    Examples
    --------
    >>> interleaved([1, 2, 3, 4], [8, 9])
    [1, 8, 2, 3, 9, 4]
    """
    places = [((index + 1) * (len(chosen) + 1) / (len(drawn) + 1), 0, row) for index, row in enumerate(drawn)]
    places += [(index + 1.0, 1, row) for index, row in enumerate(chosen)]
    return [row for _, _, row in sorted(places, key=lambda place: place[:2])]
