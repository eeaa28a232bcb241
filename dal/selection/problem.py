"""The problem that a selector is given, and what all selectors share: distances, the bandwidth, near-duplicates."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from dal.selection.distances import (
    DUPLICATE_DISTANCE,
    Floats32,
    Neighbourhood,
    median_to_nearest,
    squared_distances,
)
from dal.selection.order import row_hash

Rows = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int64]
Floats64 = npt.NDArray[np.float64]

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

CROWD = 10
"""Candidates that a pick stands for in the usual shortlist."""
COVERED = 40.0
"""Candidates that a pick of the default covers at most, by the sum of its kernel."""
_CROWD_SAMPLE = 256
_CROWD_ENTRIES = 2**22
_HALVINGS = 8
_SLIGHT = 1e-9


@dataclass(frozen=True)
class Problem:
    """Candidates to choose among. A *position* is a rank by key: 0 is the best candidate.

    Attributes
    ----------
    rows : ndarray of shape (n,), int64
    weights : ndarray of shape (n,), float32
        What each candidate is worth, 0 or more.
    cells : ndarray of shape (n,), int64
    embeddings : ndarray of shape (n, d), float32
    proba : ndarray of shape (n, m), float32, or None
        Class probabilities, where the selector looks at them.
    labeled : ndarray of shape (n_labeled, d), float32
        Embeddings of the records asked before, equal ones of the same class once. Of more than 20,000 those nearest to
        candidates, where the traits of the selector say that these suffice.
    adaptive : bool
        Whether the bandwidth is that of the labeled records, where there are any, or that of the candidates.
    seed, round : int
    mapper : callable
        ``map``, or one that shares the work out; gives the results in order.
    least_bandwidth : float
        The bandwidth is no less than this.
    crowd : int
        Candidates that a pick stands for.
    covered : float
        Candidates that a pick covers at most, by the sum of its kernel.
    classes : ndarray of shape (n, m), int64, or None
        Class codes of the probabilities; None where they are those of all classes.
    codes : ndarray of shape (n_labeled,), int64
        Classes of the labeled records; -1 where none is known, or the selector does not look at classes.
    labeled_proba : ndarray of shape (n_labeled, n_classes), float32, or None
        Class probabilities of those; NaN of a record that the learner is not given.
    apart : float or None
        The median distance of a labeled record to its nearest other one, where `labeled` holds a part of them
        and the problem is adaptive; None where fewer than two are distinct.
    """

    rows: Rows
    weights: Floats32
    cells: Positions
    embeddings: Floats32
    proba: Floats32 | None
    labeled: Floats32
    adaptive: bool
    seed: int
    round: int
    mapper: Mapper = map
    least_bandwidth: float = 0.0
    crowd: int = CROWD
    covered: float = np.inf
    classes: Positions | None = None
    codes: Positions = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    labeled_proba: Floats32 | None = None
    apart: float | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def distinct(self) -> Positions:
        """The first position of each distinct record, ascending: of identical records the best by key."""
        return np.sort(_first_of_equals(self.embeddings))

    @cached_property
    def bandwidth(self) -> float:
        """The distance at which records begin to differ.

        The median distance of a labeled record to its nearest other one, which shrinks as labels grow. Without labels,
        or where the pool itself is to be covered, twice that distance among candidates; among distinct ones only,
        because the distances within copies of one record would collapse it to zero. 1 where there is no distance.

        Copies that differ a little, as in a log of events, collapse the distances of labeled records all the same, and
        with them all diversity. So it is never less than the median distance of a candidate to its n-th neighbour,
        where a pick stands for n candidates.
        """
        if self.adaptive and self.apart is not None:
            width = max(self.apart, self.crowding(self.crowd))
        elif self.adaptive and len(self.labeled) > 1:
            # Equal records of different classes would be each other's nearest, at no distance.
            labeled = self.labeled if (self.codes < 0).all() else np.unique(self.labeled, axis=0)
            width = max(self._apart(labeled, np.arange(len(labeled))), self.crowding(self.crowd))
        else:
            width = 2.0 * self._apart(self.embeddings[self.distinct], self.rows[self.distinct])
        return max(width, self.least_bandwidth) or 1.0

    def _apart(self, points: Floats32, names: Rows) -> float:
        return median_to_nearest(points, names, self.seed, self.round)

    def crowding(self, neighbour: int) -> float:
        """Compute the median distance of a distinct candidate to its n-th neighbour; 0 where there are no n."""
        if len(self.distinct) <= neighbour:
            return 0.0
        # The record itself is the nearest of all, so the n-th neighbour has n - 1 and itself before it.
        squared = [np.partition(block, neighbour, axis=1)[:, neighbour] for block in self._squared_to_all()]
        return float(np.median(np.sqrt(np.concatenate(squared))))

    def _squared_to_all(self) -> Iterator[Floats32]:
        """Yield the squared distances of a hashed sample of distinct candidates to all of them, some rows at a time."""
        points = self.embeddings[self.distinct]
        sample = points[np.argsort(row_hash(self.rows[self.distinct], self.seed, self.round))[:_CROWD_SAMPLE]]
        step = max(1, _CROWD_ENTRIES // len(points))
        for start in range(0, len(sample), step):
            yield squared_distances(sample[start : start + step], points)

    @cached_property
    def reach(self) -> float:
        r"""The bandwidth of the coverage: the distance at which records begin to differ, or less.

        A pick covers the sum over the candidates of :math:`e^{-\lVert x - s \rVert^2 / \sigma^2}`. In many dimensions
        the hundredth neighbour is hardly farther away than the tenth, and a pick as wide as that covers hundreds: late
        batches then leave out records that are in doubt, because some label lies at that distance. So it is no more
        than the median width at which a candidate covers `covered` of them. As wide as the distance to the tenth
        neighbour, a pick among evenly spread records covers 10 in two dimensions, 33 in five, 60 in six.

        It is never less than the distance of near-duplicates, which follows from `bandwidth`.
        """
        if len(self.distinct) <= self.covered:
            return self.bandwidth
        unit = np.float32(self.bandwidth**2)
        widths = [_widths(block / unit, self.covered) for block in self._squared_to_all()]
        return self.bandwidth * float(np.median(np.concatenate(widths)))

    @property
    def duplicate_distance(self) -> float:
        """Records nearer to each other than this are near-duplicates."""
        return DUPLICATE_DISTANCE * self.bandwidth

    @cached_property
    def representatives(self) -> Positions:
        """Positions, ascending, no two of them near-duplicates, each the best by key of those that it stands for.

        None stands near a labeled record, unless all do, as in a pool of few distinct records: then one of each kind is
        asked again rather than nothing, because people disagree and an empty batch would end the campaign.
        """
        fresh = self.distinct[~self.near_labeled(self.distinct)]
        positions = fresh if len(fresh) else self.distinct
        return positions[self.leaders(positions)]

    def near_labeled(self, positions: Positions) -> npt.NDArray[np.bool_]:
        """Mark those of these positions that are near-duplicates of a labeled record."""
        return Neighbourhood(self.labeled, self.duplicate_distance)(self.embeddings[positions])

    def leaders(self, positions: Positions) -> npt.NDArray[np.bool_]:
        """Mark those of these positions that are not near-duplicates of a marked one before them."""
        points = self.embeddings[positions].astype(np.float64)
        keep = np.ones(len(positions), dtype=bool)
        if len(points) < 2 or not points.shape[1]:
            return keep
        tree = cKDTree(points)
        # Most records have no neighbour so near: all are counted at once, and lists made for the few that have. One
        # list at a time, because tight clusters of many would make lists of the square of their size.
        crowded = np.flatnonzero(tree.query_ball_point(points, self.duplicate_distance, return_length=True) > 1)
        for index in crowded.tolist():
            if keep[index]:
                near = np.array(tree.query_ball_point(points[index], self.duplicate_distance))
                keep[near[near > index]] = False
        return keep


def _widths(squared: Floats32, covered: float) -> Floats64:
    """Find the width, from a tenth to 1, at which a kernel covers `covered` points, by rows of squared distances."""

    def sums(which: Positions, widths: Floats64) -> Floats64:
        inner = squared[which] * (-1.0 / widths**2).astype(np.float32)[:, None]
        return np.asarray(np.exp(inner, out=inner).sum(axis=1, dtype=np.float64))

    found = np.ones(len(squared))
    most = sums(np.arange(len(squared)), found)
    over = np.flatnonzero(most > covered)
    high, at_high = found[over], most[over]
    low = np.full(len(over), DUPLICATE_DISTANCE)
    at_low = sums(over, low)
    for _ in range(_HALVINGS):
        middle = np.sqrt(low * high)
        at_middle = sums(over, middle)
        wide = at_middle > covered
        high, at_high = np.where(wide, middle, high), np.where(wide, at_middle, at_high)
        low, at_low = np.where(wide, low, middle), np.where(wide, at_low, at_middle)
    # Interpolated, the width moves by no more than the last bits of the distances do.
    share = (covered - at_low) / np.maximum(at_high - at_low, _SLIGHT)
    found[over] = low + np.clip(share, 0.0, 1.0) * (high - low)
    return found


def _first_of_equals(points: Floats32) -> Positions:
    if not points.shape[1]:
        return np.arange(len(points))
    # Adding 0 turns -0.0 into 0.0: equal numbers must have equal bytes.
    as_bytes = np.ascontiguousarray(points + np.float32(0)).view(np.dtype((np.void, points.shape[1] * 4))).ravel()
    return np.unique(as_bytes, return_index=True)[1].astype(np.int64)
