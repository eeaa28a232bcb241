"""A pass by waves: whole blocks in a hash order, wave after wave, until the last row that is kept is good enough. Pure.

In a large pool the best few thousand rows of a tenth are about as uncertain as those of the whole. A pass by waves is
exact over the blocks that it has declared, and says what it left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt

import numpy as np
import numpy.typing as npt

from dal.errors import SettingsError
from dal.scan.plan import Interval, remaining
from dal.selection.candidates import Candidates, Capacity
from dal.selection.order import row_hash

Rows = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]

_ORDER = -2
"""In place of a round: the order of blocks is the same for a whole campaign. -1 draws the stop set."""
_LEAST_BLOCKS = 32
"""In a sorted pool neighbours are alike: of fewer blocks a wave would show too few of its places."""
_FEWEST_READ_UNITS, _MOST_BLOCKS = 1_000, 50_000
"""Each block of a wave is a task at least, which costs Dask 1 to 2 ms."""
_FIRST_SHARE = 100


@dataclass(frozen=True)
class Waves:
    """The terms of a pass by waves, fixed before anything is read.

    Attributes
    ----------
    floor : float
        The share of the best score that the last kept row must reach, above 0 and at most 1. Where rows are drawn with
        their scores as odds: 1 - the chance of the best one to be drawn.
    after : int or None
        The first row of the block after which the first wave begins, in the order of blocks; None at the beginning of
        the order.
    rows_for_each : int
        Rows that are scored at least for each row that is kept regardless of its cell. Where a tenth of the pool is
        about as uncertain as can be, such as records whose class is drawn by lot, a shortlist of a tenth of what is
        scored reaches any floor, and has no room for other records.

    Raises
    ------
    SettingsError
        If one of them has another value.
    """

    floor: float
    after: int | None = None
    rows_for_each: int = 40

    def __post_init__(self) -> None:
        if not 0 < self.floor <= 1:
            raise SettingsError(f"`floor` must be above 0 and at most 1, got {self.floor!r}")
        if self.rows_for_each < 1:
            raise SettingsError(f"`rows_for_each` must be at least 1, got {self.rows_for_each!r}")


@dataclass(frozen=True)
class Carried:
    """Rows that an earlier pass has kept, which this one scores again wherever its waves are.

    Attributes
    ----------
    rows : ndarray of int64
        Ascending.
    X : ndarray of shape (n, d), float32
    """

    rows: Rows
    X: Floats32

    def __len__(self) -> int:
        return len(self.rows)

    def without(self, excluded: Rows) -> "Carried":
        """Return the rows that are not excluded."""
        left = ~np.isin(self.rows, excluded)
        return Carried(self.rows[left], self.X[left])


@dataclass(frozen=True)
class Reach:
    """The part of the pool that a pass by waves has scored, and how good the rows are that it keeps.

    Attributes
    ----------
    waves : int
    blocks, n_blocks : int
        Scored, and those of the pool.
    rows : int
        Of the scored blocks.
    carried : int
        Rows of earlier passes that were scored again.
    floor : float
        As in :class:`Waves`.
    reached : float
        What it is compared with; where it is less than `floor`, the whole pool was scored.
    bound : float or None
        Rows that may be asked and rank before the last row kept regardless of its cell, as a share of the pool's rows,
        at most, at 95 %. Rows asked before and their near-duplicates are not among them. None where rows are drawn,
        fewer than wanted are there, or some are `copied`.
    after : int
        First row of the last block, where the next round begins.
    copied : bool
        Whether rows were left out that equal a kept one and do not rank behind the last of those kept regardless of
        their cells. Nobody has counted them, and copies may be any share of the pool.
    """

    waves: int
    blocks: int
    n_blocks: int
    rows: int
    carried: int
    floor: float
    reached: float
    bound: float | None
    after: int
    copied: bool = False

    def __str__(self) -> str:
        text = (
            f"{self.waves} wave{'s' if self.waves > 1 else ''}: {self.rows:,} rows, {self.blocks / self.n_blocks:.1%}"
        )
        if self.bound is not None:
            text += f"; the best are within the best {self.bound:.2%} of what may be asked at 95 %"
        elif self.copied:
            text += "; some of the best have copies, so that the share of the pool that ranks before them is unknown"
        return text if self.reached >= self.floor else f"{text}; the floor {self.floor:g} was not reached"


def block_rows(n_rows: int, tile: int, unit: int) -> int:
    """Return the rows of a block: one unit of reading, a part of it in a pool of few units, or several in one of many.

    Parameters
    ----------
    n_rows : int
        Of the pool.
    tile : int
        The most rows that are scored at once.
    unit : int
        Whole tiles that are best read together.

    Examples
    --------
    >>> [block_rows(n_rows, 16_384, 524_288) // 16_384 for n_rows in (10**6, 10**8, 10**9, 10**11)]
    [1, 4, 32, 128]
    """
    if n_rows >= _FEWEST_READ_UNITS * unit:
        units = -(-n_rows // (_MOST_BLOCKS * unit))
        return unit << (units - 1).bit_length()
    tiles = n_rows // (_FEWEST_READ_UNITS * tile)
    return tile << max(0, tiles.bit_length() - 1)


def ordered_blocks(n_rows: int, block: int, seed: int, after: int | None) -> Rows:
    """Return the numbers of all blocks in the order in which waves take them.

    By hash, so that rows which are appended change nothing about the order of the others; from the block after that
    of the row `after`, and round.

    Examples
    --------
    >>> order = ordered_blocks(1_000, 100, seed=3, after=None)
    >>> sorted(order.tolist()) == list(range(10))
    True
    >>> ordered_blocks(1_000, 100, seed=3, after=100 * int(order[6])).tolist() == [*order[7:], *order[:7]]
    True
    """
    numbers = np.arange(-(-n_rows // block), dtype=np.int64)
    hashes = row_hash(numbers * block, seed, _ORDER)
    order = numbers[np.argsort(hashes, kind="stable")]
    if after is None:
        return order
    # The block may be gone where the size of blocks has changed: what counts is its place in the order.
    first = np.array([after // block * block], dtype=np.int64)
    return np.roll(order, -int(np.searchsorted(hashes[order], row_hash(first, seed, _ORDER)[0], side="right")))


def wave_ends(n_blocks: int, least: int = 0) -> list[int]:
    """Return how many blocks are scored after each wave: half as many again with each, from the `least` of the first.

    Waves of one size would be too many where the whole pool is scored in the end, and each costs a pause of all
    workers.

    Examples
    --------
    >>> wave_ends(10_000)
    [100, 150, 225, 338, 507, 761, 1142, 1713, 2570, 3855, 5783, 8675, 10000]
    >>> wave_ends(40), wave_ends(20), wave_ends(100, least=70)
    ([32, 40], [20], [70, 100])
    """
    ends = [min(max(least, _LEAST_BLOCKS, -(-n_blocks // _FIRST_SHARE)), n_blocks)]
    while ends[-1] < n_blocks:
        ends.append(min(-(-3 * ends[-1] // 2), n_blocks))
    return ends


def intervals_of(blocks: Rows, block: int, n_rows: int) -> list[Interval]:
    """Return the rows of blocks as ascending intervals, neighbours as one.

    Examples
    --------
    >>> intervals_of(np.array([7, 2, 3, 9]), 10, n_rows=95)
    [Interval(start=20, stop=40), Interval(start=70, stop=80), Interval(start=90, stop=95)]
    """
    numbers = np.sort(blocks)
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return [Interval(int(run[0]) * block, min((int(run[-1]) + 1) * block, n_rows)) for run in runs if len(run)]


def without(intervals: Sequence[Interval], done: Sequence[Interval], n_rows: int) -> list[Interval]:
    """Return what is left of ascending intervals when others are done.

    Examples
    --------
    >>> without([Interval(0, 10), Interval(20, 30)], [Interval(4, 6), Interval(20, 30)], n_rows=40)
    [Interval(start=0, stop=4), Interval(start=6, stop=10)]
    """
    left, gaps = [], remaining(n_rows, done)
    at = 0
    for start, stop in intervals:
        while at < len(gaps) and gaps[at].stop <= start:
            at += 1
        inside = at
        while inside < len(gaps) and gaps[inside].start < stop:
            left.append(Interval(max(start, gaps[inside].start), min(stop, gaps[inside].stop)))
            inside += 1
    return left


class Course:
    """The waves of one pass: the one that is scored, and those that may follow.

    Parameters
    ----------
    waves : Waves
    n_rows : int
        Of the pool.
    block : int
        Rows of a block.
    seed : int
    total : int
        Rows that are kept regardless of their cells.
    """

    def __init__(self, waves: Waves, n_rows: int, block: int, seed: int, total: int) -> None:
        self.waves = waves
        self._n_rows = n_rows
        self._block = block
        self._order = ordered_blocks(n_rows, block, seed, waves.after)
        self._ends = wave_ends(len(self._order), -(-waves.rows_for_each * total // block))
        self.begun = 0
        """Waves that are scored, or were."""

    @property
    def is_over(self) -> bool:
        """Whether the whole pool is scored."""
        return self.begun == len(self._ends)

    def next(self) -> list[Interval]:
        """Begin the next wave, and return its rows."""
        self.begun += 1
        start = self._ends[self.begun - 2] if self.begun > 1 else 0
        return intervals_of(self._order[start : self._ends[self.begun - 1]], self._block, self._n_rows)

    def resume(self, done: Sequence[Interval]) -> list[Interval]:
        """Begin all waves up to the last of which something is done, and return what is left of them.

        Those before it did not reach the floor: else it would not have been begun. Rows of them that were skipped are
        tried again.
        """
        left = self.next()
        if done:
            numbers = np.array([start // self._block for start, _ in done], dtype=np.int64)
            last = int(np.max(np.flatnonzero(np.isin(self._order, numbers))))
            while last >= self._ends[self.begun - 1]:
                left += self.next()
        return without(sorted(left), done, self._n_rows)

    @property
    def rows(self) -> int:
        """The rows of all waves that were begun."""
        blocks = self._order[: self._blocks]
        short = -self._n_rows % self._block if (blocks == len(self._order) - 1).any() else 0
        return self._blocks * self._block - short

    @property
    def _blocks(self) -> int:
        return self._ends[self.begun - 1] if self.begun else 0

    def reach(
        self,
        capacity: Capacity,
        kept: Candidates,
        last: float | None,
        best: float | None,
        carried: Carried,
        skipped: int = 0,
        repeated: float = -inf,
    ) -> Reach:
        """Describe what was scored.

        Parameters
        ----------
        capacity : Capacity
        kept : Candidates
            What the pass keeps.
        last : float or None
            What ranks the last of the rows that are kept regardless of their cells; None where these are fewer than
            wanted.
        best : float or None
            Highest score; None without any row.
        carried : Carried
        skipped : int, default=0
            Rows of the waves that could not be scored.
        repeated : float, default=-inf
            The most that ranks a row left out because it equals another one.
        """
        bound, rows = None, self.rows - skipped
        copied = last is not None and repeated >= last
        if capacity.beta is None and last is not None and not copied:
            among = kept.rows[kept.scores >= last]
            known = np.isin(among, carried.rows)
            counts = np.unique(among[~known] // self._block, return_counts=True)[1]
            # The carried ones are not drawn like the others: they are known to be in the pool.
            bound = quantile_bound(counts, self._blocks, len(self._order), rows)
            bound = min(1.0, bound + int(known.sum()) / self._n_rows)
        return Reach(
            self.begun,
            self._blocks,
            len(self._order),
            rows,
            len(carried),
            self.waves.floor,
            nearness(capacity, last, best),
            bound,
            int(self._order[self._blocks - 1]) * self._block,
            copied,
        )


def nearness(capacity: Capacity, last: float | None, best: float | None) -> float:
    r"""Return how near the last kept row comes to the best one: what is compared with the floor.

    The share of the best score that the last one has. Where rows are drawn with :math:`u^\beta` as odds, one of score
    :math:`u` is drawn with the chance :math:`1 - e^{-z}`, :math:`z = u^\beta e^{-T}`, of the last key :math:`T`: the
    closer :math:`z` of the best one is to 0, the less the draw depends on how many rows it is made from.

    Parameters
    ----------
    capacity : Capacity
    last, best : float or None
        As in :meth:`Course.reach`.

    Returns
    -------
    float
        At most 1; -inf where too few rows are kept, or scores are not positive, so that they have no shares.

    Examples
    --------
    >>> nearness(Capacity(10, 0, 0), 0.45, 0.5)
    0.9
    >>> round(nearness(Capacity(10, 0, 0, beta=1.0), 2.0, 0.5), 3)
    0.932
    """
    if last is None or best is None or best <= 0:
        return -inf
    if capacity.beta is None:
        return last / best
    return 1.0 - exp(min(capacity.beta * log(best) - last, 700.0))


def quantile_bound(counts: npt.NDArray[np.int64], blocks: int, n_blocks: int, rows: int) -> float:
    """Bound the share of the pool's rows that rank before the last kept one, at 95 %.

    The largest of three bounds: that of Clopper and Pearson (1934) for rows in random order; the same for blocks, each
    with as many such rows as those that have some, and one by the spread between blocks, which are drawn without
    replacement, for pools in which neighbours are alike. None knows that scoring stopped because of what it had found,
    which makes them a little too low.

    Parameters
    ----------
    counts : ndarray of int64
        Of the blocks with such rows: how many each has.
    blocks, n_blocks : int
        Blocks that were scored, and those of the pool.
    rows : int
        Of the scored blocks.

    Examples
    --------
    >>> even, one = np.full(100, 10), np.array([1_000])
    >>> [round(quantile_bound(counts, 100, 10_000, 100_000), 4) for counts in (even, one)]
    [0.0105, 0.0466]
    >>> quantile_bound(even, 100, 100, 100_000)
    0.01
    """
    from scipy.special import betaincinv, stdtrit  # only here: a full pass needs neither

    found = int(counts.sum())
    share = found / rows
    if blocks == n_blocks:
        return share
    if blocks == 1:
        return 1.0
    exact = float(betaincinv(found + 1, max(rows - found, 1), 0.95))
    # A block without any could have held nothing else.
    of_block = found / max(len(counts), 1) * blocks / rows if found else 1.0
    some = of_block * float(betaincinv(len(counts) + 1, max(blocks - len(counts), 1), 0.95))
    squares = float(np.square(counts - found / blocks).sum()) + (blocks - len(counts)) * (found / blocks) ** 2
    error = sqrt((1 - blocks / n_blocks) * blocks / (blocks - 1) * squares) / rows
    return min(1.0, max(exact, some, share + float(stdtrit(blocks - 1, 0.95)) * error))
