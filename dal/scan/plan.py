"""Cut a pass over the pool into tiles, units and spans: pure arithmetic on rows."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dal.selection.candidates import Capacity
from dal.selection.order import row_hash

NO_LIMIT = 2**62


@dataclass(frozen=True)
class Limits:
    """The sizes and times by which a pass is cut and watched; the defaults suit pools of any size.

    No limit changes which rows a pass keeps, but for `tile_rows` and `tile_bytes`, with which the last bits of scores
    may change.

    Attributes
    ----------
    tile_rows, tile_bytes : int
        Of a tile as float32.
    tasks : int
        Of a pass.
    span_bytes : int
        Of features as they are stored.
    spans_per_thread : int
        At least, where the pool is large enough.
    span_seconds : float
        At the pace measured so far.
    tasks_per_second : int
        Of the whole cluster: a task costs Dask's scheduler 1 to 2 ms, on a cluster of any size.
    shortest_seconds, last_tasks_per_second : float, int
        The last spans are not cut shorter, nor so short that the scheduler could not follow.
    up_share, up_rows : int
        Candidates that all spans in flight may bring: `up_share` times the kept rows, or `up_rows` if that is more.
    sounded_share, tiles_per_sounding : int
        At most one row in `sounded_share` is scored twice, to know thresholds before the first span is sent.
    kept_bytes : int
        Candidates with their features that a worker keeps; larger ones, as of images, are read again in the end.
    attempts : int
        Tries of a span that fails.
    probe_seconds : float
        Until a host must have answered, before the pass.
    coordinator_bytes : int, optional
        Memory of the coordinator. Default: what its machine, or its container, has.
    threads : int, optional
        Of a pass in this process, where dal's own kernels score; with any other learner it is one. Default: one for
        each core, at most `most_threads`.
    most_threads : int
        Each holds a chunk and a few tiles, and more than a few wait for Python's lock.
    """

    tile_rows: int = 16_384
    tile_bytes: int = 8 * 2**20
    tasks: int = 20_000
    span_bytes: int = 2**30
    spans_per_thread: int = 4
    span_seconds: float = 3.0
    tasks_per_second: int = 50
    shortest_seconds: float = 0.05
    last_tasks_per_second: int = 250
    up_share: int = 8
    up_rows: int = 250_000
    sounded_share: int = 100
    tiles_per_sounding: int = 4
    kept_bytes: int = 128 * 2**20
    attempts: int = 3
    probe_seconds: float = 60.0
    coordinator_bytes: int | None = None
    threads: int | None = None
    most_threads: int = 4


LIMITS = Limits()


class Interval(NamedTuple):
    """Rows from `start` up to, not including, `stop`."""

    start: int
    stop: int


def tile_rows(n_features: int, preferred: int | None = None, limits: Limits = LIMITS) -> int:
    """Return the height of a tile, the unit of scoring.

    A power of two, at absolute offsets, the last one zero-padded: a matrix product's last bits depend on its height, so
    only one height for all gives the same scores for any chunking.

    Parameters
    ----------
    n_features : int
    preferred : int, optional
        What suits the learner.

    Returns
    -------
    int
        At most 16,384 and at most 8 MiB of float32, at least 1.

    Examples
    --------
    >>> tile_rows(128), tile_rows(1_000), tile_rows(128, preferred=4096), tile_rows(10_000_000)
    (16384, 2048, 4096, 1)
    """
    most = min(
        limits.tile_rows if preferred is None else preferred, limits.tile_rows, limits.tile_bytes // (4 * n_features)
    )
    return 1 << max(0, most.bit_length() - 1)


def unit_rows(tile: int, write_rows: int) -> int:
    """Return the rows that are never split between spans: whole tiles and, where that is possible, whole shards.

    A foreign pool whose chunks do not fit the tiles is cut at tiles alone; the chunk at the cut is then read by both
    neighbours.

    Examples
    --------
    >>> unit_rows(16_384, 32_768), unit_rows(16_384, 8_192), unit_rows(16_384, 5_000)
    (32768, 16384, 16384)
    """
    whole = int(np.lcm(tile, write_rows))
    return whole if whole <= 4 * max(tile, write_rows) else tile * -(-write_rows // tile)


def span_rows(
    n_rows: int, row_bytes: int, threads: int, unit: int, rows_per_second: float | None, limits: Limits = LIMITS
) -> int:
    """Return the rows of a span, the unit of work.

    By, in this order: at most 2e4 tasks a pass; several spans a thread; about three seconds each at the pace measured
    so far on one thread; 1 GiB, or as much as it takes to keep the tasks of a large cluster under 50 a second.

    Examples
    --------
    >>> span_rows(10_000_000, 512, 2, 32_768, None) // 32_768
    38
    >>> span_rows(10_000_000, 512, 2, 32_768, rows_per_second=20_000)
    32768
    >>> span_rows(10**10, 512, 256, 32_768, rows_per_second=1e6) // 32_768
    91
    """
    rows, several = limits.span_bytes // row_bytes, -(-n_rows // (limits.spans_per_thread * threads))
    if rows_per_second is not None:
        rows = max(rows, int(rows_per_second * threads / limits.tasks_per_second))
        rows = min(rows, int(rows_per_second * limits.span_seconds))
    rows = max(min(rows, several), -(-n_rows // limits.tasks), unit)
    return rows // unit * unit


def shrinking_rows(left: int, threads: int, rows_per_second: float, limits: Limits = LIMITS) -> int:
    """Return the most rows of a span that is sent when `left` rows are left: half of a thread's share.

    Workers end at different times; the shorter the last spans, the less the others wait for the last one
    (Polychronopoulos and Kuck, Guided self-scheduling, 1987).

    Examples
    --------
    >>> [shrinking_rows(left, 2, 3e6) for left in (10_000_000, 2_000_000, 1_000_000)]
    [2500000, 500000, 250000]
    """
    shortest = max(limits.shortest_seconds, threads / limits.last_tasks_per_second)
    return max(left // (2 * threads), int(rows_per_second * shortest))


def in_flight(threads: int) -> int:
    """Return the tasks to keep in flight: two a thread, so that none waits for the coordinator.

    Fewer for large clusters: there spans are long, and a waiting one knows the thresholds of when it was sent.

    Examples
    --------
    >>> in_flight(1), in_flight(2), in_flight(32), in_flight(256)
    (3, 4, 64, 320)
    """
    return threads + max(2, min(threads, 32 + threads // 8))


def growing_rows(seen: int, threads: int, capacity: Capacity, limits: Limits = LIMITS) -> int:
    """Return the most rows of a span that is sent now, so that spans in flight do not drown the coordinator.

    Of `n` rows that are sent with the thresholds which `seen` rows have set, about ``n * kept / seen`` pass them, and
    never more than are kept.

    Parameters
    ----------
    seen : int
        Rows out of which the thresholds are.
    threads : int
    capacity : Capacity

    Examples
    --------
    >>> growing_rows(10_000_000, 256, Capacity(100_000, 256, 391))
    250000
    >>> growing_rows(0, 2, Capacity(10_000, 256, 40)) == NO_LIMIT
    True
    """
    most, spans = max(limits.up_share * capacity.rows, limits.up_rows), in_flight(threads)
    return most * seen // (spans * capacity.rows) if spans * capacity.rows > most else NO_LIMIT


def soundings(
    n_rows: int, tile: int, threads: int, capacity: Capacity, seed: int, limits: Limits = LIMITS
) -> list[Interval]:
    """Choose rows that are scored for the thresholds alone, ahead of the first spans: all of these begin at once.

    A few tiles a thread, as far as it costs little of the pass; none where first spans without thresholds bring little.

    Examples
    --------
    >>> some = soundings(10**9, 16_384, 256, Capacity(100_000, 256, 391), seed=0)
    >>> len(some), all(start % 32_768 == 0 and stop - start == 32_768 for start, stop in some)
    (254, True)
    >>> soundings(10**9, 16_384, 2, Capacity(10_000, 256, 40), seed=0)
    []
    """
    tiles = n_rows // (limits.sounded_share * tile)
    if growing_rows(0, threads, capacity, limits) == NO_LIMIT or not tiles:
        return []
    count = min(threads, tiles)
    rows = tile * min(tiles // count, limits.tiles_per_sounding)
    numbers = row_hash(np.arange(count, dtype=np.int64), seed, 3) % np.uint64(n_rows // rows)
    return [Interval(rows * number, rows * (number + 1)) for number in dict.fromkeys(numbers.tolist())]


def share_of(capacity: Capacity, count: int) -> Capacity:
    """Return the per-sample capacity that makes the combined threshold reliable.

    Three times its share, since half of them must be enough and samples differ. Fewer rows than there are only make a
    lower threshold, never a wrong one.

    Examples
    --------
    >>> share_of(Capacity(100_000, 256, 391), 500)
    Capacity(total=600, cells=256, per_cell=3, beta=None, per_class=())
    """
    total, per_cell, *per_class = (
        -(-3 * rows // count) for rows in (capacity.total, capacity.per_cell, *capacity.per_class)
    )
    return capacity._replace(total=total, per_cell=per_cell, per_class=tuple(per_class))


_MICROSECONDS = {
    "LogisticRegression": 0.0,
    "TunedLogisticRegression": 0.0,
    "SGDClassifier": 0.0,
    "LinearDiscriminantAnalysis": 0.0,
    "GaussianNB": 1.0,
    "DecisionTreeClassifier": 0.5,
    "MLPClassifier": 5.0,
    "RandomForestClassifier": 15.0,
    "ExtraTreesClassifier": 15.0,
    "HistGradientBoostingClassifier": 40.0,
}
"""What a record costs one core beside its features and classes, by the estimator's class: with its default settings."""
_MICROSECONDS_OF_OTHERS = 200.0
"""Of an estimator that is not known: as much as of nearest neighbours or a kernel machine among a thousand labels."""
_MICROSECONDS_OF_CANDIDATE = 100.0
"""What choosing the batch costs for each row that is kept."""


