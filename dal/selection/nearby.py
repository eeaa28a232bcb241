"""Nearby: of very many records asked before, those that tell anything about candidates, found a block at a time.

A candidate is covered by the asked record that covers it most, and is a near-duplicate of an asked record if it is one
of the nearest. So two asked records of each candidate are enough, however many there are.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from dal._threads import one_thread
from dal.selection.distances import SAMPLE, Floats32, Mask, median_to_nearest
from dal.selection.order import Floats64, Positions, row_hash
from dal.selection.problem import Problem
from dal.selection.records import Records, at_once, parts_of

Place = Callable[[Floats32], tuple[Floats32, Mask]]
"""Puts records into the space in which they are compared, and marks those that have a place there: (n, d) to (m, e)
and (n,), of which m are marked."""

_ROWS, _COLUMNS = 512, 4096


def median_apart(asked: Records, place: Place, seed: int, round: int) -> float:
    """Compute the median distance of an asked record to its nearest other one, of 2,000 drawn by the hash of positions.

    It is the one that a selector computes from all of them, which looks at as many.
    """
    drawn = np.sort(np.argsort(row_hash(np.arange(len(asked)), seed, round))[:SAMPLE])
    points = np.unique(place(asked[drawn])[0], axis=0)
    return median_to_nearest(points, np.arange(len(points)), seed, round)


@one_thread
def nearby(problem: Problem, asked: Records, place: Place, codes: Positions | None = None) -> Positions:
    r"""Find the asked records that are the nearest of any candidate, or cover one most.

    Distances are in single precision, as those of the kernels: the differences of distances that matter are larger.
    Where classes count, record l of the class c covers candidate x by

    .. math:: K(x, l) \bigl(\tfrac12 + \tfrac12 \sqrt{p_c(x)}\bigr)

    as in :func:`dal.selection.facility_location.facility_location`, and of each class its nearest one covers most.

    Time O(n m d) for n candidates and m asked records; memory that of the candidates and of a block.

    Parameters
    ----------
    problem : Problem
        Candidates, in the space; with class probabilities and a bandwidth where classes count.
    asked : Records
        Features of m records.
    place : callable
    codes : ndarray of shape (m,), int64, optional
        Their classes, -1 where none is known; None where classes do not count.

    Returns
    -------
    ndarray of int64
        Positions in `asked`, ascending; at most two for each candidate.
    """
    points = problem.embeddings
    # With a column of ones, one product gives what falls with the distance: x l - l l / 2.
    lifted = np.column_stack([points, np.ones(len(points), np.float32)])
    room = np.empty((min(_ROWS, len(lifted)), _COLUMNS), np.float32)
    near, most = _Best(len(points)), _Best(len(points))
    for code, run in _runs(asked, codes):
        placed, known = place(asked[run])
        names, share = run[known], None if code is None else np.log(_shares(problem, code))
        for start in range(0, len(placed), _COLUMNS):
            block, of = placed[start : start + _COLUMNS], names[start : start + _COLUMNS]
            halves = np.float32(0.5) * (block * block).sum(axis=1)
            columns = np.ascontiguousarray(np.column_stack([block, -halves]).T)
            for first in range(0, len(lifted), _ROWS):
                part = slice(first, first + _ROWS)
                rows = lifted[part]
                products = np.matmul(rows, columns, out=room[: len(rows), : len(of)])
                largest = products.max(axis=1)
                near.update(part, largest.astype(np.float64), products, of)
                if share is not None:
                    most.update(part, share[part] + 2.0 * largest / problem.bandwidth**2, products, of)
    found = np.union1d(near.positions, most.positions)
    return found[found >= 0]


def _runs(asked: Records, codes: Positions | None) -> Iterator[tuple[int | None, Positions]]:
    """Yield positions of asked records, a block at a time; with classes, each block of one class."""
    everything = np.arange(len(asked))
    if codes is None:
        for part in parts_of(asked):
            yield None, everything[part]
        return
    order = np.argsort(codes, kind="stable")
    if not len(order):
        return
    for run in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        for start in range(0, len(run), at_once(asked)):
            yield int(codes[run[0]]), run[start : start + at_once(asked)]


def _shares(problem: Problem, code: int) -> Floats64:
    """Return by how much an asked record of a class counts for each candidate."""
    if code < 0 or problem.proba is None:
        return np.ones(len(problem))
    if problem.classes is None:
        proba = problem.proba[:, code].astype(np.float64)
    else:
        proba = np.where(problem.classes == code, problem.proba, 0.0).sum(axis=1, dtype=np.float64)
    return 0.5 + 0.5 * np.sqrt(proba)


class _Best:
    """Of each candidate the record of the largest value so far; the first of equals."""

    def __init__(self, count: int) -> None:
        self.values = np.full(count, -np.inf)
        self.positions = np.full(count, -1, dtype=np.int64)

    def update(self, part: slice, values: Floats64, products: Floats32, names: npt.NDArray[np.int64]) -> None:
        """Take the values of some candidates, whose records are those of the largest products."""
        better = np.flatnonzero(values > self.values[part])
        at = part.start + better
        self.values[at] = values[better]
        self.positions[at] = names[products[better].argmax(axis=1)]
