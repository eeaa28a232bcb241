"""Selectors that look at more than scores and distances: at Fisher information, at what is typical."""

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans, kmeans_plusplus

from dal.selection.distances import Floats32, squared_distances
from dal.selection.order import Floats64, Positions, rank_within, row_hash
from dal.selection.problem import Problem

RIDGE = 1e-2
"""In mean squared lengths of the records; 1 / C of the head on embeddings, whose records are of length 1."""
MOST_CLUSTERS = 500
SMALLEST_CLUSTER = 6
TYPICAL_AMONG = 20
"""Neighbours whose mean distance tells how typical a record is; this and the two above are the authors' values."""
_BLOCK_ROWS = 4096
_BLOCK_ENTRIES = 2**22


def bait(problem: Problem, k: int) -> Positions:
    r"""Choose the records that tell most about the model where the pool needs it (BAIT; Ash et al. 2021, binary form).

    Greedily minimises the variance of the predictions over the candidates, a sample of the pool,

    .. math:: \operatorname{tr}\Bigl(\bigl(\lambda I + \sum_{s \in L \cup S} v_s x_s x_s^\top\bigr)^{-1}
              \sum_x v_x x_x x_x^\top\Bigr), \quad v = p_{(1)} (1 - p_{(1)})

    with the most probable class against the rest, which leaves a matrix of d columns in place of one of d C. With A the
    inverse and F the second sum, record x lowers the trace by :math:`v x^\top A F A x / (1 + v x^\top A x)`; each pick
    updates A and A F A by their ranks of one and two, and both forms of every candidate by two products.

    Time O(n d^2 + k (n d + d^2)), memory O(n d + d^2): for batches of up to a thousand or so.
    """
    if problem.proba is None:
        raise ValueError("bait needs the candidates' probabilities")
    positions = problem.distinct
    records, proba = problem.embeddings[positions], problem.proba[positions]
    ridge = RIDGE * float(np.square(problem.embeddings, dtype=np.float64).sum() / max(len(problem), 1)) or 1.0
    pool, had = _weighted(problem.embeddings, problem.proba), _weighted(problem.labeled, problem.labeled_proba)
    design = _Design(ridge, pool, had, _weighted(records, proba))
    left = ~problem.near_labeled(positions)
    if not left.any():
        left[:] = True
    chosen: list[int] = []
    near, squares = problem.duplicate_distance**2, np.einsum("nd,nd->n", records, records)
    while len(chosen) < k and left.any():
        pick = int(np.argmax(np.where(left, design.gains, -1.0)))
        chosen.append(pick)
        # The product rounds in parts of the lengths, so those that it finds near are looked at again.
        lengths = squares + squares[pick]
        close = np.flatnonzero(left & (lengths - 2.0 * (records @ records[pick]) <= near + 1e-5 * lengths))
        left[close[((records[close] - records[pick]) ** 2).sum(axis=1) <= near]] = False
        left[pick] = False
        design.add(pick)
    return positions[np.array(chosen, dtype=np.int64)]


def _weighted(points: Floats32, proba: Floats32 | None) -> Floats32:
    """Scale records by the deviation of their most probable class against the rest; by 0 where nothing is predicted."""
    if proba is None:
        return np.zeros_like(points)
    most = np.nan_to_num(proba.max(axis=1), nan=1.0)
    weighted: Floats32 = points * np.sqrt(most * (1 - most))[:, None]
    return weighted