def seconds_alone(
    n_rows: int,
    n_features: int,
    n_classes: int,
    *,
    kind: str | None,
    members: int = 1,
    candidates: int = 0,
    rows_per_second: float | None = None,
) -> float:
    """Estimate how long one process takes for a pass over the pool and the choice of a batch.

    Parameters
    ----------
    n_rows, n_features, n_classes : int
    kind : str or None
        Class name of the estimator; None where rows are not scored by a model.
    members : int, default=1
        Of the committee, where the score asks one.
    candidates : int, default=0
        Rows that are kept.
    rows_per_second : float, optional
        The pace of one thread in an earlier pass like this one; goes before what is known of the estimator.

    Examples
    --------
    >>> [round(seconds_alone(5_574, 64, 2, kind=kind), 2) for kind in (None, "LogisticRegression", "SVC")]
    [0.0, 0.0, 1.12]
    >>> kinds = ["RandomForestClassifier", "HistGradientBoostingClassifier", "MLPClassifier", "KNeighborsClassifier"]
    >>> [round(seconds_alone(500_000, 64, 10, kind=kind)) for kind in kinds]
    [8, 20, 3, 100]
    >>> round(seconds_alone(10_000_000, 128, 10, kind="LogisticRegression", candidates=10_000))
    7
    >>> seconds_alone(500_000, 64, 10, kind="KNeighborsClassifier", rows_per_second=1_000_000)
    0.5
    """
    if rows_per_second is not None:
        scoring = n_rows / rows_per_second
    else:
        # Reading, the cell and the comparison with the threshold; then a product with a matrix of the classes.
        plain = 0.1 + n_features * 0.002
        model = (
            0.0 if kind is None else n_features * n_classes * 0.0002 + _MICROSECONDS.get(kind, _MICROSECONDS_OF_OTHERS)
        )
        scoring = n_rows * (plain + members * model) / 1e6
    return scoring + min(candidates, n_rows) * _MICROSECONDS_OF_CANDIDATE / 1e6


