"""Keeping the best rows of a pass, on a worker and on the coordinator alike. Pure.

``best(A ∪ B) = best(best(A) ∪ best(B))`` for a strict total order, so what is kept is the same set for any order and
grouping in which rows arrive: that is all there is to the scan's exactness. It holds as well where the best are those
of different content, each the best by key of its equals: what ranks before a row keeps ranking before its equals.
"""

from dataclasses import dataclass, fields
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from dal.selection.candidates import Candidates, Capacity
from dal.selection.once import first_of_equals
from dal.selection.order import best_by_key, key_order

Floats64 = npt.NDArray[np.float64]

LOWEST = float(np.finfo(np.float64).min)
"""A threshold that every score passes; -inf marks rows that are never asked and does not."""
SLACK, SLACK_WITH_FEATURES = 4.0, 1.5
"""Rows are compressed at this multiple of what that leaves. At four times, each is sorted less than twice on average;
features that are held with them take longer to copy, and to find memory for, than rows to sort."""


@dataclass(frozen=True)
class Thresholds:
    """Values below which a row cannot be among the best any more.

    A row is of interest if what ranks it overall, its score or the key of a draw, reaches `overall` or the value in
    `classes` of the class that is predicted for it, or if its score reaches that of its cell. Rows that tie with a
    threshold pass: only the merge, which knows all keys, may settle a tie.

    The last of `classes` stands for rows without a prediction, whose code is -1. It is infinite, and so is that of a
    class of which none are kept.
    """

    overall: float
    cells: Floats64 | None
    classes: Floats64 | None = None

    def admit(
        self,
        scores: Floats64,
        ranked: Floats64,
        cells: npt.NDArray[np.integer] | None,
        predicted: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int64]:
        """Return the positions of the rows of interest, by their scores and by what ranks them overall."""
        if self.cells is None or cells is None:
            passing = ranked >= self.overall
        elif ranked is scores:
            passing = scores >= np.minimum(self.cells, self.overall).take(cells)
        else:
            # Scores and the keys of a draw are of different units: there is no lower one of both.
            passing = (ranked >= self.overall) | (scores >= self.cells.take(cells))
        if self.classes is not None:
            passing |= ranked >= self.classes[predicted]
        return np.flatnonzero(passing)

    def raised(self, other: "Thresholds") -> "Thresholds":
        """Return the higher of both, which is as safe as each."""
        return Thresholds(
            max(self.overall, other.overall), _higher(self.cells, other.cells), _higher(self.classes, other.classes)
        )


def _higher(mine: Floats64 | None, others: Floats64 | None) -> Floats64 | None:
    return mine if mine is None or others is None else np.maximum(mine, others)


def no_thresholds(capacity: Capacity) -> Thresholds:
    """Return thresholds that everything passes that may be kept."""
    cells = np.full(capacity.cells, LOWEST) if capacity.cells else None
    return Thresholds(LOWEST, cells, np.where(_of_classes(capacity), LOWEST, np.inf) if capacity.per_class else None)


def _of_classes(capacity: Capacity) -> npt.NDArray[np.int64]:
    """Return how many rows of each class are kept; none, last, of those without a prediction."""
    return np.append(np.array(capacity.per_class, dtype=np.int64), 0)


