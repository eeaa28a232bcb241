"""Run a pass on a Dask cluster: score every span once, survive the loss of workers, time out every wait."""

import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from dask.base import annotate
from dask.delayed import delayed
from distributed import Client

from dal.compute.asking import gpus_of
from dal.compute.waits import InFlight
from dal.compute.work import heard, held_by_workers
from dal.errors import DalError, SpanError, StoreError
from dal.learners.models import Model
from dal.pool import Pool
from dal.scan import plan
from dal.scan.hosts import keeps_features, probed, prove_score, refuse_too_small
from dal.scan.journal import Journal
from dal.scan.plan import Interval, Limits
from dal.scan.run import Progress, Run, Scan, with_the_rest
from dal.scan.waves import Carried, Waves
from dal.scan.worker.kernel import Cells, Order, SpanResult, Task
from dal.scan.worker.record import decode
from dal.scan.worker.spans import (
    BEGUN,
    Job,
    Loaded,
    Sent,
    kept_features,
    key_of,
    packed,
    score_task,
    taken_features,
)

Floats32 = npt.NDArray[np.float32]


Rows = npt.NDArray[np.int64]


_TICK_SECONDS = 1.0


_REMEDY = "finished spans are kept; bring it up and run again, the scan goes on from there"


def scan_on_cluster(
    client: Client,
    pool: Pool,
    model: Model | None,
    order: Order,
    excluded: Rows,
    cells: Cells | None,
    journal: Journal | None,
    progress: Callable[[Progress], None] | None,
    limits: Limits,
    waves: Waves | None,
    carried: Carried | None,
    *,
    skip_failed: bool,
) -> Scan:
    """Score the pool on the workers of a cluster; see :func:`dal.scan.scan`."""
    hosts = probed(client, pool, cells, limits.probe_seconds, partial(_say, pool, progress))
    prove_score(client, order.score, limits.probe_seconds)
    usable = cells if hosts.cells_usable else None
    run = Run(pool, model, order, excluded, usable, journal, progress, limits, waves, carried)
    run.notes += hosts.notes
    # All to these: bits differ between kinds of processors, and a slow one would be waited for.
    gpus = gpus_of(client) if model is not None and model.wants_gpu and order.score != "random" else {}
    ahead = refuse_too_small(client, run, gpus)
    kept = replace(order, carry=keeps_features(order, pool, limits))
    job = Job(pool, packed(model, order.score), run.model_digest, kept, usable, ahead)
    with _Cluster(client, job, run.say, on_gpus=bool(gpus)) as cluster:
        paces, like = _PACES.setdefault(client, {}), (pool.path, model and model.kind, order.score, order.carry, usable)
        paces[like] = _Engine(run, cluster, skip_failed=skip_failed, pace=paces.get(like)).run()
        run.rows_again = run.sounded_rows + cluster.rows_again
        return run.result(cluster.features)


def _say(pool: Pool, progress: Callable[[Progress], None] | None, waiting: str) -> None:
    """Show why the pass has not begun yet."""
    if progress is not None:
        progress(Progress(0, pool.n_rows, 0, 0, 0.0, None, 0, waiting))


_PACES: "WeakKeyDictionary[Client, dict[tuple[object, ...], float | None]]" = WeakKeyDictionary()
"""Rows a second and thread of the last pass of each kind: the next one like it does not begin with short spans."""


