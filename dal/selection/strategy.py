"""What a batch is chosen from: the order of records, strategies, candidates, cells, and the explore share.

Everything here is a pure function of values. Randomness comes from hashes of the row (:func:`row_hash`), never from a
generator that walks, so the order in which rows arrive cannot change what is chosen.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from dal import scores
from dal._threads import one_thread
from dal.errors import SettingsError

Rows = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]

SHORTLIST_OF_COLD_START = 2000
"""Candidates of a batch that looks at no score: they stand for the whole pool, so a small batch needs many, too."""
STRATIFIED_SHARE = 0.5
"""Share of the shortlist that is spread over the cells; half guards against one large ambiguous region at hardly any
cost where there is none (10 % noise: area .813 against .798 global; no noise: .840 against .8385)."""
STRATIFIED_FROM = 20
"""Below this many rows per candidate the stratified half would force in rows that are not worth asking."""
ROWS_PER_CELL = 16
"""At least this many candidates for each cell."""
MOST_CELLS = 256
CELL_AXES = 16
"""Axes in which cells are told apart. In all of 128 features the nearest of 256 centers takes several times as long as
reading and scoring by a linear model, in 16 about as long."""
_BLOCK_ROWS = 512
MOST_DEVIATIONS = np.float32(1e4)


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


def power_keys(score: Floats64, rows: Rows, beta: float, seed: int, round: int) -> Floats64:
    r"""Perturb scores so that the best `k` of them are a draw without replacement, with P in proportion to score^beta.

    The Gumbel top-k trick (Kool et al. 2019), as in stochastic batch acquisition (Kirsch et al. 2023):
    :math:`\beta \ln s + G` with :math:`G = -\ln(-\ln U)`, U uniform by hash. Rows of score 0 come last; those of score
    -inf, which are never asked, keep it.
    """
    floor = np.finfo(np.float64).tiny
    gumbel = -np.log(-np.log(uniform(rows, seed, round)))
    return np.where(np.isneginf(score), -np.inf, beta * np.log(np.maximum(score, floor)) + gumbel)


def power_masses(score: Floats64, beta: float) -> Floats64:
    """Give what each row has in the lottery of :func:`power_keys`: score^beta, and nothing for those never asked."""
    return np.where(np.isneginf(score), 0.0, np.maximum(score, np.finfo(np.float64).tiny)) ** beta


def propensities(score: Floats64, beta: float, mass: float) -> Floats64:
    r"""Give the probability of each draw of a power batch, at the time when it was drawn.

    Drawing the largest Gumbel keys one after the other is drawing in proportion to score^beta from what is left, so

    .. math:: q_m = s_m^\beta / (Z - \sum_{j<m} s_j^\beta)

    These are what an unbiased estimate from the batch needs (LURE; Farquhar et al. 2021).

    Parameters
    ----------
    score : ndarray of shape (k,)
        Of the drawn rows, in the order in which they were drawn.
    beta : float
    mass : float
        Z, the sum of score^beta over all rows that could be drawn: ``Summary.tally.power_mass`` of the scan.

    Examples
    --------
    >>> propensities(np.array([0.5, 0.25]), 1.0, 1.0).tolist()
    [0.5, 0.5]
    """
    masses = power_masses(score, beta)
    return masses / (mass - np.concatenate([[0.0], np.cumsum(masses)[:-1]]))


# -- strategies and what a scan must keep for them --------------------------------------------------------------------

Selector = Literal[
    "top",
    "power",
    "stratified",
    "cluster_margin",
    "facility_location",
    "max_herding",
    "k_center",
    "weighted_kmeans",
    "badge",
]


class Traits(NamedTuple):
    """What a selector needs to be given.

    Attributes
    ----------
    weighs : bool
        Scores that a model gives: without one there is nothing to weigh by.
    features : bool
        Where the records stand.
    spread : bool
        Candidates half of which are spread over the cells, where the pool is large.
    cells : bool
        The cell of every candidate, however small the pool.
    proba : bool
        Class probabilities of the candidates.
    """

    weighs: bool
    features: bool
    spread: bool
    cells: bool
    proba: bool


TRAITS: Mapping[Selector, Traits] = {
    "top": Traits(weighs=False, features=False, spread=False, cells=False, proba=False),
    "power": Traits(weighs=True, features=False, spread=False, cells=False, proba=False),
    "stratified": Traits(weighs=False, features=True, spread=True, cells=True, proba=False),
    # The method's own shortlist is the best of the whole pool.
    "cluster_margin": Traits(weighs=True, features=True, spread=False, cells=True, proba=False),
    "facility_location": Traits(weighs=True, features=True, spread=True, cells=False, proba=False),
    "max_herding": Traits(weighs=False, features=True, spread=True, cells=False, proba=False),
    "k_center": Traits(weighs=False, features=True, spread=True, cells=False, proba=False),
    "weighted_kmeans": Traits(weighs=True, features=True, spread=True, cells=False, proba=False),
    "badge": Traits(weighs=True, features=True, spread=True, cells=False, proba=True),
}


@dataclass(frozen=True)
class Strategy:
    """How the batch of a round is chosen.

    Parameters
    ----------
    score : str, default="margin"
        A name out of :data:`dal.scores.NAMES`.
    selector : str, default="facility_location"
        How the batch is taken out of the best by score: a name out of :data:`TRAITS`; see :func:`dal.selectors.select`.
    shortlist : int, default=10
        Candidates for each record of the batch.
    explore : float, default=0.05
        Share of what is asked that is drawn uniformly from the rows never asked: the honest ruler.
    beta : float, default=4.0
        Of the selector ``power``: records are drawn with probabilities in proportion to score^beta. 0 is uniform; the
        larger the pool for a batch, the larger it must be for the draw to differ from uniform.

    Raises
    ------
    SettingsError
        If a value is out of its range, or the selector weighs by scores and the score is ``random``.

    Examples
    --------
    >>> Strategy.named("default") == Strategy()
    True
    >>> Strategy.named("margin")
    Strategy(score='margin', selector='top', shortlist=1, explore=0.05, beta=4.0)
    """

    score: str = "margin"
    selector: Selector = "facility_location"
    shortlist: int = 10
    explore: float = 0.05
    beta: float = 4.0

    def __post_init__(self) -> None:
        scores.check_name(self.score)
        if self.selector not in TRAITS:
            raise SettingsError(f"Expected a selector out of {', '.join(TRAITS)}, got {self.selector!r}.")
        if self.score == "random" and self.traits.weighs:
            raise SettingsError(
                f"{self.selector} weighs records by what a model says of them; 'random' is no such score."
            )
        if self.shortlist < 1:
            raise SettingsError(f"Expected a shortlist of at least 1 candidate a record, got {self.shortlist}.")
        if not 0.0 <= self.explore < 1.0:
            raise SettingsError(f"Expected an explore share of 0 or more and less than 1, got {self.explore}.")
        if not 0.0 <= self.beta < np.inf:
            raise SettingsError(f"Expected a finite beta of 0 or more, got {self.beta}.")

    @classmethod
    def named(cls, name: str, explore: float = 0.05) -> "Strategy":
        """Give the strategy of this name.

        Parameters
        ----------
        name : str
            ``default``; ``coverage`` and others that need no labels; or a score's name for the plain top of that score.
        explore : float, default=0.05

        Raises
        ------
        SettingsError
            If there is no such strategy; the message lists those there are.
        """
        if name in _NAMED:
            return replace(_NAMED[name], explore=explore)
        if name in scores.NAMES:
            return cls(score=name, selector="top", shortlist=1, explore=explore)
        raise SettingsError(f"Expected a strategy out of {', '.join(STRATEGIES)}, got {name!r}.")

    @property
    def committee(self) -> bool:
        """Whether the score asks a committee."""
        return self.score in scores.OF_COMMITTEE

    @property
    def traits(self) -> Traits:
        """What the selector needs."""
        return TRAITS[self.selector]

    def cold(self) -> "Strategy":
        """Give the strategy of a round that has no labels to learn from: coverage of the pool, or random as chosen."""
        if not self.traits.weighs:
            return replace(self, score="random")
        return replace(self, score="random", selector="max_herding" if self.traits.features else "top")

    def n_cells(self, k: int, n_rows: int) -> int:
        """Say how many cells a campaign with batches of `k` should have; 0 where it has no use for them."""
        cells = min(MOST_CELLS, self._total(k, n_rows) // ROWS_PER_CELL)
        return max(cells, 2) if self.traits.cells else self.capacity(k, n_rows).cells

    def capacity(self, k: int, n_rows: int, n_cells: int | None = None) -> "Capacity":
        """Say what a scan must keep so that a batch of `k` can be chosen among `n_rows`.

        Parameters
        ----------
        k, n_rows : int
        n_cells : int, optional
            The cells there are. Without it the result says how many there should be.
        """
        total = self._total(k, n_rows)
        if self.selector == "power":
            return Capacity(total, 0, 0, self.beta)
        cells = min(MOST_CELLS, total // ROWS_PER_CELL)
        if not self.traits.spread or n_rows < STRATIFIED_FROM * total or cells < 2:
            return Capacity(total, 0, 0)
        if n_cells is not None:
            # A sample of few distinct records has fewer cells than were wished for. A late, small batch wishes for far
            # fewer than the campaign has: spread over all of them it would be spread too thin.
            if n_cells < 2 or n_cells > 2 * cells:
                return Capacity(total, 0, 0)
            cells = n_cells
        return Capacity(total, cells, -int(-2 * STRATIFIED_SHARE * total // cells))

    def _total(self, k: int, n_rows: int) -> int:
        total = self.shortlist * k
        if self.score == "random" and self.traits.features:
            total = max(total, SHORTLIST_OF_COLD_START)
        return min(total, n_rows)


_NAMED: Mapping[str, Strategy] = {
    "default": Strategy(),
    "coverage": Strategy("random", "max_herding"),
    "power": Strategy("margin", "power", shortlist=1),
    "weighted_kmeans": Strategy("margin", "weighted_kmeans"),
    "badge": Strategy("margin", "badge"),
    "cluster_margin": Strategy("margin", "cluster_margin"),
    "k_center": Strategy("random", "k_center"),
    "stratified": Strategy("random", "stratified"),
}
STRATEGIES: tuple[str, ...] = (*_NAMED, *scores.NAMES)
"""The names :meth:`Strategy.named` knows."""


class Capacity(NamedTuple):
    """What a scan keeps, fixed before the pass: the best `total` rows, and the best `per_cell` of each cell.

    ``cells`` is 0 where nothing is stratified. With a ``beta`` the best are those by :func:`power_keys`.
    """

    total: int
    cells: int
    per_cell: int
    beta: float | None = None

    def ranked(self, score: Floats64, rows: Rows, seed: int, round: int) -> Floats64:
        """Give the numbers by which rows are kept: their scores, unless these are only the odds of a draw."""
        return score if self.beta is None else power_keys(score, rows, self.beta, seed, round)

    @property
    def rows(self) -> int:
        """The most rows that are kept."""
        return self.total + self.cells * self.per_cell


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

    def without_embeddings(self) -> "Candidates":
        """Give the candidates with embeddings of no width."""
        return replace(self, embeddings=np.empty((len(self), 0), dtype=np.float32))

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
    axes : ndarray of shape (d, r), float32
        The leading principal axes of the embedded sample, at most 16: cells are told apart in these alone.
    centers : ndarray of shape (n_cells, r), float32
        In the space of the axes.
    """

    mean: Floats32
    scale: Floats32
    axes: Floats32
    centers: Floats32

    @classmethod
    @one_thread
    def fit(cls, sample: Floats32, n_cells: int, seed: int) -> "Codebook":
        """Find the space and its cells from a sample of the pool.

        Parameters
        ----------
        sample : ndarray of shape (n, d), float32
            Rows with an infinite value are left out; a missing one (NaN) counts as the mean of its column.
        n_cells : int
            At most one per row of the sample is made.
        seed : int
        """
        sample = sample[usable(sample, missing=True)]
        if not np.isfinite(sample).any():
            raise SettingsError("Every sampled record has a NaN or infinite feature: there is nothing to compare.")
        mean, scale = _moments(sample)
        # A column that is constant but for rounding would be blown up to look like any other.
        scale[~(scale > 1e-6 * np.abs(mean))] = 1.0
        nothing = np.empty((0, 0), np.float32)
        space = cls(mean.astype(np.float32), scale.astype(np.float32), nothing, nothing)
        if n_cells < 1:
            return space
        embedded = space.embed(sample)
        axes = _principal_axes(embedded)
        # Equal records first: in a product, they may come to differ in their last bits.
        distinct = np.unique(np.unique(embedded, axis=0) @ axes, axis=0)
        means = KMeans(min(n_cells, len(distinct)), n_init=1, max_iter=20, random_state=seed % 2**32)
        means.fit(embedded @ axes)
        return replace(space, axes=axes, centers=means.cluster_centers_.astype(np.float32))

    def embed(self, X: Floats32) -> Floats32:
        """Standardise and divide by the square root of d, so that distances do not grow with the dimension.

        What is more than 10,000 deviations away is put there: its square would overflow in single precision. What is
        missing (NaN) is put at the mean.
        """
        with np.errstate(over="ignore"):
            standard = (X - self.mean) / self.scale
        standard[np.isnan(standard)] = 0.0
        np.clip(standard, -MOST_DEVIATIONS, MOST_DEVIATIONS, out=standard)
        embedded: Floats32 = standard / np.float32(np.sqrt(X.shape[1]))
        return embedded

    @one_thread
    def assign(self, X: Floats32) -> npt.NDArray[np.uint16]:
        """Give each record the cell whose center is nearest along the axes; the first of equals.

        ``X`` is in feature space, (n, d); what is missing (NaN) is taken for the mean. It is taken in blocks that stay
        in the core's cache.
        """
        projection = self.axes / (self.scale * np.float32(np.sqrt(X.shape[1])))[:, None]
        halves = 0.5 * (self.centers * self.centers).sum(axis=1)
        cells = np.empty(len(X), dtype=np.uint16)
        # What overflows far from everything else is put into some cell, and always into the same one.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(X), _BLOCK_ROWS):
                centred = X[start : start + _BLOCK_ROWS] - self.mean
                along = centred @ projection
                if np.isnan(along).any():
                    # All of the block again: the last bits of a product depend on its height.
                    along = np.where(np.isnan(centred), np.float32(0), centred) @ projection
                cells[start : start + len(along)] = (halves - along @ self.centers.T).argmin(axis=1)
        return cells

    def digest(self) -> str:
        """Name the codebook by its content."""
        sha = hashlib.sha256()
        for part in (self.mean, self.scale, self.axes, self.centers):
            sha.update(np.ascontiguousarray(part).tobytes())
        return sha.hexdigest()


