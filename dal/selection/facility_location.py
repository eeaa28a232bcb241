"""Facility location: the batch that covers the candidates best, each by its weight."""

import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
from scipy import sparse

from dal.selection.distances import DUPLICATE_DISTANCE, Floats32, squared_distances
from dal.selection.order import Floats64, Positions, row_hash
from dal.selection.problem import Problem

LEAF_ROWS = 2048
"""Candidates of one dense kernel: 17 MB. Of the objective of one flat greedy on 6,000 candidates 0.992 to 0.996; leaves
of 750 had 0.985 to 0.991 at two thirds of the time."""
FIRST_SHARE = 2.0
"""Picks that a leaf gives in the first round, in mean shares of a leaf; most leaves are asked no second time."""
LEAVES_WORTH_SENDING = 4
"""Fewer leaves are solved where they are, in less time than a cluster takes to answer."""


def facility_location(
    problem: Problem, k: int, *, leaf_rows: int = LEAF_ROWS, leaves_worth_sending: int = LEAVES_WORTH_SENDING
) -> Positions:
    r"""Choose greedily what covers the candidates best.

    Maximises, by the largest gain each time,

    .. math:: F(S) = \sum_x w(x) \max\bigl(c_L(x), \max_{s \in S} K(x, s)\bigr),
              \quad K(x, s) = e^{-\lVert x - s \rVert^2 / \sigma^2}

    with :math:`c_L` the coverage by the labeled records (weighted facility location: FASS, Wei et al. 2015, and
    uncertainty herding, Bae et al. 2025; with unit weights MaxHerding, Bae et al. 2024). F is monotone and submodular:
    greedy reaches 1 - 1/e of the best (Nemhauser et al. 1978).

    Candidates are split into leaves of at most 2,048 by recursive bisection and solved leaf by leaf, which keeps the
    cost linear in k; the picks are merged by their gains, the exact greedy of the decomposed objective. Leaves are
    solved by ``problem.mapper``, on a cluster if it is one, in two rounds: the first gives each leaf's best picks and
    with them a bound that the batch's gains reach; the second asks again those few leaves whose gains are still above
    it. Only (gain, position) come back.

    Parameters
    ----------
    problem : Problem
    k : int
    leaf_rows : int
        Most candidates of a leaf.
    leaves_worth_sending : int
        Fewer leaves are solved in this process.

    Returns
    -------
    ndarray of int64
        Positions in the order of choice; fewer than `k` where no more are distinct.
    """
    return _Leaves(problem, leaf_rows, leaves_worth_sending).solve(k)


class Leaf(NamedTuple):
    """A part of the problem that is solved on its own.

    Attributes
    ----------
    points : ndarray of shape (n, d), float32
        In key order.
    weights : ndarray of shape (n,), float32
    labeled : ndarray of shape (n_labeled, d), float32
        Those near enough to cover any of the points.
    bandwidth : float
    most : int
        Picks wanted.
    floor : float
        Smaller gains are of no use.
    codes : ndarray of shape (n_labeled,), int64
        Classes of the labeled records; -1 where none is known.
    proba : ndarray of shape (n, m), float32, or None
        Class probabilities of the points, where classes count.
    classes : ndarray of shape (n, m), int64, or None
        Their codes; None where they are those of all classes.
    near : float
        Records nearer than this, in bandwidths, are near-duplicates.
    """

    points: Floats32
    weights: Floats32
    labeled: Floats32
    bandwidth: float
    most: int
    floor: float
    codes: Positions = np.empty(0, dtype=np.int64)
    proba: Floats32 | None = None
    classes: Positions | None = None
    near: float = DUPLICATE_DISTANCE

    @property
    def near_kernel(self) -> float:
        """The kernel at the distance below which a record counts as a near-duplicate."""
        return float(np.exp(-(self.near**2)))


class Picks(NamedTuple):
    """Gains, never rising, and positions in the leaf; and whether there are more."""

    gains: Floats64
    positions: Positions
    truncated: bool


def solve_leaf(leaf: Leaf) -> Picks:
    """Find the picks of one leaf, the largest gain first; a worker runs it where there is a cluster."""
    gains: list[float] = []
    positions: list[int] = []
    kernel = _kernel(leaf.points, leaf.points, leaf.bandwidth)
    np.fill_diagonal(kernel, 1.0)
    near = kernel > leaf.near_kernel
    roots = _roots(leaf)
    if roots is not None:
        kernel *= _dense(roots @ roots.T)
        np.fill_diagonal(kernel, 1.0)
    covered, barred = _coverage(leaf, roots)
    for gain, position in lazy_greedy(kernel, covered, leaf.weights, near, barred):
        if len(gains) == leaf.most or gain < leaf.floor:
            return Picks(np.array(gains, dtype=np.float64), np.array(positions, dtype=np.int64), gain >= leaf.floor)
        gains.append(gain)
        positions.append(position)
    return Picks(np.array(gains, dtype=np.float64), np.array(positions, dtype=np.int64), truncated=False)