class Best:
    """The best rows so far under fixed capacities.

    Parameters
    ----------
    capacity : Capacity
    seed, round : int
        Of the key.
    slack : float, default=4
        Rows are compressed at this multiple of what that leaves.
    """

    def __init__(self, capacity: Capacity, seed: int, round: int, slack: float = SLACK) -> None:
        self.capacity = capacity
        self.seed = seed
        self.round = round
        self.thresholds = no_thresholds(capacity)
        self._parts: list[Candidates] = []
        self._held = self._tightened_at = 0
        self._most = int(slack * capacity.rows) + 1024
        self.repeated = -inf
        """The most that ranks a row, of those forgotten because an equal one ranks before them. Whether this reaches
        what ranks the last row that is kept is the same for any order in which rows come."""

    def add(self, candidates: Candidates) -> None:
        """Take rows in; those that cannot be among the best are forgotten now or later."""
        ranked = self.capacity.ranked(candidates.scores, candidates.rows, self.seed, self.round)
        positions = self.thresholds.admit(candidates.scores, ranked, candidates.cells, candidates.predicted)
        if not len(positions):
            return
        self._parts.append(candidates if len(positions) == len(candidates) else candidates.take(positions))
        self._held += len(positions)
        if self._held > self._most:
            self._compress()

    def tighten(self, seen: int) -> Thresholds:
        """Return the thresholds, raised to what is held now where that is worth a sort.

        Parameters
        ----------
        seen : int
            Rows among which those held are the best. Thresholds are worth as much as the rows they come from are many,
            so they are raised whenever these have doubled.
        """
        if self._held >= self.capacity.total and seen >= 2 * self._tightened_at:
            self._tightened_at = seen
            return self.tighten_now()
        return self.thresholds

    def tighten_now(self) -> Thresholds:
        """Return the thresholds, raised to what is held now."""
        if self._held >= self.capacity.total:
            self._compress()
        return self.thresholds

    def settle(self) -> tuple[float | None, float | None]:
        """Drop all that is not among the best; describe what is left.

        Returns
        -------
        last : float or None
            What ranks the last of the rows kept regardless of their cells; None while these are fewer than wanted.
        best : float or None
            Highest score that is kept, the same for any order in which rows came; None without any.
        """
        self.tighten_now()
        last = None if self.thresholds.overall == LOWEST else self.thresholds.overall
        return last, max((float(np.max(part.scores)) for part in self._parts if len(part)), default=None)

    def raise_to(self, thresholds: Thresholds) -> None:
        """Take thresholds over that rows counted elsewhere have reached; the rows themselves are yet to come."""
        self.thresholds = self.thresholds.raised(thresholds)

    def result(self) -> Candidates | None:
        """Return the best rows, ascending by row; None if there are none."""
        if not self._parts:
            return None
        if self._held > self.capacity.total or self._parts[0].content is not None:
            self._compress()
        held = concatenate(self._parts)
        # Those of one span are in order already, and taking them all would copy their features once more.
        return held if (np.diff(held.rows) > 0).all() else held.take(np.argsort(held.rows))

    def held(self, rows: npt.NDArray[np.int64]) -> Candidates | None:
        """Return those of the rows that are held, in any order, without copying others; None if there are none."""
        found = [(part, np.flatnonzero(np.isin(part.rows, rows, assume_unique=True))) for part in self._parts]
        parts = [part.take(positions) for part, positions in found if len(positions)]
        return concatenate(parts) if parts else None

    def _compress(self) -> None:
        # Features, most of the bytes by far, are copied of those alone that are kept.
        bare = [part.bare() for part in self._parts]
        held = concatenate(bare)
        ranked = self.capacity.ranked(held.scores, held.rows, self.seed, self.round)
        among = self._first_of_equals(held, ranked, None)
        self.forget_equals(np.delete(ranked, among))
        best = best_by_key(ranked[among], held.rows[among], self.capacity.total, self.seed, self.round)
        overall = np.arange(len(held))[among][best]
        keep = np.zeros(len(held), dtype=bool)
        keep[overall] = True
        cells = classes = None
        if self.capacity.cells:
            most = np.full(self.capacity.cells, self.capacity.per_cell)
            cells = self._keep_of_groups(held, held.scores, held.cells, most, keep)
        if self.capacity.per_class:
            most = _of_classes(self.capacity)
            classes = self._keep_of_groups(held, ranked, held.predicted % len(most), most, keep)
        raised = Thresholds(_floor(ranked[overall], self.capacity.total), cells, classes)
        self.thresholds = self.thresholds.raised(raised)
        if all(part is own for part, own in zip(bare, self._parts, strict=True)):
            # As on the coordinator, which holds hundreds of spans: one copy of all costs a fraction of one of each.
            kept = held.take(np.flatnonzero(keep))
        else:
            stops = np.cumsum([len(part) for part in self._parts])
            masks = np.split(keep, stops[:-1])
            kept = concatenate([part.take(np.flatnonzero(mask)) for part, mask in zip(self._parts, masks, strict=True)])
        self._parts = [kept]
        self._held = len(kept)

    def forget_equals(self, ranked: Floats64) -> None:
        """Record what ranks rows that are forgotten because an equal one is kept."""
        self.repeated = max(self.repeated, float(np.max(ranked, initial=-inf)))

    def _first_of_equals(
        self, held: Candidates, values: Floats64, groups: npt.NDArray[np.int64] | None
    ) -> npt.NDArray[np.int64] | slice:
        """Return the positions of the best of equals; where equal rows are kept all, as a slice that copies nothing."""
        if held.content is None:
            return slice(None)
        return np.flatnonzero(first_of_equals(held.content, groups, values, held.rows, self.seed, self.round))

    def _keep_of_groups(
        self,
        held: Candidates,
        values: Floats64,
        groups: npt.NDArray[np.int64],
        most: npt.NDArray[np.int64],
        keep: npt.NDArray[np.bool_],
    ) -> Floats64:
        """Mark the best of each group by the key of its values, and return the floor of each."""
        among = self._first_of_equals(held, values, groups)
        places, rows = np.arange(len(held))[among], held.rows[among]
        values, groups = values[among], groups[among]
        floors = _floors(values, groups, most)
        positions = np.flatnonzero(values >= floors[groups])
        of = groups[positions]
        # Keys are worth their sort in the few groups alone where rows tie with the floor.
        crowded = (np.bincount(of, minlength=len(most)) > most)[of]
        keep[places[positions[~crowded]]] = True
        tied = positions[crowded]
        order = tied[key_order(values[tied], rows[tied], self.seed, self.round)]
        by_group = order[np.argsort(groups[order], kind="stable")]
        of = groups[by_group]
        keep[places[by_group[np.arange(len(of)) - np.searchsorted(of, of) < most[of]]]] = True
        return floors


