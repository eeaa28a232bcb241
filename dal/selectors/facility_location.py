"""Facility location: the batch that covers the candidates best, each by its weight."""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dal.selection import row_hash
from dal.selectors.problem import DUPLICATE_DISTANCE, Floats32, Positions, Problem, squared_distances

LEAF_ROWS = 1024
"""Candidates of one dense kernel: 4 MB, and 0.99 of the objective of one flat greedy."""


def facility_location(problem: Problem, k: int) -> Positions:
    r"""Choose greedily what covers the candidates best.

    Maximises, by the largest gain each time,

    .. math:: F(S) = \sum_x w(x) \max\bigl(c_L(x), \max_{s \in S} K(x, s)\bigr),
              \quad K(x, s) = e^{-\lVert x - s \rVert^2 / \sigma^2}

    with :math:`c_L` the coverage by the labeled records (weighted facility location: FASS, Wei et al. 2015, and
    uncertainty herding, Bae et al. 2025; with unit weights MaxHerding, Bae et al. 2024). F is monotone and submodular:
    greedy reaches 1 - 1/e of the best (Nemhauser et al. 1978).

    Candidates are split into leaves of at most 1,024 by recursive bisection and solved leaf by leaf, which keeps the
    cost linear in k; the picks are merged by their gains, the exact greedy of the decomposed objective.

    Returns
    -------
    ndarray of int64
        Positions in the order of choice; fewer than `k` where no more are distinct.
    """
    return _Leaves(problem).solve(k)


class _Pick(NamedTuple):
    gain: float
    position: int


