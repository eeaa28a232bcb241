"""Choosing the batch: strategies, the order of records, and the diverse choice among the candidates.

Everything here is a pure function of values. Randomness comes from hashes of the row (:func:`row_hash`), never from a
generator that walks, so the order in which rows arrive cannot change what is chosen.
"""

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from dal import scores
from dal.errors import SettingsError

Rows = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]

SHORTLIST_OF_COLD_START = 2000
"""Candidates of a batch chosen by coverage alone: they stand for the whole pool, so a small batch needs many, too."""
STRATIFIED_SHARE = 0.5
"""Share of the shortlist that is spread over the cells; half guards against one large ambiguous region at hardly any
cost where there is none (10 % noise: area .813 against .798 global; no noise: .840 against .8385)."""
STRATIFIED_FROM = 20
"""Below this many rows per candidate the stratified half would force in rows that are not worth asking."""
ROWS_PER_CELL = 16
"""At least this many candidates for each cell."""
MOST_CELLS = 256
LEAF_ROWS = 1024
"""Candidates of one dense kernel: 4 MB, and 0.99 of the objective of one flat greedy."""
DUPLICATE_DISTANCE = 0.1
"""Records nearer than this, in bandwidths, to a chosen one are its near-duplicates."""
MOST_DEVIATIONS = np.float32(1e4)
_BANDWIDTH_SAMPLE = 2000


# -- the order of records ---------------------------------------------------------------------------------------------