def distinct(candidates: Candidates, capacity: Capacity, seed: int, round: int) -> npt.NDArray[np.int64]:
    """Return the positions of rows that are the best of their equals in one of the orders by which rows are kept."""
    ranked = capacity.ranked(candidates.scores, candidates.rows, seed, round)
    orders: list[tuple[Floats64, npt.NDArray[np.int64] | None]] = [(ranked, None)]
    if capacity.cells:
        orders.append((candidates.scores, candidates.cells))
    if capacity.per_class:
        orders.append((ranked, candidates.predicted))
    first = np.zeros(len(candidates), dtype=bool)
    for values, groups in orders:
        first |= first_of_equals(candidates.content, groups, values, candidates.rows, seed, round)
    return np.flatnonzero(first)


def _floors(values: Floats64, groups: npt.NDArray[np.int64], most: npt.NDArray[np.int64]) -> Floats64:
    """Return the value of the last row that each group keeps.

    It is the lowest of all where a group has room, and infinite where it keeps none.
    """
    # Sixteen bits are sorted by counting, in a tenth of the time of sixty-four.
    short = groups.astype(np.uint16) if len(most) < 2**16 else groups
    by_group = values[np.argsort(short, kind="stable")]
    stops = np.cumsum(np.bincount(groups, minlength=len(most))).tolist()
    floors = np.where(most > 0, LOWEST, np.inf)
    for group, (start, stop) in enumerate(pairwise([0, *stops])):
        if 0 < most[group] <= stop - start:
            of_group, last = by_group[start:stop], stop - start - most[group]
            of_group.partition(last)  # hundreds of short ones take a fraction of one long sort
            floors[group] = of_group[last]
    return floors


def _floor(scores: Floats64, capacity: int) -> float:
    return float(np.min(scores)) if len(scores) >= capacity and len(scores) else LOWEST


def concatenate(parts: list[Candidates]) -> Candidates:
    """Join candidates."""
    if len(parts) == 1:
        return parts[0]
    return Candidates(
        **{each.name: _joined([getattr(part, each.name) for part in parts]) for each in fields(Candidates)}
    )


def _joined(parts: list[npt.NDArray[Any] | None]) -> Any:  # noqa: ANN401 - of the type of its parts
    there = [part for part in parts if part is not None]
    assert len(there) in (0, len(parts)), "parts of one pass carry the same"
    return np.concatenate(there) if there else None