class _Leaves:
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.embeddings = problem.embeddings
        self.weights = problem.weights
        self.bandwidth = problem.bandwidth
        self.covered = np.zeros(len(problem), dtype=np.float32)

    def solve(self, k: int) -> Positions:
        """Give `k` positions in the order of choice, fewer where no more are distinct."""
        leaves = list(self._leaves())
        wanted = k
        while True:
            picks = self._picks(leaves, wanted)
            chosen = self._without_near_duplicates([pick.position for pick in picks])
            if len(chosen) >= k or len(picks) < wanted:
                break
            wanted *= 2
        if len(chosen) < k:
            chosen = self._filled(chosen)
        return np.array(chosen[:k], dtype=np.int64)

    def _picks(self, leaves: list[tuple[Positions, Floats32]], count: int) -> list[_Pick]:
        """Merge the picks of all leaves by gain: the best `count`.

        Gains fall along a leaf, so a leaf is left as soon as its gain is below the worst of `count` kept so far; only
        one kernel is in memory at a time.
        """
        kept: list[tuple[float, int]] = []  # a heap whose first entry is the worst: low gain, then late in key order
        for members, labeled in leaves:
            for pick in self._greedy(members, labeled):
                entry = (pick.gain, -pick.position)
                if len(kept) < count:
                    heapq.heappush(kept, entry)
                elif entry > kept[0]:
                    heapq.heapreplace(kept, entry)
                elif pick.gain < kept[0][0]:
                    break
        return [_Pick(gain, -negative) for gain, negative in sorted(kept, reverse=True)]

    def _leaves(self) -> Iterator[tuple[Positions, Floats32]]:
        """Bisect the distinct candidates until at most LEAF_ROWS are left, and route the labeled ones along.

        The direction is the one from a hashed member to the member farthest from it; ties of the projection fall by
        row. A labeled record within two bandwidths of the cut goes both ways: beyond, its kernel is under 2 %.
        """
        stack = [(self.problem.distinct, self.problem.labeled, 1)]
        while stack:
            members, labeled, node = stack.pop()
            if len(members) <= LEAF_ROWS:
                yield np.sort(members), labeled
                continue
            draw = int(row_hash(np.array([node]), self.problem.seed, 0)[0] % np.uint64(len(members)))
            by_row = members[np.argsort(self.problem.rows[members])]
            pivot = self.embeddings[by_row[draw]]
            points = self.embeddings[by_row]
            direction = points[int(((points - pivot) ** 2).sum(axis=1).argmax())] - pivot
            norm = float(np.linalg.norm(direction)) or 1.0
            projection = (points @ direction).astype(np.float64) / norm
            order = np.lexsort((self.problem.rows[by_row], projection))
            half = len(order) // 2
            cut = projection[order[half]]
            offset = (labeled @ direction).astype(np.float64) / norm - cut
            reach = 2.0 * self.bandwidth
            stack.append((by_row[order[:half]], labeled[offset <= reach], 2 * node))
            stack.append((by_row[order[half:]], labeled[offset >= -reach], 2 * node + 1))

    def _greedy(self, members: Positions, labeled: Floats32) -> Iterator[_Pick]:
        """Give the picks of one leaf, the largest gain first (lazy greedy: Minoux, 1978).

        A stale gain only overestimates, so the top of the heap is right as soon as it is fresh.
        """
        points, weights = self.embeddings[members], self.weights[members]
        kernel = self._kernel(points, points)
        np.fill_diagonal(kernel, 1.0)
        covered = self._coverage(points, labeled)
        self.covered[members] = covered
        gains = _gains(kernel, covered, weights)
        heap = [(-gain, position, 0) for position, gain in enumerate(gains.tolist()) if gain > 0]
        heapq.heapify(heap)
        limit, fresh, last = _duplicate_coverage(), 0, np.inf
        while heap:
            negative, position, stamp = heap[0]
            if covered[position] > limit:
                heapq.heappop(heap)
            elif stamp == fresh:
                heapq.heappop(heap)
                # Rounding may lift a gain by its last bit over the one before it; the merge relies on falling gains.
                last = min(last, -negative)
                yield _Pick(last, int(members[position]))
                np.maximum(covered, kernel[position], out=covered)
                fresh += 1
            else:
                gain = float(np.maximum(kernel[position] - covered, 0) @ weights)
                if gain > 0:
                    heapq.heapreplace(heap, (-gain, position, fresh))
                else:
                    heapq.heappop(heap)

    def _coverage(self, points: Floats32, labeled: Floats32) -> Floats32:
        covered = np.zeros(len(points), dtype=np.float32)
        for start in range(0, len(labeled), 4 * LEAF_ROWS):
            kernel = self._kernel(points, labeled[start : start + 4 * LEAF_ROWS])
            np.maximum(covered, kernel.max(axis=1), out=covered)
        return covered

    def _kernel(self, a: Floats32, b: Floats32) -> Floats32:
        squared = squared_distances(a, b)
        squared *= np.float32(-1.0 / self.bandwidth**2)
        return np.exp(squared, out=squared)

    def _without_near_duplicates(self, positions: list[int]) -> list[int]:
        """Drop picks that are near-duplicates of an earlier pick, as there may be between leaves."""
        picks = np.array(positions, dtype=np.int64)
        chosen: list[int] = picks[self.problem.leaders(picks)].tolist()
        return chosen

    def _filled(self, chosen: list[int]) -> list[int]:
        """Add records that no longer gain anything, by key, as long as they are nobody's near-duplicates.

        Where every candidate is a near-duplicate of a labeled record, as in a pool of few distinct records, one of each
        kind is asked again rather than nothing: people disagree, and an empty batch would end the campaign.
        """
        taken, distinct = set(chosen), self.problem.distinct
        fresh = self.covered[distinct] <= _duplicate_coverage()
        rest = distinct[fresh] if chosen or fresh.any() else distinct
        return self._without_near_duplicates(chosen + [p for p in rest.tolist() if p not in taken])


def _gains(kernel: Floats32, covered: Floats32, weights: Floats32) -> Floats32:
    gains = np.empty(len(kernel), dtype=np.float32)
    for start in range(0, len(kernel), 256):
        gains[start : start + 256] = np.maximum(kernel[start : start + 256] - covered, 0) @ weights
    return gains


def _duplicate_coverage() -> float:
    """Coverage of a record at the distance below which it counts as a near-duplicate."""
    return float(np.exp(-(DUPLICATE_DISTANCE**2)))
