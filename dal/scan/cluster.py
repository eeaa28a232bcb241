"""The pass on a Dask cluster: every span scored once, whatever dies; every wait with an end."""

import logging
import pickle
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import cloudpickle
import numpy as np
import numpy.typing as npt
import zarr
from distributed import Client, get_worker
from numcodecs import Blosc
from threadpoolctl import threadpool_info

from dal.compute.plugins import brought
from dal.compute.waits import InFlight, wait_for_worker
from dal.compute.work import ask_workers, held_by_workers, workers_of
from dal.errors import ClusterError, DalError, SpanError
from dal.learners.models import Model
from dal.pool import Pool
from dal.scan import plan
from dal.scan.journal import Journal
from dal.scan.kept import Kept
from dal.scan.kernel import Cells, Order, SpanResult, score_span
from dal.scan.plan import Interval
from dal.scan.run import Progress, Run, Scan, Task, with_the_rest
from dal.scores import OF_COMMITTEE
from dal.selection.candidates import Capacity

Floats32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

MOST_KEPT_BYTES = 128 * 2**20
"""Candidates with their features that a process keeps; larger ones, as of images, are read again in the end."""
ATTEMPTS = 3
PROBE_SECONDS = 60.0
_TICK_SECONDS = 1.0
_REMEDY = "finished spans are kept; bring it up and run again, the scan goes on from there"
_TASK_NAME = "dal-score"

_log = logging.getLogger(__name__)


def scan_on_cluster(
    client: Client,
    pool: Pool,
    model: Model | None,
    order: Order,
    excluded: Rows,
    cells: Cells | None,
    journal: Journal | None,
    progress: Callable[[Progress], None] | None,
    *,
    skip_failed: bool,
) -> Scan:
    """Score the pool on the workers of a cluster; see :func:`dal.scan.scan`."""
    hosts = _probe(client, pool, cells)
    usable = cells if hosts.cells_usable else None
    run = Run(pool, model, order, excluded, usable, journal, progress)
    run.notes += hosts.notes
    _refuse_too_small(client, run)
    kept = replace(order, carry=_keeps_features(order, pool))
    job = Job(pool, _packed(model, order.score), run.model_digest, kept, usable)
    with _Cluster(client, job) as cluster:
        paces, like = _PACES.setdefault(client, {}), (pool.path, model and model.kind, order.score, order.carry, usable)
        paces[like] = _Engine(run, cluster, skip_failed=skip_failed, pace=paces.get(like)).run()
        return run.result(cluster.features)


def _keeps_features(order: Order, pool: Pool) -> bool:
    return order.carry and plan.candidate_bytes(order.capacity, pool.n_features) <= MOST_KEPT_BYTES


_PACES: "WeakKeyDictionary[Client, dict[tuple[object, ...], float | None]]" = WeakKeyDictionary()
"""Rows a second and thread of the last pass of each kind: the next one like it does not begin with short spans."""


# -- on the workers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What every worker knows of a pass; it reaches them once, by a plugin, and those that join later as well."""

    pool: Pool
    packed_model: tuple[bytes, ...]
    model_digest: str
    order: Order
    cells: Cells | None

    def model(self) -> Model | None:
        """Load the model, unless this process has just used it."""
        if not self.packed_model:
            return None
        key = (self.model_digest, self.order.score in OF_COMMITTEE)
        with _loading:
            if key not in _LAST_MODEL:
                _LAST_MODEL.clear()
                _LAST_MODEL[key] = pickle.loads(b"".join(map(_PACKING.decode, self.packed_model)))
            return _LAST_MODEL[key]


_PACKING = Blosc("lz4", shuffle=Blosc.NOSHUFFLE)


def _packed(model: Model | None, score: str) -> tuple[bytes, ...]:
    """Give what a worker makes the model of; nothing without a model.

    A pickle, as everything that goes to a worker is: a forest takes twenty times as long by skops. And compressed:
    Dask takes half a second to bring 40 MB to two workers, and a sixth of that with this.
    """
    if model is None:
        return ()
    # Either way without its archive, which is as large as itself.
    pickled = cloudpickle.dumps(model.for_score(score))
    most = 2**30  # Blosc takes less than 2 GiB at a time
    return tuple(_PACKING.encode(pickled[start : start + most]) for start in range(0, len(pickled), most))