class _Design:
    """The inverse of the information that is had, and what each record on offer would add."""

    def __init__(self, ridge: float, pool: Floats32, had: Floats32, points: Floats32) -> None:
        self.inverse = np.linalg.inv(ridge * np.eye(pool.shape[1]) + _information(had))
        self.spread = self.inverse @ (_information(pool) / len(pool)) @ self.inverse
        self.points = points
        self.had, self.lowered = (self._forms(matrix) for matrix in (self.inverse, self.spread))

    def _forms(self, matrix: Floats64) -> Floats64:
        """Compute x M x of each record."""
        forms, single = np.empty(len(self.points)), matrix.astype(np.float32)
        for start in range(0, len(forms), _BLOCK_ROWS):
            block = self.points[start : start + _BLOCK_ROWS]
            forms[start : start + _BLOCK_ROWS] = np.einsum("nd,nd->n", block @ single, block)
        return forms

    @property
    def gains(self) -> Floats64:
        """Amounts that each record would take from the trace."""
        gains: Floats64 = self.lowered / (1.0 + self.had)
        return gains

    def add(self, pick: int) -> None:
        """Take a record in (Sherman and Morrison, 1950)."""
        x = self.points[pick].astype(np.float64)
        u, v = self.inverse @ x, self.spread @ x
        share, form = 1.0 / (1.0 + x @ u), x @ v
        along = (self.points @ np.stack([u, v], axis=1).astype(np.float32)).astype(np.float64)
        p, r = along.T
        self.had = np.maximum(self.had - share * p * p, 0.0)
        self.lowered = np.maximum(self.lowered - 2.0 * share * p * r + share * share * form * p * p, 0.0)
        mixed = np.outer(u, share * v)
        square = np.outer(u, share * u)
        self.inverse -= square
        self.spread += share * form * square - mixed - mixed.T


def _information(points: Floats32) -> Floats64:
    """Sum the outer products of records, in double precision and blocks."""
    total = np.zeros((points.shape[1], points.shape[1]))
    for start in range(0, len(points), _BLOCK_ROWS):
        block = points[start : start + _BLOCK_ROWS].astype(np.float64)
        total += block.T @ block
    return total


def typiclust(problem: Problem, k: int) -> Positions:
    """Take the most typical record of each large cluster that has no label (TypiClust; Hacohen et al. 2022).

    Candidates and labeled records are clustered by k-means into as many clusters as there will be labels, at most 500.
    Clusters with the fewest labels come first, then the largest; those of five records or fewer last. A record is the
    more typical, the less its mean distance to its 20 nearest neighbours in the cluster. Time O(n k d) an iteration.
    """
    positions = problem.representatives
    n = len(positions)
    if k >= n:
        return positions
    points = np.concatenate([problem.embeddings[positions], problem.labeled])
    clusters = _clustered(points, min(len(problem.labeled) + k, MOST_CLUSTERS), problem)
    sizes = np.bincount(clusters)
    labels = np.bincount(clusters[n:], minlength=len(sizes))
    of = clusters[:n]
    remote = np.empty(n)
    for members in _groups(of):
        remote[members] = _remoteness(points[members])
    turn = np.empty(n, dtype=np.int64)
    by_type = np.lexsort((np.arange(n), remote))
    turn[by_type] = rank_within(of[by_type])
    order = np.lexsort((of, -sizes[of], labels[of] + turn, sizes[of] < SMALLEST_CLUSTER))
    return positions[order[:k]]


def _clustered(points: Floats32, count: int, problem: Problem) -> npt.NDArray[np.int64]:
    seed = int(row_hash(np.array([count]), problem.seed, problem.round)[0] >> np.uint64(32))
    centers = kmeans_plusplus(points, count, random_state=seed)[0]
    means = KMeans(count, init=centers, n_init=1, max_iter=20, algorithm="lloyd").fit(points)
    clusters: npt.NDArray[np.int64] = means.labels_.astype(np.int64)
    return clusters


def _groups(of: npt.NDArray[np.int64]) -> list[Positions]:
    """List the members of each group that has some, ascending."""
    order = np.argsort(of, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(of[order])) + 1)


def _remoteness(points: Floats32) -> Floats64:
    """Compute the mean distance of each record to its nearest neighbours; 0 where it has none."""
    near = min(TYPICAL_AMONG, len(points) - 1)
    remote, step = np.zeros(len(points)), max(1, _BLOCK_ENTRIES // len(points))
    for start in range(0, len(points) if near else 0, step):
        # The record itself is the nearest of all, at no distance.
        squared = np.partition(squared_distances(points[start : start + step], points), near, axis=1)[:, : near + 1]
        remote[start : start + step] = np.sqrt(squared).sum(axis=1) / near
    return remote
