"""The selectors but facility location; those that look at all candidates at each step are for batches of thousands."""

from dataclasses import replace

import numpy as np
from scipy.special import ndtri
from sklearn.cluster import KMeans, kmeans_plusplus

from dal.selection.distances import Floats32, squared_distances, squared_to_nearest
from dal.selection.facility_location import facility_location
from dal.selection.order import Floats64, Positions, rank_within, row_hash, uniform
from dal.selection.problem import Problem

SQUASHED = 1 / 3
"""A column is squashed where the middle half of its values is narrower than this, in parts of a normal column's."""
_QUANTILE_SAMPLE = 2**14


def top(problem: Problem, k: int) -> Positions:
    """Take the best `k` by key; near-duplicates and all, because it does not look where records stand."""
    return np.arange(min(k, len(problem)))


def stratified(problem: Problem, k: int) -> Positions:
    """Take one record of each cell in turn: the best by key, and so a random one where the score is a hash.

    The cells' order within a turn is random. Stratified sampling with equal shares, as far as the cells have records.
    """
    positions = problem.representatives
    cells = problem.cells[positions]
    turn = rank_within(cells)
    order = np.lexsort((cells, row_hash(cells, problem.seed, problem.round), turn))
    return positions[order[:k]]


def cluster_margin(problem: Problem, k: int) -> Positions:
    """Take one random record of each cell in turn, of the smallest cells first.

    Cluster-Margin (Citovsky et al. 2021), with coarse cells in place of its hierarchical clustering: a cell's size is
    the number of candidates in it, so that a crowd of alike uncertain records gives no more than any other cell.
    Time O(n log n).
    """
    positions = problem.representatives
    shuffled = positions[np.lexsort((positions, row_hash(problem.rows[positions], problem.seed, problem.round)))]
    cells = problem.cells[shuffled]
    _, inverse, counts = np.unique(cells, return_inverse=True, return_counts=True)
    order = np.lexsort((cells, counts[inverse], rank_within(cells)))
    return shuffled[order[:k]]


def max_herding(problem: Problem, k: int) -> Positions:
    """Choose the records that cover all candidates, each of the same weight (MaxHerding, Bae et al. 2024).

    See :func:`dal.selection.facility_location.facility_location`. Where a column has a long tail, as amounts of money
    have, it is compared by its normal scores: standardised, nearly all of its values lie in one spot, and all picks
    among them. The bandwidth is then no less than the distance at which a pick covers its share of the candidates.
    Records without such a column are compared as they are.
    """
    return facility_location(_unsquashed(problem, k), k)