_loading = threading.Lock()
_LAST_MODEL: dict[tuple[str, bool], Model] = {}
"""By digest, and whether its members are there."""


class _Loaded:
    """A job in a worker process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.kept = Kept(job.order)
        self._of_thread = threading.local()

    def score(self, task: Task) -> SpanResult:
        job, order, cells = self.job, self.job.order, self.job.cells
        thresholds = task.thresholds
        if task.sounded is None:
            thresholds = self.kept.raised(thresholds)
        else:
            order = replace(order, capacity=task.sounded, carry=False)
            # The span that this tile is part of will write the cells, perhaps at the same time.
            cells = None if cells is None or cells.write else cells
        # Taken away meanwhile: a span that fails leaves its reader in the middle of a chunk.
        reader = self._of_thread.__dict__.pop("reader", None) or job.pool.reader()
        found = score_span(job.pool, job.model(), order, task.interval, task.excluded, thresholds, cells, reader)
        self._of_thread.reader = reader
        return found if task.sounded is not None else self.kept.take_from(found)


class _Sent(NamedTuple):
    """What a worker sends of a span, and who it is."""

    worker: str
    result: SpanResult


def _loaded(name: str) -> _Loaded:
    return cast("_Loaded", brought(name))


def _score_task(name: str, task: Task) -> _Sent:
    return _Sent(get_worker().address, _loaded(name).score(task))


def _kept_task(name: str, rows: Rows) -> tuple[Rows, Floats32]:
    return _loaded(name).kept.features(rows)


def _take_task(name: str, rows: Rows) -> Floats32:
    return _loaded(name).job.pool.take(rows)


# -- before work starts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Hosts:
    cells_usable: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Host:
    """What one worker says of its host."""

    pool_trouble: str | None
    cells_trouble: str | None
    kernels: tuple[str, ...]


_PROVEN: "WeakKeyDictionary[Client, dict[tuple[str, str, Cells | None], _Host]]" = WeakKeyDictionary()
"""What workers have said, by address, pool and cells: the rounds of a campaign ask each of them once."""


def _probe_task(pool: Pool, cells: Cells | None) -> _Host:
    info = threadpool_info()
    return _Host(
        _trouble(lambda: pool.read(0, 1)),
        None if cells is None else _trouble(lambda: _reach(cells)),
        tuple(sorted({f"{lib['internal_api']} {lib.get('architecture', '')}".strip() for lib in info})),
    )


def _reach(cells: Cells) -> "zarr.Array[Any]":
    # Opening an array proves nothing of write access.
    return cells.array.update_attributes({}) if cells.write else cells.array


def _trouble(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except Exception as error:  # whatever it is, the person at the coordinator needs to read it
        return f"{type(error).__name__}: {error}"
    return None


def _probe(client: Client, pool: Pool, cells: Cells | None) -> _Hosts:
    """Prove on every host that the pool can be read; say where the cells cannot be used and where hosts differ."""
    answers = _ask_each_host(client, pool, cells)
    for address, host in answers.items():
        if host.pool_trouble is not None:
            raise ClusterError(
                f"The worker at {address} cannot read the pool {pool.path} ({host.pool_trouble}): its store must be"
                " reachable under this name from every host."
            )
    notes = []
    troubled = {address: host.cells_trouble for address, host in answers.items() if host.cells_trouble is not None}
    if troubled and cells is not None:
        address, trouble = next(iter(troubled.items()))
        notes.append(
            f"The worker at {address} cannot use {cells.place} ({trouble}): cells are computed anew in this pass. Put"
            " the campaign where all hosts can write to save that time."
        )
    kinds = sorted({host.kernels for host in answers.values()})
    if len(kinds) > 1:
        notes.append(
            f"The workers' linear algebra differs ({'; '.join(', '.join(kind) for kind in kinds)}): last bits of scores"
            " may depend on which worker computes them, and a repeated scan may choose otherwise among near-equals."
        )
    for note in notes:
        _log.warning("%s", note)
    return _Hosts(not troubled, tuple(notes))


def _ask_each_host(client: Client, pool: Pool, cells: Cells | None) -> Mapping[str, _Host]:
    wait_for_worker(client)
    workers = workers_of(client)
    proven = _PROVEN.setdefault(client, {})
    known = {address: proven[address, pool.path, cells] for address in workers if (address, pool.path, cells) in proven}
    known_hosts = {workers[address].host for address in known}
    one_per_host = {worker.host: address for address, worker in workers.items() if worker.host not in known_hosts}
    if not one_per_host:
        return known
    # A worker that does not answer says nothing of its host; the scan itself survives such deaths.
    probe = partial(_probe_task, pool, cells)
    answers = ask_workers(client, probe, list(one_per_host.values()), seconds=PROBE_SECONDS)
    if not answers:
        raise ClusterError(
            f"No worker of {client} answered within {PROBE_SECONDS:.0f} s: look at their logs, and run again."
        )
    for address, answer in answers.items():
        if isinstance(answer, BaseException):
            raise ClusterError(
                f"The worker at {address} cannot run dal ({type(answer).__name__}: {answer}): it needs the same"
                " version of dal and its dependencies as this process."
            ) from answer
    told = {address: answer for address, answer in answers.items() if isinstance(answer, _Host)}
    # What was in the way may be mended before the next pass.
    sound = {address: host for address, host in told.items() if host.pool_trouble is host.cells_trouble is None}
    proven.update({(address, pool.path, cells): host for address, host in sound.items()})
    return known | told


def predicted(run: Run) -> plan.WorkerBytes:
    """Predict what a worker takes of memory for this pass."""
    order = replace(run.order, carry=_keeps_features(run.order, run.pool))
    width = run.pool.n_features if order.carry else 0
    return plan.worker_bytes(
        tile=run.order.tile,
        n_features=run.pool.n_features,
        itemsize=run.pool.dtype.itemsize,
        chunk_rows=run.pool.chunk_rows,
        # A committee's sums stand beside the probabilities of the member at work.
        n_classes=len(run.model.classes) * (2 if run.order.score in OF_COMMITTEE else 1) if run.model else 0,
        n_cells=len(run.order.codebook.centers) if run.order.codebook else 0,
        kept_bytes=plan.candidate_bytes(run.order.capacity, width),
        slack=order.slack,
        candidate=plan.candidate_bytes(Capacity(1, 0, 0), width),
        model_bytes=len(run.model.dumps()) if run.model else 0,
    )


def _refuse_too_small(client: Client, run: Run) -> None:
    """Refuse workers that cannot hold what the pass will take, before it starts."""
    need = predicted(run)
    for address, (_, threads, limit) in workers_of(client).items():
        if limit and need.for_threads(threads) > limit:
            raise ClusterError(
                f"The worker at {address} has {limit / 2**20:,.0f} MiB for {threads} threads; this scan takes about"
                f" {need.for_threads(threads) / 2**20:,.0f} MiB there ({need}). Start workers with more memory or fewer"
                " threads, or ask for a smaller batch."
            )


# -- while it runs -----------------------------------------------------------------------------------------------------


class _Cluster:
    """A client with a job on its workers."""

    def __init__(self, client: Client, job: Job) -> None:
        self.client = client
        self.job = job
        # Not the digest of the pass: a coordinator that was killed leaves its job on the workers, and the next one,
        # with a directory of its own perhaps, must not be served by that.
        self.name = f"dal-scan-{secrets.token_hex(8)}"
        self.task: Callable[[Task], _Sent] = partial(_score_task, self.name)
        self.keepers: dict[Interval, str] = {}
        self._flight: InFlight[Task, _Sent] = InFlight(client, _REMEDY)
        self._open = ExitStack()

    def __enter__(self) -> "_Cluster":
        self._open.enter_context(held_by_workers(self.client, self.name, partial(_Loaded, self.job)))
        self._open.enter_context(self._flight)
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    @property
    def pending(self) -> Collection[object]:
        """What is in flight."""
        return self._flight.pending

    def threads(self) -> int:
        """Count the threads of all workers now, at least one."""
        return self._flight.threads()

    def submit(self, tasks: Sequence[Task]) -> None:
        """Send tasks, together."""
        self._flight.submit(self.task, tasks, key=_TASK_NAME)

    def ended(self, longest_span: float) -> list[tuple[Task, SpanResult | BaseException]]:
        """Wait for spans to end; return the outcome of each."""
        ended: list[tuple[Task, SpanResult | BaseException]] = []
        for task, outcome in self._flight.ended(longest_span):
            if isinstance(outcome, _Sent):
                if task.sounded is None:
                    self.keepers[task.interval] = outcome.worker
                ended.append((task, outcome.result))
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
        asked = [
            # Another worker, if this one has just died, keeps none of them, which is an answer as well.
            self.client.submit(_kept_task, self.name, own, workers=[worker], allow_other_workers=True, pure=False)
            for worker, own in self._by_keeper(rows)
            if worker in present
        ]
        return with_the_rest(rows, self._flight.fetch(asked), self._take)

    def _by_keeper(self, rows: Rows) -> list[tuple[str, Rows]]:
        spans = sorted(self.keepers.items())
        workers = sorted(set(self.keepers.values()))
        if not spans:
            return []
        starts, stops = np.array([interval for interval, _ in spans], dtype=np.int64).T
        numbers = np.array([workers.index(worker) for _, worker in spans])
        position = np.searchsorted(starts, rows, side="right") - 1
        inside = (position >= 0) & (rows < stops[position])
        of_worker = numbers[position[inside]]
        return [(workers[number], rows[inside][of_worker == number]) for number in np.unique(of_worker)]

    def _take(self, rows: Rows) -> Floats32:
        """Read rows on the workers, each chunk once."""
        groups = np.split(rows, np.flatnonzero(np.diff(rows // self.job.pool.write_rows)) + 1)
        futures = self.client.map(_take_task, [self.name] * len(groups), groups, pure=False)
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
        while self.feed or self.rest or self.cluster.pending:
            self._cut_rest()
            tasks = self._next_tasks(self._window() - len(self.cluster.pending))
            if tasks:
                self.cluster.submit(tasks)
            if self.cluster.pending:
                for task, outcome in self.cluster.ended(self.longest_span):
                    self._settle(task, outcome)
        scored = self.state.tally.rows - self.state.resumed_tally.rows
        return scored / self.scored_seconds if scored else None

    def _next_tasks(self, count: int) -> list[Task]:
        tasks: list[Task] = []
        while self.soundings and len(tasks) < count:
            tasks.append(self.state.sounding(self.soundings.pop(), self.sounded))
        if self.feed and self.state.sounded_enough:
            growing = self.state.growing_rows(self.threads)
            while self.feed and len(tasks) < count:
                most = min(growing, plan.shrinking_rows(self.feed.rows, self.threads, self.rows_per_second or 0.0))
                tasks.append(self.state.task(self.feed.next(most, self._cut_unit())))
        return tasks

    def _cut_unit(self) -> int:
        """Give the rows that are not split, which for a heavy learner are those of a tile.

        There the last spans would be long if they were whole chunks, and a chunk that is read twice costs little; but
        no two spans may write into the same chunk of cells.
        """
        writes = self.state.cells is not None and self.state.cells.write
        if self.rows_per_second is None or writes:
            return self.state.unit
        heavy = plan.shrinking_rows(0, self.threads, self.rows_per_second) < self.state.unit
        return self.state.order.tile if heavy else self.state.unit

    def _cut_rest(self) -> None:
        """Cut what follows the first, short tasks, as soon as one of them has told the pace."""
        told = self.rows_per_second is not None or not (self.feed or self.soundings or self.cluster.pending)
        if self.rest and told:
            rows = self.state.span_rows(self.threads, self.rows_per_second)
            self.feed.extend(plan.cut(self.rest, rows, self.state.order.seed))
            self.rest = []

    def _window(self) -> int:
        """Say how many tasks to keep in flight on the cluster as it is now, which may have grown."""
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
        # What dal itself refuses, a damaged chunk or a learner that returns NaN, will be refused again.
        if self.attempts[interval] < ATTEMPTS and not isinstance(error, DalError):
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
            f"{rows} failed {ATTEMPTS} times, last with {type(error).__name__}: {error}. Finished spans are kept: mend"
            " it and run again, or leave such rows out with skip_failed."
        ) from error
