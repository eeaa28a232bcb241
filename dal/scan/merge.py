"""Keeping the best rows of a pass, on a worker and on the coordinator alike. Pure.

``best(A ∪ B) = best(best(A) ∪ best(B))`` for a strict total order, so what is kept is the same set whatever the order
and the grouping in which rows arrive: that is all there is to the scan's exactness.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dal.selection import Candidates, Capacity, best_by_key, key_order

Floats64 = npt.NDArray[np.float64]

LOWEST = float(np.finfo(np.float64).min)
"""A threshold that every score passes; -inf marks rows that are never asked and does not."""


@dataclass(frozen=True)
class Thresholds:
    """Scores below which a row cannot be among the best any more; power keys, where rows are kept by those.

    A row is of interest if its score reaches `overall`, or that of its cell. Rows that tie with a threshold pass: only
    the merge, which knows all keys, may settle a tie.
    """

    overall: float
    cells: Floats64 | None

    def admit(self, scores: Floats64, cells: npt.NDArray[np.integer] | None) -> npt.NDArray[np.int64]:
        """Give the positions of the rows of interest."""
        if self.cells is None or cells is None:
            return np.flatnonzero(scores >= self.overall)
        return np.flatnonzero((scores >= self.overall) | (scores >= self.cells[cells]))

    def raised(self, other: "Thresholds") -> "Thresholds":
        """Give the higher of both, which is as safe as each."""
        cells = self.cells
        if cells is not None and other.cells is not None:
            cells = np.maximum(cells, other.cells)
        return Thresholds(max(self.overall, other.overall), cells)


def no_thresholds(capacity: Capacity) -> Thresholds:
    """Give thresholds that everything passes."""
    return Thresholds(LOWEST, np.full(capacity.cells, LOWEST) if capacity.cells else None)


class Best:
    """The best rows so far under fixed capacities.

    Parameters
    ----------
    capacity : Capacity
    seed, round : int
        Of the key.
    """

    def __init__(self, capacity: Capacity, seed: int, round: int) -> None:
        self.capacity = capacity
        self.seed = seed
        self.round = round
        self.thresholds = no_thresholds(capacity)
        self._parts: list[Candidates] = []
        self._held = self._left = 0
        # Compressing costs a sort; at four times what it leaves, each row is sorted less than twice on average.
        self._most = 4 * (capacity.total + capacity.cells * capacity.per_cell) + 1024

    def add(self, candidates: Candidates) -> None:
        """Take rows in; those that cannot be among the best are forgotten now or later."""
        if len(candidates):
            self._parts.append(candidates)
            self._held += len(candidates)
            if self._held > self._most:
                self._compress()

    def tighten(self) -> Thresholds:
        """Raise the thresholds to what is held now, where that is worth a sort, and give them."""
        if self._held >= self.capacity.total and self._held > 1.1 * self._left:
            self._compress()
        return self.thresholds

    def result(self) -> Candidates | None:
        """Give the best rows, ascending by row; None if there are none."""
        if not self._parts:
            return None
        self._compress()
        return self._parts[0].take(np.argsort(self._parts[0].rows))

    def _compress(self) -> None:
        held = concatenate(self._parts)
        ranked = self.capacity.ranked(held.scores, held.rows, self.seed, self.round)
        overall = best_by_key(ranked, held.rows, self.capacity.total, self.seed, self.round)
        raised = Thresholds(_floor(ranked[overall], self.capacity.total), None)
        keep = np.zeros(len(held), dtype=bool)
        keep[overall] = True
        if self.capacity.cells:
            of_cells, floors = self._best_of_cells(held)
            keep[of_cells] = True
            raised = Thresholds(raised.overall, floors)
        self.thresholds = self.thresholds.raised(raised)
        kept = held.take(np.flatnonzero(keep))
        self._parts = [kept]
        self._held = self._left = len(kept)

    def _best_of_cells(self, held: Candidates) -> tuple[npt.NDArray[np.int64], Floats64]:
        floors = self._floors(held)
        reach = held.scores >= floors[held.cells]
        counts = np.bincount(held.cells[reach], minlength=self.capacity.cells)
        # Keys are worth their sort in the few cells alone where rows tie with the floor.
        crowded = (counts > self.capacity.per_cell)[held.cells]
        return np.concatenate([np.flatnonzero(reach & ~crowded), self._settled(held, reach & crowded)]), floors

    def _floors(self, held: Candidates) -> Floats64:
        descending = np.argsort(-held.scores)
        # Sixteen bits are sorted by counting, in a tenth of the time of sixty-four.
        by_cell = descending[np.argsort(held.cells[descending].astype(np.uint16), kind="stable")]
        starts = np.concatenate([[0], np.cumsum(np.bincount(held.cells, minlength=self.capacity.cells))])
        floors = np.full(self.capacity.cells, LOWEST)
        full = np.flatnonzero(np.diff(starts) >= self.capacity.per_cell)
        floors[full] = held.scores[by_cell[starts[full] + self.capacity.per_cell - 1]]
        return floors

    def _settled(self, held: Candidates, among: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Find the best of each cell by key, among these rows."""
        positions = np.flatnonzero(among)
        order = positions[key_order(held.scores[positions], held.rows[positions], self.seed, self.round)]
        by_cell = order[np.argsort(held.cells[order], kind="stable")]
        cells = held.cells[by_cell]
        rank = np.arange(len(cells)) - np.searchsorted(cells, cells)
        return by_cell[rank < self.capacity.per_cell]


def _floor(scores: Floats64, capacity: int) -> float:
    return float(np.min(scores)) if len(scores) >= capacity and len(scores) else LOWEST


def concatenate(parts: list[Candidates]) -> Candidates:
    """Join candidates."""
    if len(parts) == 1:
        return parts[0]
    return Candidates(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.cells for part in parts]),
        np.concatenate([part.predicted for part in parts]),
        np.concatenate([part.embeddings for part in parts]),
    )