class WorkerBytes(NamedTuple):
    """The memory that a pass takes in a worker process, in bytes: once a process, and once a thread.

    Attributes
    ----------
    base : int
        The interpreter with all that is imported: 300 to 410 MiB, by how much of the libraries lies in the page cache.
    model : int
        The model, with what loading it takes.
    holding : int
        The best rows of all spans scored so far, until the end of the pass.
    reading : int
        The chunk held, and what decoding it takes.
    scoring : int
        A few copies of a tile, and what its classes and cells take.
    keeping : int
        The best rows, with what a compression or sending them takes.
    """

    base: int
    model: int
    holding: int
    reading: int
    scoring: int
    keeping: int

    def for_threads(self, threads: int) -> int:
        """Return the sum for a process with this number of threads."""
        return self.base + self.model + self.holding + threads * (self.reading + self.scoring + self.keeping)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value / 2**20:,.0f}" for name, value in self._asdict().items()) + " MiB"


def worker_bytes(
    *,
    tile: int,
    n_features: int,
    itemsize: int,
    chunk_rows: int,
    n_classes: int,
    n_cells: int,
    kept_bytes: int,
    slack: float,
    candidate: int,
    model_bytes: int,
    scratch_bytes: int = 0,
    limits: Limits = LIMITS,
) -> WorkerBytes:
    """Predict the memory of a worker process; it does not depend on the rows of the pool.

    `model_bytes` is the size of the model's file. `scratch_bytes` is the memory of a prediction beside its records; a
    network knows it, and for other learners it is 0.

    Examples
    --------
    >>> print(worker_bytes(tile=16_384, n_features=128, itemsize=4, chunk_rows=32_768, n_classes=10, n_cells=0,
    ...                    kept_bytes=5_440_000, slack=4.0, candidate=544, model_bytes=10_000))
    base 350, model 0, holding 16, reading 48, scoring 38, keeping 60 MiB
    """
    record = n_features * itemsize
    unit = max(chunk_rows * record, limits.tile_bytes)
    return WorkerBytes(
        # A worker of `dask worker` takes 285 MiB for its imports, one of the local cluster's fork server 175 MiB.
        base=350 * 2**20,
        # Its file, the estimator read from it, and trees laid out flat: a forest takes about 1.6 times its file.
        model=3 * model_bytes,
        holding=3 * kept_bytes,
        reading=3 * unit,
        scoring=tile * (4 * 4 * n_features + 4 * 8 * max(n_classes, 2) + 4 * n_cells + 64) + scratch_bytes,
        keeping=2 * (int(slack * kept_bytes) + (1024 + tile) * candidate),
    )


