"""The state of one pass over the pool: what is done, what is left, what has been kept."""

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import numpy.typing as npt

from dal._threads import allowed_threads
from dal.learners.models import Model
from dal.metrics import Metric, gauge
from dal.pool import Pool, Reader
from dal.scan import plan
from dal.scan.journal import Journal
from dal.scan.merge import Best, no_thresholds
from dal.scan.plan import LIMITS, Interval, Limits
from dal.scan.waves import Carried, Course, Reach, Waves, block_rows, nearness
from dal.scan.worker.histogram import BINS
from dal.scan.worker.kept import Kept
from dal.scan.worker.kernel import KERNEL_VERSION, Cells, Order, SpanResult, Tally, Task, score_rows, score_span
from dal.scores import OF_ONE_MODEL
from dal.selection.candidates import UNUSABLE, Candidates, Capacity

Floats32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Progress:
    """The progress of a pass; handed to the ``progress`` callback after each span.

    Attributes
    ----------
    rows_done, rows_total : int
        Of a pass by waves: the rows of those that were begun.
    rows_resumed : int
        Of those done, how many a journal brought in.
    bytes_read : int
        In this process, without what was resumed.
    seconds : float
        Since the pass began, in this process.
    best : float or None
        The best score so far.
    failed : int
        Spans that failed and were tried again.
    waiting : str
        The reason why nothing goes on just now; empty where it does.
    wave : int
        The wave that is scored, from 1; 0 in a full pass.
    """

    rows_done: int
    rows_total: int
    rows_resumed: int
    bytes_read: int
    seconds: float
    best: float | None
    failed: int
    waiting: str = ""
    wave: int = 0

    @property
    def rows_per_second(self) -> float:
        """The pace of this process."""
        return (self.rows_done - self.rows_resumed) / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        if self.waiting:
            return self.waiting
        megabytes = self.bytes_read / 2**20 / max(self.seconds, 1e-9)
        said = f"{self.rows_per_second:,.0f} rows/s, {megabytes:,.1f} MiB/s"
        if self.wave:
            said += f", wave {self.wave}"
        if self.best is not None:
            said += f", best score {self.best:.4f}"
        if self.failed:
            said += f", {self.failed:,} spans tried again"
        return said


def progress_metrics(progress: Progress | None = None) -> list[Metric]:
    """Return the newest progress of a scan in numbers to watch; zeros before the first."""
    now = progress or Progress(0, 0, 0, 0, 0.0, None, 0)
    return [
        gauge("dal_scan_rows", "Rows to score, in the scan that runs or ran last.", now.rows_total),
        gauge("dal_scan_rows_done", "Rows of it that are scored.", now.rows_done),
        gauge("dal_scan_rows_per_second", "Pace of it so far.", now.rows_per_second),
        gauge("dal_scan_bytes_read", "Bytes of features that it has read.", now.bytes_read),
        gauge("dal_scan_spans_failed", "Spans of it that failed and were tried again.", now.failed),
    ]


@dataclass(frozen=True)
class Summary:
    """The counts of a pass.

    Attributes
    ----------
    tally : Tally
    seconds : float
        Of this process; spans that a journal brought in cost nothing.
    spans : int
    spans_resumed : int
        Of those, how many came from the journal.
    wrote_cells : bool
        Whether the cell of every row is now stored.
    bytes_up : int
        Of candidates that spans sent to this process, as they lie in its memory.
    rows_again : int
        Rows that were scored more than once: in spans that were begun by a worker that then left, or that failed, and
        for the sake of first thresholds.
    thread_seconds : float
        Of all threads that scored spans: rows by it is the pace of one.
    skipped : tuple of Interval
        Spans that failed every time and were left out, where that was asked for.
    notes : tuple of str
        What the person at the coordinator should know, such as workers of different kinds.
    total : int
        Rows that are kept regardless of their cells, where there are as many.
    last, best : float or None
        Lowest score of these, and the highest of all; `last` is None where they are fewer, or drawn.
    reach : Reach or None
        What a pass by waves has scored; None of a full pass.
    """

    tally: Tally
    seconds: float
    spans: int
    spans_resumed: int
    wrote_cells: bool
    bytes_up: int
    rows_again: int
    thread_seconds: float
    skipped: tuple[Interval, ...]
    notes: tuple[str, ...]
    total: int
    last: float | None
    best: float | None
    reach: Reach | None