def lazy_greedy(
    kernel: Floats32,
    covered: Floats32,
    weights: Floats32,
    near: npt.NDArray[np.bool_] | None = None,
    barred: npt.NDArray[np.bool_] | None = None,
) -> Iterator[tuple[float, int]]:
    """Yield gains and positions of facility location, one after the other (lazy greedy: Minoux, 1978).

    A stale gain only overestimates, so the top of the heap is right as soon as it is fresh. The first position wins
    among equals.

    Parameters
    ----------
    kernel : ndarray of shape (n, n), float32
        What each record covers of each other one.
    covered : ndarray of shape (n,), float32
        What is covered already; updated in place.
    weights : ndarray of shape (n,), float32
    near : ndarray of shape (n, n), bool, optional
        Which other records are not picked once a record is.
    barred : ndarray of shape (n,), bool, optional
        Records that are not picked at all; updated in place.
    """
    if barred is None:
        barred = np.zeros(len(kernel), dtype=bool)
    heap = [(-gain, position, 0) for position, gain in enumerate(_gains(kernel, covered, weights).tolist()) if gain > 0]
    heapq.heapify(heap)
    fresh, last = 0, np.inf
    while heap:
        negative, position, stamp = heap[0]
        if barred[position]:
            heapq.heappop(heap)
        elif stamp == fresh:
            heapq.heappop(heap)
            # Rounding may lift a gain by its last bit over the one before it; the merge relies on falling gains.
            last = min(last, -negative)
            yield last, position
            np.maximum(covered, kernel[position], out=covered)
            if near is not None:
                barred |= near[position]
            fresh += 1
        else:
            gain = float(np.maximum(kernel[position] - covered, 0) @ weights)
            if gain > 0:
                heapq.heapreplace(heap, (-gain, position, fresh))
            else:
                heapq.heappop(heap)


def _roots(leaf: Leaf) -> Floats32 | sparse.csc_array | None:
    """Return the square roots of class probabilities, a column for each class; None where classes do not count."""
    if leaf.proba is None or leaf.classes is None:
        return None if leaf.proba is None else np.sqrt(leaf.proba)
    rows = np.repeat(np.arange(len(leaf.proba)), leaf.proba.shape[1])
    shape = len(leaf.proba), int(np.max(np.append(leaf.classes, leaf.codes))) + 1
    return sparse.csc_array((np.sqrt(leaf.proba).ravel(), (rows, leaf.classes.ravel())), shape)


def _dense(matrix: Floats32 | sparse.csc_array) -> Floats32:
    return matrix if isinstance(matrix, np.ndarray) else cast("Floats32", matrix.toarray())


def _coverage(leaf: Leaf, roots: Floats32 | sparse.csc_array | None) -> tuple[Floats32, npt.NDArray[np.bool_]]:
    """Compute what labeled records cover of each point, and mark their near-duplicates."""
    covered = np.zeros(len(leaf.points), dtype=np.float32)
    barred = np.zeros(len(leaf.points), dtype=bool)
    for start in range(0, len(leaf.labeled), LEAF_ROWS):
        kernel = _kernel(leaf.points, leaf.labeled[start : start + LEAF_ROWS], leaf.bandwidth)
        barred |= kernel.max(axis=1) > leaf.near_kernel
        codes = leaf.codes[start : start + LEAF_ROWS]
        told = np.flatnonzero(codes >= 0)
        if roots is not None and len(told):
            kernel[:, told] *= 0.5 + 0.5 * _dense(roots[:, codes[told]])
        np.maximum(covered, kernel.max(axis=1), out=covered)
    return covered, barred


def _kernel(a: Floats32, b: Floats32, bandwidth: float) -> Floats32:
    squared = squared_distances(a, b)
    squared *= np.float32(-1.0 / bandwidth**2)
    return np.exp(squared, out=squared)


def _gains(kernel: Floats32, covered: Floats32, weights: Floats32) -> Floats32:
    gains = np.empty(len(kernel), dtype=np.float32)
    for start in range(0, len(kernel), 256):
        gains[start : start + 256] = np.maximum(kernel[start : start + 256] - covered, 0) @ weights
    return gains


