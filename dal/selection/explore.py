"""The explore share: rows drawn uniformly, regardless of their scores, as an honest sample of the pool."""

from collections.abc import Iterator

import numpy as np

from dal.selection.order import Rows, row_hash, splitmix64


def explore_count(share: float, asked_before: int, explored_before: int, k: int) -> int:
    """Return the number of the next `k` records that are drawn uniformly.

    Fractions are carried forward: over any number of rounds the explored records are the share of all asked, rounded
    down.

    Examples
    --------
    >>> explore_count(0.05, 0, 0, 10), explore_count(0.05, 10, 0, 10), explore_count(0.05, 20, 1, 10)
    (0, 1, 0)
    """
    due = int(np.floor(share * (asked_before + k) + 1e-9))
    return min(max(due - explored_before, 0), k)


def uniform_rows(n_rows: int, excluded: Rows, seed: int, round: int) -> Iterator[int]:
    """Draw rows uniformly, one after the other, out of those never asked; none twice.

    Parameters
    ----------
    n_rows : int
    excluded : ndarray of int64
        Ascending rows that may not be drawn.
    seed, round : int

    Yields
    ------
    int
        Until a thousand draws in a row find nothing new: then the pool is all but exhausted, and the rest follows in
        the order of its hashes.
    """
    seen = set(excluded.tolist())
    salt, misses = splitmix64(np.array([seed % 2**64], dtype=np.uint64))[0], 0
    draw = 0
    while misses < 1000 and len(seen) < n_rows:
        # The high 64 bits of a product map a hash onto 0..n_rows-1 without the bias that a remainder has.
        row = int(row_hash(np.array([draw]), int(salt), round)[0]) * n_rows >> 64
        draw += 1
        misses = misses + 1 if row in seen else 0
        if not misses:
            seen.add(row)
            yield row
    if len(seen) < n_rows:
        rest = np.setdiff1d(np.arange(n_rows), np.fromiter(seen, np.int64, len(seen)))
        yield from rest[np.argsort(row_hash(rest, seed, round))].tolist()


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
