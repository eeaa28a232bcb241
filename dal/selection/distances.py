"""Distances between records: near-duplicates, the nearest of others, how far apart records lie."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from dal.selection.order import Floats64, Positions, Rows, row_hash

Floats32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

DUPLICATE_DISTANCE = 0.1
"""Records nearer than this, in bandwidths, to a chosen one are its near-duplicates."""
SAMPLE = 2000
"""Points that a median of distances is of."""
_AXES = 16
_BLOCK_ROWS, _BLOCK_POINTS = 512, 4096


@dataclass(frozen=True)
class Neighbourhood:
    """All points within a distance of given ones.

    Attributes
    ----------
    points : ndarray of shape (n, d), float32
    distance : float
        Inclusive.

    Examples
    --------
    >>> near = Neighbourhood(np.array([[0.0, 0.0]], np.float32), 0.5)
    >>> near(np.array([[0.5, 0.0], [0.5, 0.1]], np.float32)).tolist()
    [True, False]
    """

    points: Floats32
    distance: float

    def __reduce__(self) -> tuple[type["Neighbourhood"], tuple[Floats32, float]]:
        """Leave the trees out, which are twice as large as the points and quickly made."""
        return Neighbourhood, (self.points, self.distance)

    def __call__(self, points: Floats32) -> Mask:
        """Mark the points, (m, d), that lie within the distance of any of the given ones."""
        return np.isfinite(self.nearest(points)[0])

    def nearest(self, points: Floats32) -> tuple[Floats64, Positions]:
        """Find the nearest given point of each point, (m, d), and how far it is; infinity where it is too far."""
        apart = np.full(len(points), np.inf)
        which = np.zeros(len(points), dtype=np.int64)
        if not len(self.points) or not self.points.shape[1]:
            return apart, which
        for start in range(0, len(points), _BLOCK_ROWS):
            block = points[start : start + _BLOCK_ROWS].astype(np.float64)
            positions = np.arange(len(block))
            if self._screen is not None:
                axes, shadows, distance = self._screen
                positions = np.flatnonzero(np.isfinite(_nearest(shadows, block @ axes, distance)[0]))
            apart[start + positions], which[start + positions] = _nearest(self._tree, block[positions], self.distance)
        return apart, which

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self.points.astype(np.float64))

    @cached_property
    def _screen(self) -> tuple[Floats64, cKDTree, float] | None:
        """Orthonormal axes, (d, at most 16), the points along them, a distance; None where features are as few.

        No two points are nearer to each other than along the axes. In many dimensions a tree looks at nearly all
        points, in sixteen at a few. Which axes they are is a matter of time alone: two steps of a subspace iteration
        come near enough to the principal ones.
        """
        if self.points.shape[1] <= _AXES:
            return None
        points = self.points.astype(np.float64)
        centred = points - points.mean(axis=0)
        axes = np.linalg.qr(centred[:: -(-len(centred) // _AXES)].T)[0]
        for _ in range(2):
            axes = np.linalg.qr(centred.T @ (centred @ axes))[0]
        # The products are rounded, in proportion to the points.
        return axes, cKDTree(points @ axes), self.distance + 1e-9 * (1.0 + float(np.abs(points).max()))


def _nearest(tree: cKDTree, points: Floats64, distance: float) -> tuple[Floats64, Positions]:
    # The bound is exclusive; the distance itself still counts as near.
    apart, which = tree.query(points, distance_upper_bound=np.nextafter(distance, np.inf))
    return apart, np.where(np.isfinite(apart), which, 0)


def median_to_nearest(points: Floats32, names: Rows, seed: int, round: int) -> float:
    """Compute the median distance of a point to its nearest other one, of at most 2,000 drawn by the hash of names.

    0 where there are less than two.
    """
    if len(points) < 2:
        return 0.0
    sample = points[np.argsort(row_hash(names, seed, round))[:SAMPLE]]
    squared = squared_distances(sample, sample)
    np.fill_diagonal(squared, np.inf)
    return float(np.median(np.sqrt(squared.min(axis=1))))


def exact_median_to_nearest(points: Floats32, names: Rows, seed: int, round: int) -> float:
    """Compute what :func:`median_to_nearest` does in double precision, slowly: it is alike on all machines.

    A product of matrices loses half of the digits of small distances, others on each kind of processor.
    """
    if len(points) < 2:
        return 0.0
    sample = points[np.argsort(row_hash(names, seed, round))[:SAMPLE]].astype(np.float64)
    return float(np.median(cKDTree(sample).query(sample, k=2)[0][:, 1]))


def squared_distances(a: Floats32, b: Floats32) -> Floats32:
    """Compute all squared distances, (len(a), len(b)), never below zero."""
    squared: Floats32 = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2.0 * (a @ b.T)
    np.maximum(squared, 0, out=squared)
    return squared


def squared_to_nearest(points: Floats32, others: Floats32) -> Floats32:
    """Compute the squared distance of each point to the nearest of the others; infinity where there are none."""
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    for start in range(0, len(points), _BLOCK_POINTS):
        block = points[start : start + _BLOCK_POINTS]
        for first in range(0, len(others), _BLOCK_POINTS):
            squared = squared_distances(block, others[first : first + _BLOCK_POINTS])
            part = nearest[start : start + _BLOCK_POINTS]
            np.minimum(part, squared.min(axis=1), out=part)
    return nearest