def _splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix 64 bits so that each output bit depends on all input bits (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def row_hash(rows: Rows, seed: int, round: int) -> npt.NDArray[np.uint64]:
    """Hash rows: the only source of randomness in a scan or a selection.

    Parameters
    ----------
    rows : ndarray of int64
        Absolute rows of the pool.
    seed, round : int
        Another hash for each pair.

    Returns
    -------
    ndarray of uint64
        Uniform over all 64-bit values.

    Examples
    --------
    >>> rows = np.array([5, 6, 7])
    >>> bool((row_hash(rows, 1, 2)[1:] == row_hash(rows[1:], 1, 2)).all())
    True
    """
    mixed_seed = _splitmix64(np.array([seed % 2**64], dtype=np.uint64))
    with np.errstate(over="ignore"):
        mixed = _splitmix64(np.asarray(rows, dtype=np.int64).astype(np.uint64) ^ mixed_seed)
        return _splitmix64(mixed + np.uint64(round % 2**64))


def uniform(rows: Rows, seed: int, round: int) -> Floats64:
    """Give each row its own uniform number in (0, 1)."""
    return ((row_hash(rows, seed, round) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def key_order(score: Floats64, rows: Rows, seed: int, round: int) -> Positions:
    """Sort by key: positions, the best first.

    The key (score, hash, row) is a strict total order: higher scores first, equal scores by hash, equal hashes by row.
    Thousands of equal scores, as a saturated forest gives, are thus neither taken from the pool's head nor in an order
    that chunking could change.
    """
    return np.lexsort((rows, row_hash(rows, seed, round), -score)).astype(np.int64)


def best_by_key(score: Floats64, rows: Rows, count: int, seed: int, round: int) -> Positions:
    """Find the positions of the `count` best by key, in no particular order.

    The same set as ``key_order(...)[:count]``, but only the rows that tie at the boundary are hashed and sorted.
    """
    if count >= len(score):
        return np.arange(len(score))
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    boundary = np.partition(score, len(score) - count)[len(score) - count]
    above = np.flatnonzero(score > boundary)
    ties = np.flatnonzero(score == boundary)
    order = key_order(score[ties], rows[ties], seed, round)
    return np.concatenate([above, ties[order[: count - len(above)]]])


# -- strategies and what a scan must keep for them --------------------------------------------------------------------

Selector = Literal["top", "facility_location"]


@dataclass(frozen=True)
class Strategy:
    """How the batch of a round is chosen.

    Parameters
    ----------
    score : str, default="margin"
        A name out of :data:`dal.scores.NAMES`.
    selector : {"facility_location", "top"}, default="facility_location"
        ``top`` takes the best by key. ``facility_location`` takes a batch that covers the uncertain candidates, see
        :func:`select`; with the score ``random`` every candidate weighs the same, which is coverage of the pool.
    shortlist : int, default=10
        Candidates for each record of the batch.
    explore : float, default=0.05
        Share of what is asked that is drawn uniformly from the rows never asked: the honest ruler.

    Raises
    ------
    SettingsError
        If a value is out of its range.

    Examples
    --------
    >>> Strategy.named("default") == Strategy()
    True
    >>> Strategy.named("margin")
    Strategy(score='margin', selector='top', shortlist=1, explore=0.05)
    """

    score: str = "margin"
    selector: Selector = "facility_location"
    shortlist: int = 10
    explore: float = 0.05

    def __post_init__(self) -> None:
        scores.check_name(self.score)
        if self.selector not in ("top", "facility_location"):
            raise SettingsError(f"Expected the selector 'top' or 'facility_location', got {self.selector!r}.")
        if self.shortlist < 1:
            raise SettingsError(f"Expected a shortlist of at least 1 candidate a record, got {self.shortlist}.")
        if not 0.0 <= self.explore < 1.0:
            raise SettingsError(f"Expected an explore share of 0 or more and less than 1, got {self.explore}.")

    @classmethod
    def named(cls, name: str, explore: float = 0.05) -> "Strategy":
        """Give the strategy of this name.

        Parameters
        ----------
        name : str
            ``default``; ``coverage``, which needs no labels; or a score's name for the plain top of that score.
        explore : float, default=0.05

        Raises
        ------
        SettingsError
            If there is no such strategy; the message lists those there are.
        """
        if name == "default":
            return cls(explore=explore)
        if name == "coverage":
            return cls(score="random", explore=explore)
        if name in scores.NAMES:
            return cls(score=name, selector="top", shortlist=1, explore=explore)
        raise SettingsError(f"Expected a strategy out of {', '.join(STRATEGIES)}, got {name!r}.")

    def cold(self) -> "Strategy":
        """Give the strategy of a round that has no labels to learn from: coverage of the pool, or random as chosen."""
        return replace(self, score="random")

    def capacity(self, k: int, n_rows: int, n_cells: int | None = None) -> "Capacity":
        """Say what a scan must keep so that a batch of `k` can be chosen among `n_rows`.

        Parameters
        ----------
        k, n_rows : int
        n_cells : int, optional
            The cells there are. Without it the result says how many there should be.
        """
        total = self.shortlist * k
        if self.selector == "facility_location" and self.score == "random":
            total = max(total, SHORTLIST_OF_COLD_START)
        total = min(total, n_rows)
        cells = min(MOST_CELLS, total // ROWS_PER_CELL)
        if self.selector == "top" or n_rows < STRATIFIED_FROM * total or cells < 2:
            return Capacity(total, 0, 0)
        if n_cells is not None:
            # A sample of few distinct records has fewer cells than were wished for. A late, small batch wishes for far
            # fewer than the campaign has: spread over all of them it would be spread too thin.
            if n_cells < 2 or n_cells > 2 * cells:
                return Capacity(total, 0, 0)
            cells = n_cells
        return Capacity(total, cells, -int(-2 * STRATIFIED_SHARE * total // cells))


STRATEGIES: tuple[str, ...] = ("default", "coverage", *scores.NAMES)
"""The names :meth:`Strategy.named` knows."""


class Capacity(NamedTuple):
    """What a scan keeps, fixed before the pass: the best `total` rows, and the best `per_cell` of each cell.

    ``cells`` is 0 where nothing is stratified.
    """

    total: int
    cells: int
    per_cell: int


@dataclass(frozen=True)
class Candidates:
    """The best rows of a scan.

    Attributes
    ----------
    rows : ndarray of shape (n,), int64
        Absolute rows, ascending.
    scores : ndarray of shape (n,), float64
    cells : ndarray of shape (n,), int64
        Cell of each row; -1 where nothing is stratified.
    predicted : ndarray of shape (n,), int64
        Class code the learner predicts; -1 without a model.
    embeddings : ndarray of shape (n, d), float32
        Where the records stand for the sake of diversity; (n, 0) where the selector does not look.
    """

    rows: Rows
    scores: Floats64
    cells: Positions
    predicted: Positions
    embeddings: Floats32
    proba: Floats32 | None = field(default=None)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        parts = (self.rows, self.scores, self.cells, self.predicted, self.embeddings)
        return sum(part.nbytes for part in parts) + (self.proba.nbytes if self.proba is not None else 0)

    def take(self, positions: Positions) -> "Candidates":
        """Give the candidates at these positions, in this order."""
        return Candidates(
            self.rows[positions],
            self.scores[positions],
            self.cells[positions],
            self.predicted[positions],
            self.embeddings[positions],
            None if self.proba is None else self.proba[positions],
        )


# -- cells ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Codebook:
    """The space in which records are compared, and its coarse regions.

    Attributes
    ----------
    mean, scale : ndarray of shape (d,), float32
        Of the sample it was fitted on.
    centers : ndarray of shape (n_cells, d), float32
        In the embedded space.
    """

    mean: Floats32
    scale: Floats32
    centers: Floats32

    @classmethod
    def fit(cls, sample: Floats32, n_cells: int, seed: int) -> "Codebook":
        """Find the space and its cells from a sample of the pool.

        Parameters
        ----------
        sample : ndarray of shape (n, d), float32
            Rows with a value that is not finite are left out.
        n_cells : int
            At most one per row of the sample is made.
        seed : int
        """
        sample = sample[np.isfinite(sample).all(axis=1)]
        if not len(sample):
            raise SettingsError("Every sampled record has a NaN or infinite feature: there is nothing to compare.")
        mean = sample.mean(axis=0, dtype=np.float64)
        scale = sample.std(axis=0, dtype=np.float64)
        # A column that is constant but for rounding would be blown up to look like any other.
        scale[~(scale > 1e-6 * np.abs(mean))] = 1.0
        space = cls(mean.astype(np.float32), scale.astype(np.float32), np.empty((0, sample.shape[1]), np.float32))
        embedded = space.embed(sample)
        distinct = np.unique(embedded, axis=0)
        count = min(n_cells, len(distinct))
        if count < 1:
            return space
        with threadpool_limits(limits=1):
            means = KMeans(count, n_init=1, max_iter=20, random_state=seed % 2**32).fit(embedded)
        return replace(space, centers=means.cluster_centers_.astype(np.float32))

    def embed(self, X: Floats32) -> Floats32:
        """Standardise and divide by the square root of d, so that distances do not grow with the dimension.

        What is more than 10,000 deviations away is put there: its square would overflow in single precision.
        """
        with np.errstate(over="ignore"):
            standard = (X - self.mean) / self.scale
        np.clip(standard, -MOST_DEVIATIONS, MOST_DEVIATIONS, out=standard)
        embedded: Floats32 = standard / np.float32(np.sqrt(X.shape[1]))
        return embedded

    def assign(self, X: Floats32) -> npt.NDArray[np.uint16]:
        """Give each record the cell whose center is nearest; the first of equals.

        ``X`` is in feature space, (n, d), and finite.
        """
        centers = self.centers
        distances = (0.5 * (centers * centers).sum(axis=1)) - self.embed(X) @ centers.T
        return distances.argmin(axis=1).astype(np.uint16)

    def digest(self) -> str:
        """Name the codebook by its content."""
        sha = hashlib.sha256()
        for part in (self.mean, self.scale, self.centers):
            sha.update(np.ascontiguousarray(part).tobytes())
        return sha.hexdigest()


def shortlist(candidates: Candidates, capacity: Capacity, seed: int, round: int) -> Candidates:
    """Cut what a scan kept down to the shortlist: half by score alone, half spread over the cells.

    The quotas of the cells are water-filled: the largest q with sum over cells of min(kept, q) <= share of the total,
    so that small cells are exhausted and a large ambiguous one is capped.
    """
    everything = np.arange(len(candidates))
    if not capacity.cells:
        best = best_by_key(candidates.scores, candidates.rows, capacity.total, seed, round)
        return candidates.take(np.sort(best))
    stratified = int(STRATIFIED_SHARE * capacity.total)
    best = best_by_key(candidates.scores, candidates.rows, capacity.total - stratified, seed, round)
    order = key_order(candidates.scores, candidates.rows, seed, round)
    rank = _rank_within(candidates.cells[order])
    quota = _water_fill(np.bincount(candidates.cells, minlength=capacity.cells), stratified, capacity.per_cell)
    spread = order[rank < quota]
    return candidates.take(np.intersect1d(everything, np.union1d(best, spread)))


def _rank_within(groups: Positions) -> Positions:
    """Give each entry its rank among the earlier entries of its own group."""
    by_group = np.argsort(groups, kind="stable")
    ordered = groups[by_group]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[starts, len(ordered)])
    rank = np.empty(len(groups), dtype=np.int64)
    rank[by_group] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return rank


def _water_fill(counts: Positions, total: int, most: int) -> int:
    """Find the largest quota up to `most` with ``minimum(counts, quota).sum() <= total``."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(counts, middle).sum() <= total:
            low = middle
        else:
            high = middle - 1
    return low


# -- the choice -------------------------------------------------------------------------------------------------------


def select(
    candidates: Candidates,
    strategy: Strategy,
    k: int,
    labeled: Floats32,
    seed: int,
    round: int,
) -> Rows:
    r"""Choose the batch among the candidates.

    Parameters
    ----------
    candidates : Candidates
        In any order.
    strategy : Strategy
    k : int
        Records wanted.
    labeled : ndarray of shape (n_labeled, d), float32
        Embeddings of the records already asked: what they cover is not worth asking again.
    seed, round : int

    Returns
    -------
    ndarray of int64
        Rows in the order of choice; fewer than `k` where the candidates hold no more distinct records.

    Notes
    -----
    ``facility_location`` greedily maximises

    .. math:: F(S) = \sum_x w(x) \max\bigl(c_L(x), \max_{s \in S} K(x, s)\bigr),
              \quad K(x, s) = e^{-\lVert x - s \rVert^2 / \sigma^2}

    with w the score and :math:`c_L` the coverage by the labeled records (weighted facility location: FASS, Wei et al.
    2015, and uncertainty herding, Bae et al. 2025). F is monotone and submodular: greedy reaches 1 - 1/e of the best.
    The bandwidth is the median distance of labeled records to their nearest other one and shrinks as labels grow; the
    coverage then gives way to plain uncertainty. Where the score is ``random``, all weights are 1 and the bandwidth is
    twice the median distance of candidates: this is MaxHerding (Bae et al. 2024), which covers the pool.

    Candidates are split into leaves of at most 1,024 by recursive bisection and solved leaf by leaf, which keeps the
    cost linear in k; the picks are merged by their gains, the exact greedy of the decomposed objective. Near-duplicates
    of a pick or of a labeled record are not picked.
    """
    in_row_order = candidates.take(np.argsort(candidates.rows))
    k = min(k, len(in_row_order))
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    order = key_order(in_row_order.scores, in_row_order.rows, seed, round)
    if strategy.selector == "top":
        return in_row_order.rows[order[:k]]
    by_key = in_row_order.take(order)
    weights = np.ones(len(by_key)) if strategy.score == "random" else np.maximum(by_key.scores, 0.0)
    with threadpool_limits(limits=1):
        adaptive = strategy.score != "random"
        problem = _Coverage(
            by_key.embeddings, weights.astype(np.float32), by_key.rows, labeled, seed, round, adaptive=adaptive
        )
        return by_key.rows[problem.solve(k)]


class _Pick(NamedTuple):
    gain: float
    position: int


class _Coverage:
    """One weighted facility location; positions are ranks by key, the best first."""

    def __init__(
        self,
        embeddings: Floats32,
        weights: Floats32,
        rows: Rows,
        labeled: Floats32,
        seed: int,
        round: int,
        *,
        adaptive: bool,
    ) -> None:
        self.embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        self.weights = weights
        self.rows = rows
        self.seed = seed
        # Positions are in key order, so the first of identical records is the best of them.
        self.distinct = np.sort(_first_of_equals(self.embeddings))
        self.labeled = np.unique(np.ascontiguousarray(labeled, dtype=np.float32), axis=0)
        self.bandwidth = self._bandwidth(seed, round, adaptive=adaptive and len(self.labeled) > 1)
        self.covered = np.zeros(len(embeddings), dtype=np.float32)

    def _bandwidth(self, seed: int, round: int, *, adaptive: bool) -> float:
        if adaptive:
            points, factor = self.labeled, 1.0
            names = np.arange(len(points))
        else:
            # The pool itself is to be covered: twice the distance between neighbours, among distinct records only,
            # because the distances within copies of one record would collapse the bandwidth to zero.
            points, factor = self.embeddings[self.distinct], 2.0
            names = self.rows[self.distinct]
        if len(points) < 2:
            return 1.0
        sample = points[np.argsort(row_hash(names, seed, round))[:_BANDWIDTH_SAMPLE]]
        squared = _squared_distances(sample, sample)
        np.fill_diagonal(squared, np.inf)
        nearest = float(np.sqrt(np.median(squared.min(axis=1))))
        return factor * nearest if nearest > 0 else 1.0

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
        stack = [(self.distinct, self.labeled, 1)]
        while stack:
            members, labeled, node = stack.pop()
            if len(members) <= LEAF_ROWS:
                yield np.sort(members), labeled
                continue
            draw = int(row_hash(np.array([node]), self.seed, 0)[0] % np.uint64(len(members)))
            by_row = members[np.argsort(self.rows[members])]
            pivot = self.embeddings[by_row[draw]]
            points = self.embeddings[by_row]
            direction = points[int(((points - pivot) ** 2).sum(axis=1).argmax())] - pivot
            norm = float(np.linalg.norm(direction)) or 1.0
            projection = (points @ direction).astype(np.float64) / norm
            order = np.lexsort((self.rows[by_row], projection))
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
        squared = _squared_distances(a, b)
        squared *= np.float32(-1.0 / self.bandwidth**2)
        return np.exp(squared, out=squared)

    def _without_near_duplicates(self, positions: list[int]) -> list[int]:
        """Drop picks that are near-duplicates of an earlier pick, as there may be between leaves."""
        if len(positions) < 2:
            return positions
        points = self.embeddings[positions].astype(np.float64)
        tree = cKDTree(points)
        dropped = np.zeros(len(positions), dtype=bool)
        for index in range(len(positions)):
            if not dropped[index]:
                near = np.array(tree.query_ball_point(points[index], DUPLICATE_DISTANCE * self.bandwidth))
                dropped[near[near > index]] = True
        return [position for index, position in enumerate(positions) if not dropped[index]]

    def _filled(self, chosen: list[int]) -> list[int]:
        """Add records that no longer gain anything, by key, as long as they are nobody's near-duplicates.

        Where every candidate is a near-duplicate of a labeled record, as in a pool of few distinct records, one of each
        kind is asked again rather than nothing: people disagree, and an empty batch would end the campaign.
        """
        taken = set(chosen)
        fresh = self.covered[self.distinct] <= _duplicate_coverage()
        rest = self.distinct[fresh] if chosen or fresh.any() else self.distinct
        return self._without_near_duplicates(chosen + [p for p in rest.tolist() if p not in taken])


def _first_of_equals(points: Floats32) -> Positions:
    """Give the first position of each distinct record."""
    if not points.shape[1]:
        return np.arange(len(points))
    # Adding 0 turns -0.0 into 0.0: equal numbers must have equal bytes.
    as_bytes = np.ascontiguousarray(points + np.float32(0)).view(np.dtype((np.void, points.shape[1] * 4))).ravel()
    return np.unique(as_bytes, return_index=True)[1].astype(np.int64)


def _squared_distances(a: Floats32, b: Floats32) -> Floats32:
    squared: Floats32 = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2.0 * (a @ b.T)
    np.maximum(squared, 0, out=squared)
    return squared


def _gains(kernel: Floats32, covered: Floats32, weights: Floats32) -> Floats32:
    gains = np.empty(len(kernel), dtype=np.float32)
    for start in range(0, len(kernel), 256):
        gains[start : start + 256] = np.maximum(kernel[start : start + 256] - covered, 0) @ weights
    return gains


def _duplicate_coverage() -> float:
    """Coverage of a record at the distance below which it counts as a near-duplicate."""
    return float(np.exp(-(DUPLICATE_DISTANCE**2)))


# -- the explore share ------------------------------------------------------------------------------------------------


def explore_count(share: float, asked_before: int, explored_before: int, k: int) -> int:
    """Say how many of the next `k` records are drawn uniformly.

    Fractions are carried forward: over any number of rounds the explored records are the share of all asked, rounded
    down.

    Examples
    --------
    >>> explore_count(0.05, 0, 0, 10), explore_count(0.05, 10, 0, 10), explore_count(0.05, 20, 1, 10)
    (0, 1, 0)
    """
    due = int(np.floor(share * (asked_before + k) + 1e-9))
    return min(max(due - explored_before, 0), k)


def uniform_rows(n_rows: int, excluded: Rows, seed: int, round: int) -> Iterator[int]:
    """Draw rows uniformly, one after the other, out of those never asked; none twice.

    Parameters
    ----------
    n_rows : int
    excluded : ndarray of int64
        Ascending rows that may not be drawn.
    seed, round : int

    Yields
    ------
    int
        Until a thousand draws in a row find nothing new: then the pool is all but exhausted, and the rest follows in
        the order of its hashes.
    """
    seen = set(excluded.tolist())
    salt, misses = _splitmix64(np.array([seed % 2**64], dtype=np.uint64))[0], 0
    draw = 0
    while misses < 1000 and len(seen) < n_rows:
        # The high 64 bits of a product map a hash onto 0..n_rows-1 without the bias that a remainder has.
        row = int(row_hash(np.array([draw]), int(salt), round)[0]) * n_rows >> 64
        draw += 1
        misses = misses + 1 if row in seen else 0
        if not misses:
            seen.add(row)
            yield row
    if len(seen) < n_rows:
        rest = np.setdiff1d(np.arange(n_rows), np.fromiter(seen, np.int64, len(seen)))
        yield from rest[np.argsort(row_hash(rest, seed, round))].tolist()


def interleaved(chosen: list[int], drawn: list[int]) -> list[int]:
    """Mix the drawn rows evenly among the chosen, so that a batch left half answered is still a fair sample of both.

    Examples
    --------
    >>> interleaved([1, 2, 3, 4], [8, 9])
    [1, 8, 2, 3, 9, 4]
    """
    places = [((index + 1) * (len(chosen) + 1) / (len(drawn) + 1), 0, row) for index, row in enumerate(drawn)]
    places += [(index + 1.0, 1, row) for index, row in enumerate(chosen)]
    return [row for _, _, row in sorted(places, key=lambda place: place[:2])]
