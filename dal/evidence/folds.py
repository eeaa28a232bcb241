"""Folds: labelled records dealt into parts that are held out in turn, by their contents alone."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dal.selection.distances import DUPLICATE_DISTANCE
from dal.selection.order import row_hash

Marks = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

FEWEST_RECORDS = 40
"""Different labelled records below which no learner is judged."""

_BLOCK = 1024


def marks_of(X: npt.NDArray[np.floating[Any]]) -> Marks:
    """Hash the contents of records, (n, d), to marks, (n,): equal records have equal ones."""
    marks = [hashlib.blake2b(record, digest_size=8).digest() for record in np.ascontiguousarray(X)]
    return np.array(marks, dtype="S8").view(">u8").astype(np.uint64)


def grouped(X: npt.NDArray[np.float32]) -> Marks:
    """Return the group of each record, (n,): equal and near-equal records share one.

    A group's name is the lowest mark of its records. Near-equal are two records at less than a tenth of the median
    distance from a record to its nearest other one, and chains of such records are one group: a model that has learned
    one of them knows the others, and would be judged too well by them.
    """
    distinct, firsts, of = np.unique(marks_of(X), return_index=True, return_inverse=True)
    if len(distinct) < 2:
        return distinct[of]
    # In double precision, around their mean: a product of matrices loses the digits of small distances.
    points = np.asarray(X[firsts], dtype=np.float64)
    points = points - np.where(np.isfinite(points), points, 0).mean(axis=0)
    nearest = np.concatenate([_between(points, start).min(axis=1) for start in range(0, len(points), _BLOCK)])
    reached = nearest[np.isfinite(nearest)]
    if not len(reached):
        return distinct[of]
    radius = DUPLICATE_DISTANCE**2 * float(np.median(reached))
    pairs = [
        np.argwhere(_between(points, start) < radius) + np.array([start, 0]) for start in range(0, len(points), _BLOCK)
    ]
    left, right = np.concatenate(pairs).T
    graph = coo_array((np.ones(len(left)), (left, right)), shape=(len(points), len(points)))
    component = connected_components(graph, directed=False)[1]
    lowest = np.full(len(points), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(lowest, component, distinct)
    names: Marks = lowest[component][of]
    return names


def _between(points: npt.NDArray[np.float64], start: int) -> npt.NDArray[np.float64]:
    """Compute squared distances of a block of points to all; infinite to themselves, and where a number is missing."""
    block = points[start : start + _BLOCK]
    with np.errstate(all="ignore"):
        squared = (block**2).sum(axis=1)[:, None] + (points**2).sum(axis=1)[None] - 2.0 * (block @ points.T)
    squared[~np.isfinite(squared)] = np.inf
    squared[np.arange(len(block)), start + np.arange(len(block))] = np.inf
    found: npt.NDArray[np.float64] = np.maximum(squared, 0)
    return found


def again(groups: Marks, repeat: int) -> Marks:
    """Return other marks of the same groups, for the folds of another repeat."""
    return row_hash(groups.view(np.int64), 0, repeat)


def dealt(marks: Marks, codes: npt.NDArray[np.integer[Any]], n_folds: int) -> Integers:
    """Return the fold that holds each record out, (n,): a function of contents, not of their order.

    The folds have the same number of groups of each class, but for one.

    Parameters
    ----------
    marks : ndarray of uint64, shape (n,)
        Records with equal ones are held out together.
    codes : ndarray of int, shape (n,)
        Of their classes. The class of a group is its lowest one.
    n_folds : int
    """
    order = np.lexsort((codes, marks))
    _, firsts, groups = np.unique(marks[order], return_index=True, return_inverse=True)
    classes = codes[order][firsts]
    fold_of = np.empty(len(firsts), dtype=np.int64)
    # Classes go on where the one before has ended, so that the first folds do not get all that is left over.
    fold_of[np.argsort(classes, kind="stable")] = np.arange(len(firsts)) % n_folds
    folds = np.empty(len(marks), dtype=np.int64)
    folds[order] = fold_of[groups]
    return folds


def lacking(groups: Marks, codes: Integers, n_folds: int) -> str:
    """Return, in words, why no learner can be judged on these labels; empty where learners can.

    Examples
    --------
    >>> marks = np.arange(50, dtype=np.uint64)
    >>> lacking(marks, np.arange(50) // 47, 5)
    'two classes need 5 different labelled records or more each, and 1 has as many; label more of the others'
    >>> lacking(marks, np.arange(50) % 2, 5)
    ''
    """
    distinct = len(np.unique(groups))
    if distinct < FEWEST_RECORDS:
        return f"{distinct} different labelled records, and {FEWEST_RECORDS} are needed; label more"
    pairs = np.unique(np.stack([groups, codes.astype(np.uint64)]), axis=1)
    enough = int((np.bincount(pairs[1].astype(np.int64)) >= n_folds).sum())
    if enough < 2:
        have = "1 has as many" if enough else "none has as many"
        return (
            f"two classes need {n_folds} different labelled records or more each, and {have}; label more of the others"
        )
    return ""