class _Leaves:
    """The problem cut into leaves, and their picks merged."""

    def __init__(self, problem: Problem, leaf_rows: int, leaves_worth_sending: int) -> None:
        self.problem = problem
        self.leaf_rows = leaf_rows
        self.embeddings = problem.embeddings
        self.bandwidth = problem.reach
        self.leaves = list(self._leaves())
        self.mapper = problem.mapper if len(self.leaves) >= leaves_worth_sending else map

    def solve(self, k: int) -> Positions:
        """Return `k` positions in the order of choice, fewer where no more are distinct."""
        wanted = k
        while True:
            picks = self._best(wanted)
            # Between leaves there may be near-duplicates.
            chosen = picks[self.problem.leaders(picks)]
            if len(chosen) >= k or len(picks) < wanted:
                break
            wanted *= 2
        if len(chosen) < k:
            chosen = self._filled(chosen)
        return chosen[:k]

    def _best(self, count: int) -> Positions:
        """Return the `count` picks of the largest gains, the first by key among equals."""
        first = int(np.ceil(FIRST_SHARE * count / max(len(self.leaves), 1)))
        everything = range(len(self.leaves))
        found = dict(zip(everything, self._solved(everything, first, 0.0), strict=True))
        gains = np.concatenate([picks.gains for picks in found.values()]) if found else np.empty(0)
        floor = float(np.partition(gains, -count)[-count]) if len(gains) >= count else 0.0
        again = [leaf for leaf, picks in found.items() if picks.truncated and picks.gains[-1] >= floor]
        found |= zip(again, self._solved(again, count, floor), strict=True)
        gains = np.concatenate([picks.gains for picks in found.values()]) if found else np.empty(0)
        members = [self.leaves[leaf][0][picks.positions] for leaf, picks in found.items()]
        positions = np.concatenate(members) if members else np.empty(0, dtype=np.int64)
        return positions[np.lexsort((positions, -gains))[:count]]

    def _solved(self, which: Iterable[int], most: int, floor: float) -> Iterable[Picks]:
        return self.mapper(solve_leaf, (self._leaf(*self.leaves[leaf], most, floor) for leaf in which))

    def _leaf(self, members: Positions, known: Positions, most: int, floor: float) -> Leaf:
        problem = self.problem
        proba, classes = problem.proba, problem.classes
        return Leaf(
            self.embeddings[members],
            problem.weights[members],
            problem.labeled[known],
            self.bandwidth,
            most,
            floor,
            problem.codes[known],
            None if proba is None else proba[members],
            None if classes is None else classes[members],
            problem.duplicate_distance / self.bandwidth,
        )

    def _leaves(self) -> Iterator[tuple[Positions, Positions]]:
        """Split the distinct candidates in two until at most `leaf_rows` are left, and route the labeled ones along.

        Parts are as large as whole numbers of equal leaves: halves would leave the leaves up to half empty.

        The direction is the one from a hashed member to the member farthest from it; ties of the projection fall by
        row. A labeled record within two bandwidths of the cut goes both ways: beyond, its kernel is under 2 %.
        """
        labeled = self.problem.labeled
        stack = [(self.problem.distinct, np.arange(len(labeled)), 1)]
        while stack:
            members, known, node = stack.pop()
            count = -(-len(members) // self.leaf_rows)
            if count <= 1:
                yield np.sort(members), known
                continue
            draw = int(row_hash(np.array([node]), self.problem.seed, 0)[0] % np.uint64(len(members)))
            by_row = members[np.argsort(self.problem.rows[members])]
            pivot = self.embeddings[by_row[draw]]
            points = self.embeddings[by_row]
            direction = points[int(((points - pivot) ** 2).sum(axis=1).argmax())] - pivot
            norm = float(np.linalg.norm(direction)) or 1.0
            projection = (points @ direction).astype(np.float64) / norm
            order = np.lexsort((self.problem.rows[by_row], projection))
            first = len(order) * (count // 2) // count
            cut = projection[order[first]]
            offset = (labeled[known] @ direction).astype(np.float64) / norm - cut
            reach = 2.0 * self.bandwidth
            stack.append((by_row[order[:first]], known[offset <= reach], 2 * node))
            stack.append((by_row[order[first:]], known[offset >= -reach], 2 * node + 1))

    def _filled(self, chosen: Positions) -> Positions:
        """Add records that no longer gain anything, by key, as long as they are nobody's near-duplicates.

        Where every candidate is a near-duplicate of a labeled record, as in a pool of few distinct records, one of each
        kind is asked again rather than nothing: people disagree, and an empty batch would end the campaign.
        """
        distinct = self.problem.distinct
        fresh = distinct[~self.problem.near_labeled(distinct)]
        rest = fresh if len(chosen) or len(fresh) else distinct
        both = np.concatenate([chosen, rest[~np.isin(rest, chosen)]])
        return both[self.problem.leaders(both)]