class _Cluster:
    """A client with a job on its workers."""

    def __init__(
        self, client: Client, job: Job, say: Callable[[str], None] = lambda _: None, *, on_gpus: bool = False
    ) -> None:
        self.client = client
        self.job = job
        # Not the digest of the pass: a coordinator that was killed leaves its job on the workers, and the next one,
        # with a directory of its own perhaps, must not be served by that.
        self.name = f"dal-scan-{secrets.token_hex(8)}"
        self._numbers = itertools.count()
        self.task: Callable[[Task], Sent] = partial(score_task, self.name)
        self.keepers: dict[Interval, str] = {}
        self._begun: Counter[Interval] = Counter()
        self._flight: InFlight[Task, Sent] = InFlight(client, _REMEDY, say, on_gpus=on_gpus)
        self._open = ExitStack()

    def __enter__(self) -> "_Cluster":
        self._open.enter_context(held_by_workers(self.client, self.name, partial(Loaded, self.name, self.job)))
        self._open.enter_context(heard(self.client, BEGUN, self._begin))
        self._open.enter_context(self._flight)
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _begin(self, message: tuple[str, int, int]) -> None:
        name, start, stop = message
        if name == self.name:
            self._begun[Interval(start, stop)] += 1

    @property
    def rows_again(self) -> int:
        """The rows of spans that were begun more than once, as often as that was in vain."""
        return sum((times - 1) * (stop - start) for (start, stop), times in self._begun.items())

    @property
    def pending(self) -> Collection[object]:
        """The tasks in flight."""
        return self._flight.pending

    def threads(self) -> int:
        """Count the threads of all workers now, at least one."""
        return self._flight.threads()

    def submit(self, tasks: Sequence[Task]) -> None:
        """Send tasks, together."""
        keys = [key_of(self.name, next(self._numbers), task.interval) for task in tasks]
        self._flight.submit(self.task, tasks, key=keys)

    def ended(self, longest_span: float) -> list[tuple[Task, SpanResult | BaseException]]:
        """Wait for spans to end; return the outcome of each."""
        ended: list[tuple[Task, SpanResult | BaseException]] = []
        for task, outcome in self._flight.ended(longest_span):
            if isinstance(outcome, Sent):
                if task.sounded is None:
                    self.keepers[task.interval] = outcome.worker
                ended.append((task, decode(outcome.record)))
            else:
                ended.append((task, outcome))
        return ended

    def features(self, rows: Rows) -> Floats32:
        """Gather the features of rows: from the workers that keep them, else from the pool.

        Parameters
        ----------
        rows : ndarray of int64
            Ascending.
        """
        if not self.job.order.carry:
            return self._take(rows)
        present = self._flight.nthreads()
        ask, tasks = delayed(kept_features, pure=False), []
        for worker, own in self._by_keeper(rows):
            if worker in present:
                # Another worker, if this one has just died, keeps none of them, which is an answer as well.
                with annotate(workers=[worker], allow_other_workers=True):
                    tasks.append(ask(self.name, own))
        # Together: a message for each of a thousand workers would cost client and scheduler seconds.
        asked = self.client.compute(tasks, optimize_graph=False) if tasks else []
        return with_the_rest(rows, self._flight.fetch(asked), self._take)

    def _by_keeper(self, rows: Rows) -> list[tuple[str, Rows]]:
        spans = sorted(self.keepers.items())
        if not spans:
            return []
        workers, numbers = np.unique([worker for _, worker in spans], return_inverse=True)
        starts, stops = np.array([interval for interval, _ in spans], dtype=np.int64).T
        position = np.searchsorted(starts, rows, side="right") - 1
        inside = (position >= 0) & (rows < stops[position])
        # Sorted once: a look at all rows for each worker is felt with thousands of workers.
        kept, of_worker = rows[inside], numbers[position[inside]]
        by_worker = np.argsort(of_worker, kind="stable")
        owners, firsts = np.unique(of_worker[by_worker], return_index=True)
        shares = np.split(kept[by_worker], firsts[1:])  # one, which is empty, of no rows
        return [(str(workers[owner]), share) for owner, share in zip(owners, shares, strict=False)]

    def _take(self, rows: Rows) -> Floats32:
        """Read rows on the workers, each chunk once."""
        groups = np.split(rows, np.flatnonzero(np.diff(rows // self.job.pool.write_rows)) + 1)
        futures = self.client.map(taken_features, [self.name] * len(groups), groups, pure=False)
        return np.concatenate(self._flight.fetch(futures))


class _Engine:
    """Feeds a cluster with spans: short ones first, then as long as pace and thresholds allow; failed ones again."""

    def __init__(self, run: Run, cluster: _Cluster, *, skip_failed: bool, pace: float | None = None) -> None:
        self.state = run
        self.cluster = cluster
        self.skip_failed = skip_failed
        self.threads = cluster.threads()
        self.counted_at = time.monotonic()
        self.attempts: Counter[Interval] = Counter()
        self.longest_span = 0.0
        self.rows_per_second = pace
        self.scored_seconds = 0.0
        self.feed = plan.Feed()
        self.rest = run.left
        self.soundings = run.soundings(self.threads)
        if self.soundings:
            self.sounded = plan.share_of(run.order.capacity, len(self.soundings))
        elif pace is None:
            first, self.rest = plan.probes(run.left, run.unit, self.threads, run.order.seed)
            self.feed.extend(first)

    def run(self) -> float | None:
        """Score everything that is left, and give the pace."""
        while self.feed or self.rest or self.cluster.pending or self._begin_more():
            self._cut_rest()
            tasks = self._next_tasks(self._window() - len(self.cluster.pending))
            if tasks:
                self.cluster.submit(tasks)
            if self.cluster.pending:
                for task, outcome in self.cluster.ended(self.longest_span):
                    self._settle(task, outcome)
        scored = self.state.tally.rows - self.state.resumed_tally.rows
        return scored / self.scored_seconds if scored else None

    def _begin_more(self) -> bool:
        """Begin what follows when everything is scored; return whether anything does."""
        self.rest = self.state.more()
        return bool(self.rest)

    def _next_tasks(self, count: int) -> list[Task]:
        tasks: list[Task] = []
        while self.soundings and len(tasks) < count:
            tasks.append(self.state.sounding(self.soundings.pop(), self.sounded))
        if self.feed and self.state.sounded_enough:
            growing = self.state.growing_rows(self.threads)
            while self.feed and len(tasks) < count:
                most = min(growing, self._shrinking(self.feed.rows))
                tasks.append(self.state.task(self.feed.next(most, self._cut_unit())))
        return tasks

    def _cut_unit(self) -> int:
        """Return the number of rows that are not split; for a heavy learner, that of a tile.

        With a heavy learner the last spans would be long if they were whole chunks, and a chunk that is read twice
        costs little. But no two spans may write into the same chunk of cells.
        """
        writes = self.state.cells is not None and self.state.cells.write
        # Over a network a chunk that is read twice costs a request, and a slow network is no heavy learner.
        if self.rows_per_second is None or writes or self.state.pool.is_remote:
            return self.state.unit
        heavy = self._shrinking(0) < self.state.unit
        return self.state.order.tile if heavy else self.state.unit

    def _shrinking(self, left: int) -> int:
        return plan.shrinking_rows(left, self.threads, self.rows_per_second or 0.0, self.state.limits)

    def _cut_rest(self) -> None:
        """Cut what follows the first, short tasks, as soon as one of them has shown the pace."""
        told = self.rows_per_second is not None or not (self.feed or self.soundings or self.cluster.pending)
        if self.rest and told:
            rows = self.state.span_rows(self.rest, self.threads, self.rows_per_second)
            self.feed.extend(plan.cut(self.rest, rows, self.state.order.seed))
            self.rest = []

    def _window(self) -> int:
        """Return the number of tasks to keep in flight on the cluster as it is now, which may have grown."""
        if time.monotonic() - self.counted_at > _TICK_SECONDS:
            self.threads = self.cluster.threads()
            self.counted_at = time.monotonic()
        return plan.in_flight(self.threads)

    def _settle(self, task: Task, outcome: SpanResult | BaseException) -> None:
        if isinstance(outcome, SpanResult):
            self.longest_span = max(self.longest_span, outcome.seconds)
            self.rows_per_second = (task.interval.stop - task.interval.start) / max(outcome.seconds, 1e-9)
        if task.sounded is not None:
            # One that failed tells nothing; the span that its rows are part of will say why.
            self.state.sound(outcome if isinstance(outcome, SpanResult) else None)
        elif isinstance(outcome, SpanResult):
            self.scored_seconds += max(outcome.seconds, 1e-9)
            self.state.finish(outcome)
        else:
            self._failed(task.interval, outcome)

    def _failed(self, interval: Interval, error: BaseException) -> None:
        self.attempts[interval] += 1
        # What dal itself refuses, a damaged chunk or a learner that returns NaN, will be refused again; a store that
        # was out of reach may be back.
        refused = isinstance(error, DalError) and not (isinstance(error, StoreError) and error.transient)
        if self.attempts[interval] < self.state.limits.attempts and not refused:
            self.state.failed += 1
            self.feed.again(interval)
            return
        rows = f"Rows {interval.start:,} to {interval.stop - 1:,} of {self.state.pool.path}"
        if self.skip_failed and interval.stop - interval.start > self.state.unit:
            # Spans are as long as the pace allows; what is left out must be the same on a fast cluster and a slow one.
            self.state.failed += 1
            self.feed.extend(plan.cut([interval], self.state.unit, self.state.order.seed))
            return
        if self.skip_failed:
            self.state.skip(interval, f"{rows} were skipped: {type(error).__name__}: {error}")
            return
        if isinstance(error, DalError):
            raise error
        raise SpanError(
            f"{rows} failed {self.attempts[interval]} times, last with {type(error).__name__}: {error}. Finished spans"
            " are kept: mend it and run again, or leave such rows out with skip_failed."
        ) from error