def candidate_bytes(capacity: Capacity, n_features: int) -> int:
    """Return the most bytes of kept rows: 40 a row, and its features where these are wanted."""
    return capacity.rows * (40 + 4 * n_features)


def coordinator_bytes(
    capacity: Capacity, n_rows: int, slack: float, *, carried: int, n_features: int, added: int
) -> int:
    """Predict the memory that the candidates of a pass take in the coordinator.

    Parameters
    ----------
    capacity : Capacity
    n_rows : int
        Of the pool.
    slack : float
        Rows are compressed at this multiple of what that leaves.
    carried : int
        Numbers that come along with a candidate of a span: embeddings of a network, probabilities.
    n_features : int
        Of the pool, where these are wanted in the end; else 0.
    added : int
        Numbers of a candidate that are asked for in the end.

    Examples
    --------
    >>> wanted = {"carried": 0, "n_features": 128, "added": 0}
    >>> coordinator_bytes(Capacity(10_000, 0, 0), 10**7, 4.0, **wanted) // 2**20
    10
    >>> coordinator_bytes(Capacity(10_000, 0, 0), 100, 4.0, **wanted) // 2**10
    107
    """
    rows = min(capacity.rows, n_rows)
    most = min(int(slack * capacity.rows) + 1024, n_rows)
    one = candidate_bytes(Capacity(1, 0, 0), carried)
    # Compressing copies what the order of all looks at, and all of those that stay.
    merging = most * (one + candidate_bytes(Capacity(1, 0, 0), 0)) + rows * one
    # The features come from several places, and are joined.
    return max(merging, rows * (2 * one + 2 * 4 * (n_features + added)))


def proba_numbers(n_proba: int, n_classes: int) -> int:
    """Return the numbers of four bytes that hold some class probabilities of a candidate.

    Examples
    --------
    >>> proba_numbers(10, 10), proba_numbers(10, 100)
    (10, 30)
    """
    return n_proba * (1 if n_proba == n_classes else 3)  # a class is told by eight bytes


def remaining(n_rows: int, done: Sequence[Interval]) -> list[Interval]:
    """Return the intervals of the pool that are not done.

    Examples
    --------
    >>> remaining(10, [Interval(4, 6), Interval(0, 2)])
    [Interval(start=2, stop=4), Interval(start=6, stop=10)]
    """
    left, position = [], 0
    for start, stop in sorted(done):
        if position < start:
            left.append(Interval(position, start))
        position = max(position, stop)
    if position < n_rows:
        left.append(Interval(position, n_rows))
    return left


