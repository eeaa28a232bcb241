"""Find the asked records near candidates, a block at a time, where very many were asked.

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
"""A function of records, (n, d). It returns the places, (m, e), of those that have one in the space of comparison, and
marks these, (n,)."""

_ROWS, _COLUMNS = 512, 4096
_LOST = 1e-6
"""Of a squared norm, the part that a squared distance in single precision may miss."""


@one_thread
def median_apart(asked: Records, place: Place, seed: int, round: int) -> float | None:
    """Compute the median distance of an asked record to its nearest other one, of 2,000 distinct ones drawn by hash.

    They are drawn by the hash of positions, block by block, until there are 2,000 distinct ones that have a place. A
    selector that is given all asked records draws as many by other hashes. Where most are copies, records of many
    copies are drawn more often here.

    Returns
    -------
    float or None
        None where fewer than two are distinct.
    """
    order = np.argsort(row_hash(np.arange(len(asked)), seed, round))
    points = place(asked[order[:0]])[0]
    for start in range(0, len(order), SAMPLE):
        drawn = place(asked[np.sort(order[start : start + SAMPLE])])[0]
        points = np.unique(np.concatenate([points, drawn]), axis=0)
        if len(points) >= SAMPLE:
            break
    return median_to_nearest(points, np.arange(len(points)), seed, round) if len(points) > 1 else None


@one_thread
def nearby(problem: Problem, asked: Records, place: Place, codes: Positions | None = None) -> Positions:
    r"""Find the asked records that are the nearest of any candidate, or cover one most.

    Distances are in single precision, as those of the kernels, and records are centred: the differences of distances
    that matter are larger. Where they are not, because a candidate lies far from all others, products are in double
    precision.

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
    centre = problem.embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
    points = problem.embeddings.astype(np.float64) - centre
    lost = _LOST * float(np.max((points * points).sum(axis=1)))
    exact: type[np.float32 | np.float64] = np.float64 if lost > problem.duplicate_distance**2 else np.float32
    # With a column of ones, one product gives what falls with the distance: x l - l l / 2.
    lifted = np.column_stack([points, np.ones(len(points))]).astype(exact)
    room = np.empty((min(_ROWS, len(lifted)), _COLUMNS), exact)
    near, most = _Best(len(points)), _Best(len(points))
    for code, run in _runs(asked, codes):
        placed, known = place(asked[run])
        names, share = run[known], None if code is None else np.log(_shares(problem, code))
        for start in range(0, len(placed), _COLUMNS):
            of = names[start : start + _COLUMNS]
            block = np.asarray(placed[start : start + _COLUMNS], exact) - centre
            halves = exact(0.5) * (block * block).sum(axis=1)
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

    def update(
        self, part: slice, values: Floats64, products: Floats32 | Floats64, names: npt.NDArray[np.int64]
    ) -> None:
        """Take the values of some candidates, whose records are those of the largest products."""
        better = np.flatnonzero(values > self.values[part])
        at = part.start + better
        self.values[at] = values[better]
        self.positions[at] = names[products[better].argmax(axis=1)]