def _unsquashed(problem: Problem, k: int) -> Problem:
    """Replace squashed columns by the normal scores of their values' ranks among the candidates."""
    points = problem.embeddings
    sample = points[np.argsort(row_hash(problem.rows, problem.seed, problem.round))[:_QUANTILE_SAMPLE]]
    low, high = np.percentile(sample, [25, 75], axis=0)
    # Half of a normal column lies within 1.349 deviations. Of a column with one value in most records, no half is wide.
    middle = (high - low) / 1.349
    squashed = np.flatnonzero((middle > 0) & (middle < SQUASHED * sample.std(axis=0, dtype=np.float64)))
    if not len(squashed):
        return problem
    embeddings, labeled = points.copy(), problem.labeled.copy()
    for column in squashed.tolist():
        known = np.sort(sample[:, column])
        for values in (embeddings, labeled):
            below = [np.searchsorted(known, values[:, column], side) for side in ("left", "right")]
            values[:, column] = ndtri((below[0] + below[1] + 1) / (2 * len(known) + 2)) / np.sqrt(points.shape[1])
    straight = replace(problem, embeddings=embeddings, labeled=labeled)
    return replace(straight, least_bandwidth=straight.crowding(len(straight.distinct) // k))


def k_center(problem: Problem, k: int) -> Positions:
    """Take the record farthest from all that are labeled or taken, again and again (core-set; Sener and Savarese 2018).

    Farthest-first traversal (Gonzalez 1985): the largest distance of a candidate to its center is at most twice the
    smallest possible. Without labels it begins with the best by key. Time O(n k d). It seeks outliers.
    """
    positions = problem.representatives
    points = problem.embeddings[positions]
    distances = squared_to_nearest(points, problem.labeled)
    chosen = np.empty(min(k, len(positions)), dtype=np.int64)
    for step in range(len(chosen)):
        chosen[step] = np.argmax(distances)
        np.minimum(distances, squared_distances(points, points[chosen[step], None])[:, 0], out=distances)
        distances[chosen[step]] = -1.0
    return positions[chosen]


def weighted_kmeans(problem: Problem, k: int) -> Positions:
    """Take the record nearest to each centroid of a k-means in which each counts by its weight (Zhdanov 2019).

    The clusters of the largest weight come first. Time O(n k d) an iteration.
    """
    positions = problem.representatives
    if k >= len(positions):
        return positions
    points, weights = problem.embeddings[positions], problem.weights[positions].astype(np.float64)
    if not weights.any():
        weights = np.ones(len(points))
    seed = int(row_hash(np.array([k]), problem.seed, problem.round)[0] >> np.uint64(32))
    centers = kmeans_plusplus(points, k, sample_weight=weights, random_state=seed)[0]
    means = KMeans(k, init=centers, n_init=1, max_iter=100, algorithm="lloyd").fit(points, sample_weight=weights)
    nearest = squared_distances_to(points, means.cluster_centers_[means.labels_])
    order = np.lexsort((np.arange(len(points)), nearest, means.labels_))
    first = order[rank_within(means.labels_[order]) == 0]
    mass = np.bincount(means.labels_, weights, minlength=k)[means.labels_[first]]
    return positions[_filled(first[np.argsort(-mass, kind="stable")], len(points), k)]


def badge(problem: Problem, k: int) -> Positions:
    r"""Draw a diverse batch of large gradients: k-means++ on gradient embeddings (BADGE; Ash et al. 2020).

    The gradient of the log loss in the last layer's weights and intercepts, were the predicted class the true one, is
    :math:`g = q \otimes (h, 1)` with :math:`q = p - e_{\hat y}`. It is never formed:

    .. math:: \langle g_i, g_j \rangle = \langle q_i, q_j \rangle (\langle h_i, h_j \rangle + 1)

    The first pick has the largest gradient; each further one is drawn with a probability in proportion to its squared
    distance to the nearest pick (Arthur and Vassilvitskii 2007). Time O(n k (d + C)), memory O(n (d + C)).
    """
    positions = problem.representatives
    if problem.proba is None:
        raise ValueError("badge needs the candidates' probabilities")
    h = problem.embeddings[positions].astype(np.float64)
    q = problem.proba[positions].astype(np.float64)
    q[np.arange(len(q)), q.argmax(axis=1)] -= 1.0
    norms = (q * q).sum(axis=1) * ((h * h).sum(axis=1) + 1.0)
    draws = uniform(np.arange(k, dtype=np.int64), problem.seed, problem.round)
    chosen: list[int] = []
    # Infinity, not the norms: these are distances to the origin, which would stay in as a center that nobody picked.
    distances = np.full(len(positions), np.inf)
    while len(chosen) < min(k, len(positions)) and distances.any():
        pick = _drawn(distances, float(draws[len(chosen)])) if chosen else int(np.argmax(norms))
        chosen.append(pick)
        to_pick = norms + norms[pick] - 2.0 * (q @ q[pick]) * (h @ h[pick] + 1.0)
        np.minimum(distances, np.maximum(to_pick, 0.0), out=distances)
        distances[pick] = 0.0
    return positions[_filled(np.array(chosen, dtype=np.int64), len(positions), k)]


def _drawn(weights: Floats64, draw: float) -> int:
    """Draw an index in proportion to its weight, by one number in (0, 1)."""
    reached = np.cumsum(weights)
    index = int(np.searchsorted(reached, draw * reached[-1], side="right"))
    # Rounding may point behind the last that has any weight.
    return min(index, int(np.flatnonzero(weights)[-1]))


def _filled(chosen: Positions, n: int, k: int) -> Positions:
    """Add the best by key that are not chosen, up to `k`."""
    rest = np.setdiff1d(np.arange(n), chosen)
    return np.concatenate([chosen, rest[: max(k - len(chosen), 0)]])


def squared_distances_to(points: Floats32, others: Floats32) -> Floats32:
    """Compute the squared distance of each point to its own other one."""
    squared: Floats32 = ((points - others) ** 2).sum(axis=1)
    return squared