def cut(intervals: Sequence[Interval], rows: int, seed: int) -> list[Interval]:
    """Cut intervals into spans of at most `rows` rows, in seeded order.

    The order is random because neighbours are alike: a class that fills the pool's head would otherwise raise no
    threshold for the rest. Cuts fall on multiples of `rows`, thus on whole units.

    Examples
    --------
    >>> sorted(cut([Interval(2, 9)], 4, seed=0))
    [Interval(start=2, stop=4), Interval(start=4, stop=8), Interval(start=8, stop=9)]
    """
    spans = [span for interval in intervals for span in _pieces(interval, rows)]
    starts = np.array([span.start for span in spans], dtype=np.int64)
    return [spans[position] for position in np.argsort(row_hash(starts, seed, 0), kind="stable")]


def _pieces(interval: Interval, rows: int) -> Iterator[Interval]:
    for edge in range(interval.start // rows * rows, interval.stop, rows):
        yield Interval(max(edge, interval.start), min(edge + rows, interval.stop))


class Feed:
    """Spans in the order in which they are sent, each cut when it is sent.

    A span that is cut leaves its rest at the end, so that short first spans are spread over the pool, and the rests are
    short last ones.

    Examples
    --------
    >>> feed = Feed()
    >>> feed.extend([Interval(0, 8), Interval(8, 16)])
    >>> [tuple(feed.next(most, unit=2)) for most in (4, 100, 100)], feed.rows
    ([(0, 4), (8, 16), (4, 8)], 0)
    """

    def __init__(self) -> None:
        self.rows = 0
        self._spans: deque[Interval] = deque()

    def __bool__(self) -> bool:
        return bool(self._spans)

    def extend(self, spans: Sequence[Interval]) -> None:
        """Add spans at the end."""
        self._spans.extend(spans)
        self.rows += sum(stop - start for start, stop in spans)

    def again(self, span: Interval) -> None:
        """Put a span back, to be sent next."""
        self._spans.appendleft(span)
        self.rows += span.stop - span.start

    def next(self, most: int, unit: int) -> Interval:
        """Return the next span, of about `most` rows or fewer, in whole units and at least one."""
        span = self._spans.popleft()
        edge = (span.start + max(most, unit)) // unit * unit
        # A rest of less than a quarter is not worth a task.
        if 4 * (span.stop - edge) > edge - span.start:
            self._spans.append(Interval(edge, span.stop))
            span = Interval(span.start, edge)
        self.rows -= span.stop - span.start
        return span


def probes(intervals: Sequence[Interval], unit: int, count: int, seed: int) -> tuple[list[Interval], list[Interval]]:
    """Take `count` single units off the intervals: short first spans that measure the pace and set the thresholds.

    Returns
    -------
    probes, rest : list of Interval

    Examples
    --------
    >>> first, rest = probes([Interval(0, 12)], 4, 1, seed=0)
    >>> sorted(first + rest) in ([(0, 4), (4, 12)], [(0, 4), (4, 8), (8, 12)], [(0, 8), (8, 12)])
    True
    """
    total = sum(-(-interval.stop // unit) - interval.start // unit for interval in intervals)
    if total <= count:
        return cut(intervals, unit, seed), []
    # One out of each of `count` equal shares: numbers drawn from all of them may be the same, and a worker would wait.
    edges = np.arange(count + 1) * total // max(count, 1)
    lengths = np.diff(edges).astype(np.uint64)
    hashes = row_hash(np.arange(count, dtype=np.int64), seed, 1)
    wanted = (edges[:-1] + (hashes % lengths).astype(np.int64)).tolist()
    first, rest, base = [], [], 0
    for interval in intervals:
        offset = interval.start // unit
        units = -(-interval.stop // unit) - offset
        low, high = bisect_left(wanted, base), bisect_left(wanted, base + units)
        inside = [w - base + offset for w in wanted[low:high]]
        taken = [Interval(max(u * unit, interval.start), min((u + 1) * unit, interval.stop)) for u in inside]
        first += taken
        rest += [Interval(a + interval.start, b + interval.start) for a, b in _gaps(interval, taken)]
        base += units
    return first, rest


def _gaps(interval: Interval, taken: Sequence[Interval]) -> list[Interval]:
    shifted = [Interval(start - interval.start, stop - interval.start) for start, stop in taken]
    return remaining(interval.stop - interval.start, shifted)
