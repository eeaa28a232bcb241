"""What the answers of several annotators come to."""

import numpy as np
import numpy.typing as npt

from dal.errors import LabelError
from dal.selection import row_hash

Integers = npt.NDArray[np.int64]


def majority(rows: npt.ArrayLike, labels: npt.ArrayLike, *, seed: int) -> tuple[Integers, Integers]:
    """Give each record the class that most of its annotators gave it.

    A tie is decided by a hash of the row, so the label of a record depends on its own answers and the seed
    alone: not on the order in which they came, nor on any other record.

    Parameters
    ----------
    rows : array of int, shape (n,)
        Row of each answer; one answer per annotator, the latest.
    labels : array of int, shape (n,)
        Class code of each answer; a negative code is a skipped one and counts for nothing.
    seed : int
        Seed of the campaign.

    Returns
    -------
    rows : ndarray of int64, shape (m,)
        The rows that anyone labelled, ascending, each once.
    labels : ndarray of int64, shape (m,)
        Their class codes.

    Raises
    ------
    LabelError
        If the two are not one-dimensional and of one length.

    Examples
    --------
    >>> rows, labels = majority([7, 7, 7, 3, 5], [1, 0, 1, 2, -1], seed=0)
    >>> rows.tolist(), labels.tolist()
    ([3, 7], [2, 1])
    """
    rows, labels = np.asarray(rows, np.int64), np.asarray(labels, np.int64)
    if rows.ndim != 1 or rows.shape != labels.shape:
        raise LabelError(f"one label a row was expected, {rows.shape} rows and {labels.shape} labels came")
    rows, labels, votes = _votes(rows[labels >= 0], labels[labels >= 0])
    starts = _starts(rows)
    most = np.repeat(np.maximum.reduceat(votes, starts), _lengths(starts, rows.size)) if rows.size else votes
    rows, labels = rows[votes == most], labels[votes == most]
    starts = _starts(rows)
    tied = _lengths(starts, rows.size).astype(np.uint64)
    chosen = starts + (row_hash(rows[starts], seed, 0) % tied).astype(np.int64)
    return rows[chosen], labels[chosen]


def _votes(rows: Integers, labels: Integers) -> tuple[Integers, Integers, Integers]:
    """Count the answers of each (row, label), ordered by row, then label."""
    order = np.lexsort((labels, rows))
    rows, labels = rows[order], labels[order]
    starts = _starts(rows, labels)
    return rows[starts], labels[starts], _lengths(starts, rows.size)


def _starts(*columns: Integers) -> Integers:
    """Find where a run of equal values begins in sorted columns."""
    new = np.zeros(columns[0].size, dtype=bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new).astype(np.int64)


def _lengths(starts: Integers, total: int) -> Integers:
    return np.diff(starts, append=total).astype(np.int64)