def _moments(sample: Floats32) -> tuple[Floats64, Floats64]:
    """Give the mean and deviation of each column's values that are there; 0 where there are none."""
    present = ~np.isnan(sample)
    if present.all():
        return sample.mean(axis=0, dtype=np.float64), sample.std(axis=0, dtype=np.float64)
    count = np.maximum(present.sum(axis=0), 1)
    values = np.where(present, sample, 0.0).astype(np.float64)
    mean = values.sum(axis=0) / count
    return mean, np.sqrt((np.where(present, values - mean, 0.0) ** 2).sum(axis=0) / count)


def _principal_axes(embedded: Floats32) -> Floats32:
    """Find the leading principal axes, (d, r), of at most 16; the eigenvectors of the covariance (Pearson, 1901)."""
    centered = embedded.astype(np.float64) - embedded.mean(axis=0, dtype=np.float64)
    vectors = np.linalg.eigh(centered.T @ centered)[1][:, ::-1][:, :CELL_AXES]
    return np.ascontiguousarray(vectors, dtype=np.float32)


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
    rank = rank_within(candidates.cells[order])
    quota = _water_fill(np.bincount(candidates.cells, minlength=capacity.cells), stratified, capacity.per_cell)
    spread = order[rank < quota]
    return candidates.take(np.intersect1d(everything, np.union1d(best, spread)))


def rank_within(groups: Positions) -> Positions:
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


def usable(X: Floats32, *, missing: bool) -> npt.NDArray[np.bool_]:
    """Mark the records that a learner can be given: all features finite, or missing where it takes such records.

    An infinite feature is no missing one: no learner is given it.
    """
    finite = np.isfinite(X).all(axis=1)
    return ~np.isinf(X).any(axis=1) if missing and not finite.all() else finite


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