@dataclass(frozen=True)
class Scan:
    """The result of a pass: the best rows, and what was counted on the way.

    Without a single candidate where every row was asked before or is invalid.
    """

    candidates: Candidates
    summary: Summary

    def __repr__(self) -> str:
        tally = self.summary.tally
        lines = [
            f"Scan: {len(self.candidates):,} candidates of {tally.rows:,} rows in {self.summary.seconds:.1f} s"
            f" ({tally.rows / max(self.summary.seconds, 1e-9):,.0f} rows/s)"
        ]
        if self.summary.reach is not None:
            lines.append(str(self.summary.reach))
        if tally.invalid:
            lines.append(f"{tally.invalid:,} rows {UNUSABLE}: they are never asked")
        if self.summary.skipped:
            rows = sum(stop - start for start, stop in self.summary.skipped)
            lines.append(f"{rows:,} rows were skipped, because their spans failed every time")
        if again := self.summary.rows_again:
            lines.append(f"{again:,} rows ({again / max(tally.rows, 1):.1%}) were scored more than once")
        heights, (low, high) = self._heights(), tally.histogram.edges
        lines.append(
            f"scores {low:g} |{''.join(' ▁▂▃▄▅▆▇█'[round(8 * height)] for height in heights)}| {high:g}  (log scale)"
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Show the scan in a notebook, with the histogram of its scores."""
        bars = "".join(
            f'<rect x="{5 * i}" y="{80 - 80 * height:.1f}" width="4" height="{80 * height:.1f}" fill="#0072B2"/>'
            for i, height in enumerate(self._heights())
        )
        low, high = self.summary.tally.histogram.edges
        said = "<br>".join(line for line in repr(self).splitlines()[:-1])
        return (
            f'<div>{said}<br><svg width="{5 * BINS}" height="82" role="img" aria-label="histogram of scores">'
            f"{bars}</svg><br><small>scores from {low:g} to {high:g}, number of records on a log scale</small></div>"
        )

    def _heights(self) -> list[float]:
        counts = np.log1p(self.summary.tally.histogram.counts)
        return [float(height) for height in counts / max(float(counts.max()), 1.0)]


class Run:
    """The state of one pass; the two engines feed :meth:`finish`."""

    def __init__(
        self,
        pool: Pool,
        model: Model | None,
        order: Order,
        excluded: Rows,
        cells: Cells | None,
        journal: Journal | None,
        progress: Callable[[Progress], None] | None,
        limits: Limits = LIMITS,
        waves: Waves | None = None,
        carried: Carried | None = None,
    ) -> None:
        self.pool = pool
        self.limits = limits
        self.model = model
        self.order = order
        self.carried = carried or Carried(excluded[:0], np.empty((0, pool.n_features), dtype=np.float32))
        # Scored here, and once: the waves leave them out.
        self.excluded = np.union1d(excluded, self.carried.rows) if len(self.carried) else excluded
        self.cells = cells
        self.journal = journal
        self.progress = progress
        self.started = time.perf_counter()
        # Embeddings come with the candidates of each span; features wait at the workers.
        self.best = Best(order.capacity, order.seed, order.round, replace(order, carry=False).slack)
        self._sounded = Best(order.capacity, order.seed, order.round)
        self._soundings = self._soundings_done = self.sounded_rows = self.rows_again = 0
        self.tally = Tally.zero(len(model.classes) if model else 0)
        self.spans = self.failed = self.bytes_up = 0
        self.thread_seconds = 0.0
        self.repeated = -inf
        self.skipped: list[Interval] = []
        self.notes: list[str] = []
        self.top: float | None = None
        self.unit = plan.unit_rows(order.tile, pool.write_rows)
        self.model_digest = model.digest if model is not None else ""
        self.row_bytes = pool.n_features * pool.dtype.itemsize
        self.course: Course | None = None
        if waves is not None:
            tile = plan.tile_rows(pool.n_features, None, limits)
            block = block_rows(pool.n_rows, tile, plan.unit_rows(tile, pool.unit_rows()))
            self.course = Course(waves, pool.n_rows, block, order.seed, order.capacity.total)
        self.digest = self._digest()
        done = self._resumed()
        self.resumed, self.resumed_tally = len(done), self.tally
        self._score_carried()
        self.left = plan.remaining(pool.n_rows, done) if self.course is None else self.course.resume(done)

    def _digest(self) -> str:
        order = self.order
        parts = (
            KERNEL_VERSION,
            self.pool.fingerprint,
            self.pool.n_rows,
            self.model_digest,
            (order.score, tuple(order.capacity), order.tile, order.seed, order.round, order.missing),
            (order.inner, order.proba),
            order.codebook.digest() if order.codebook else "",
            hashlib.sha256(self.excluded.tobytes()).hexdigest(),
            self.cells.write if self.cells else None,
            order.likeness.digest() if order.likeness else "",
            order.where.text if order.where else "",
            None if self.course is None else self.course.waves,
            hashlib.sha256(self.carried.rows.tobytes()).hexdigest(),
            order.familiar.digest() if order.familiar else "",
            order.once.digest() if order.once else "",
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _resumed(self) -> list[Interval]:
        if self.journal is None:
            return []
        self.journal.open(self.digest)
        done = []
        for result in self.journal.results():
            self._merge(result)
            done.append(result.interval)
        return done

    def _merge(self, result: SpanResult) -> None:
        self.spans += 1
        self.tally += result.tally
        self.thread_seconds += result.seconds
        self.repeated = max(self.repeated, result.repeated)
        if result.candidates is not None:
            self.bytes_up += result.candidates.nbytes
            self._add(result.candidates)

    def _add(self, candidates: Candidates) -> None:
        self.best.add(candidates)
        top = float(np.max(candidates.scores))
        self.top = top if self.top is None else max(self.top, top)

    def _score_carried(self) -> None:
        """Score again what an earlier pass has kept: here, for it is little, and its features are at hand."""
        if len(self.carried):
            carried = self.carried
            found, mass, repeated = score_rows(self.pool, self.model, self.order, carried.rows, carried.X)
            self.repeated = max(self.repeated, repeated)
            self.tally += replace(Tally.zero(len(self.tally.predicted)), mass=mass)
            if found is not None:
                self._add(found)

    def more(self) -> list[Interval]:
        """Return the rows of the next wave when those of the last are scored; nothing where it was the last one."""
        if self.course is None or self.course.is_over:
            return []
        reached = nearness(self.order.capacity, *self.best.settle())
        return [] if reached >= self.course.waves.floor else self.course.next()

    def finish(self, result: SpanResult) -> None:
        """Take in a span that was just scored."""
        if self.journal is not None:
            self.journal.add(result)
        self._merge(result)
        self.say("")

    def say(self, waiting: str) -> None:
        """Show the progress, and the reason why nothing goes on."""
        if self.progress is not None:
            rows, resumed = self.tally.rows, self.resumed_tally.rows
            read = self.tally.bytes_read - self.resumed_tally.bytes_read
            seconds = time.perf_counter() - self.started
            total, wave = (self.pool.n_rows, 0) if self.course is None else (self.course.rows, self.course.begun)
            self.progress(Progress(rows, total, resumed, read, seconds, self.top, self.failed, waiting, wave))

    def skip(self, interval: Interval, why: str) -> None:
        """Leave a span out for good, and say why."""
        self.skipped.append(interval)
        self.notes.append(why)

    def task(self, interval: Interval) -> Task:
        """Make the task of a span."""
        return Task(interval, self._excluded_of(interval), self.best.tighten(self.tally.rows), None)

    def sounding(self, interval: Interval, share: Capacity) -> Task:
        """Make the task of a tile that is scored for the thresholds alone."""
        return Task(interval, self._excluded_of(interval), no_thresholds(share), share)

    def _excluded_of(self, interval: Interval) -> Rows:
        if not len(self.excluded):
            return self.excluded
        low, high = np.searchsorted(self.excluded, interval)
        return self.excluded[low:high]

    def soundings(self, threads: int) -> list[Interval]:
        """Choose what is scored for the thresholds alone, where nothing has set any yet."""
        if self.resumed or self.course is not None:
            return []  # rows of waves that are never reached must not set thresholds
        order = self.order
        chosen = plan.soundings(self.pool.n_rows, order.tile, threads, order.capacity, order.seed, self.limits)
        self._soundings = len(chosen)
        return chosen

    @property
    def sounded_enough(self) -> bool:
        """Whether the soundings have shown enough: half of them, for waiting for the last would leave workers idle."""
        return 2 * self._soundings_done >= self._soundings

    def sound(self, result: SpanResult | None) -> None:
        """Take the best scores of a sounding in; None where it failed."""
        self._soundings_done += 1
        if result is not None and result.candidates is not None:
            self._sounded.add(result.candidates)
            self.sounded_rows += result.tally.rows
        # Raised earlier or by the way, thresholds would be those of the first few for a long time: of a hundred
        # soundings, which bring three times their share, those of thirty tell next to nothing, and those of fifty all.
        if self._soundings_done in (-(-self._soundings // 2), self._soundings):
            self.best.raise_to(self._sounded.tighten_now())

    def growing_rows(self, threads: int) -> int:
        """Return the most rows of a span that is sent now, for the sake of what it may bring."""
        seen = max(self.tally.rows, self.sounded_rows)
        return plan.growing_rows(seen, threads, self.order.capacity, self.limits)

    def span_rows(self, left: Sequence[Interval], threads: int, rows_per_second: float | None) -> int:
        """Return the rows of a span of what is left for this number of threads at this pace."""
        rows = self.pool.n_rows if self.course is None else sum(stop - start for start, stop in left)
        return plan.span_rows(rows, self.row_bytes, threads, self.unit, rows_per_second, self.limits)

    def in_process(self) -> Scan:
        """Score what is left here: the specification of every other engine."""
        kept = Kept(self.order) if self.order.carry else None
        reader = self.pool.reader()
        left = self.left or self.more()
        while left:
            threads = self._threads(left)
            if threads > 1:
                self._score_side_by_side(left, threads, kept)
            else:
                self._score_in_turn(left, reader, kept)
            left = self.more()

        def features(rows: Rows) -> Floats32:
            return with_the_rest(rows, [] if kept is None else [kept.features(rows)], self.pool.take)

        return self.result(features)

    def _threads(self, left: Sequence[Interval]) -> int:
        """Return the threads that score what is left here; one where they would run code that is not dal's own."""
        score = self.order.score
        plain = isinstance(score, str) and score in (*OF_ONE_MODEL, "random") and not self.order.inner
        ours = self.model is None or (plain and self.model.is_compiled)
        if not ours or self.pool.is_remote:  # one thread computes as fast as most networks bring records
            return 1
        units = sum(-(-stop // self.unit) - start // self.unit for start, stop in left)
        if units < 2:
            return 1
        return min(units, self.limits.threads or min(allowed_threads(), self.limits.most_threads))

    def _score_in_turn(self, left: Sequence[Interval], reader: Reader, kept: Kept | None) -> None:
        spans = plan.cut(left, self.span_rows(left, 1, None), self.order.seed)
        for number, span in enumerate(spans):
            for expected in spans[number : number + 2]:
                reader.expect(*expected)
            self.finish(self._scored(self.task(span), reader, kept))

    def _score_side_by_side(self, left: Sequence[Interval], threads: int, kept: Kept | None) -> None:
        """Score spans on threads of this process; all that is not scoring stays on this one."""
        feed, pace = plan.Feed(), 0.0
        feed.extend(plan.cut(left, self.span_rows(left, threads, None), self.order.seed))
        of_thread = threading.local()

        def scored(task: Task) -> SpanResult:
            # Taken away meanwhile: a span that fails leaves its reader in the middle of a chunk.
            reader = of_thread.__dict__.pop("reader", None) or self.pool.reader()
            result = self._scored(task, reader, kept)
            of_thread.reader = reader
            return result

        running: set[Future[SpanResult]] = set()
        with ThreadPoolExecutor(threads, "dal-scan") as executor:
            try:
                while feed or running:
                    while feed and len(running) < 2 * threads:
                        shrinking = plan.shrinking_rows(feed.rows, threads, pace, self.limits)
                        # One unit until the pace is known: an interrupt waits for the spans that run.
                        most = min(shrinking, int(pace * self.limits.span_seconds))
                        running.add(executor.submit(scored, self.task(feed.next(most, self.unit))))
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    for each in sorted(ended, key=lambda one: one.exception() is not None):  # what succeeded counts
                        result = each.result()
                        pace = (result.interval.stop - result.interval.start) / max(result.seconds, 1e-9)
                        self.finish(result)
            finally:
                executor.shutdown(cancel_futures=True)

    def _scored(self, task: Task, reader: Reader, kept: Kept | None) -> SpanResult:
        # Of now, not of when the task was made: the best so far may have come closer since.
        thresholds = task.thresholds.raised(self.best.thresholds)
        result = score_span(
            self.pool, self.model, self.order, task.interval, task.excluded, thresholds, self.cells, reader
        )
        return result if kept is None else kept.take_from(result)

    def result(self, features: Callable[[Rows], Floats32]) -> Scan:
        """Return the candidates and the summary, when nothing is left to do.

        Parameters
        ----------
        features : callable
            Returns the features of ascending rows; called where the order wants them.
        """
        last, highest = self.best.settle()
        best = self.best.result() or _no_candidates()
        if self.order.carry:
            own = np.isin(self.carried.rows, best.rows)
            carried = (self.carried.rows[own], self.carried.X[own])
            best = replace(best, embeddings=with_the_rest(best.rows, [carried], features))
            self.bytes_up += best.embeddings.nbytes
        seconds = time.perf_counter() - self.started
        wrote_cells = self.cells is not None and self.cells.write
        summary = Summary(
            self.tally,
            seconds,
            self.spans,
            self.resumed,
            wrote_cells and not self.skipped,
            self.bytes_up,
            self.rows_again,
            self.thread_seconds,
            tuple(self.skipped),
            tuple(self.notes),
            self.order.capacity.total,
            None if self.order.capacity.beta is not None else last,
            highest,
            self._reach(best, last, highest),
        )
        return Scan(best, summary)

    def _reach(self, kept: Candidates, last: float | None, best: float | None) -> Reach | None:
        if self.course is None:
            return None
        skipped = sum(stop - start for start, stop in self.skipped)
        repeated = max(self.repeated, self.best.repeated)
        return self.course.reach(self.order.capacity, kept, last, best, self.carried, skipped, repeated)


def _no_candidates() -> Candidates:
    nothing = np.empty(0, dtype=np.int64)
    return Candidates(nothing, np.empty(0), nothing, nothing, np.empty((0, 0), dtype=np.float32))


def with_the_rest(
    rows: Rows, parts: Sequence[tuple[Rows, Floats32]], take: Callable[[Rows], Floats32]
) -> npt.NDArray[np.float32]:
    """Join features that were kept in several places, and read the others from the pool.

    Parameters
    ----------
    rows : ndarray of int64
        Ascending.
    parts : sequence of (rows, features)
        Each of some of the rows.
    take : callable
        Reads rows from the pool.
    """
    found = [(np.searchsorted(rows, own), features) for own, features in parts if len(own)]
    if not found:
        return take(rows)
    missing = np.ones(len(rows), dtype=bool)
    for positions, _ in found:
        missing[positions] = False
    if missing.any():
        found.append((np.flatnonzero(missing), take(rows[missing])))
    X = np.empty((len(rows), found[0][1].shape[1]), dtype=np.float32)
    for positions, features in found:
        X[positions] = features
    return X
