"""One pass over the pool: spans out, candidates in, on this process or on a Dask cluster."""

import hashlib
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import zarr
from distributed import Client, Future, WorkerPlugin

from dal.errors import ClusterError, DalError, ScanError, SettingsError, SpanError
from dal.learner import Model
from dal.pool import Pool
from dal.scan import plan
from dal.scan.journal import Journal
from dal.scan.kernel import KERNEL_VERSION, Cells, Order, SpanResult, Tally, score_span
from dal.scan.merge import Best, Thresholds
from dal.scan.plan import Interval
from dal.selection import Candidates, Codebook, Strategy, row_hash

Rows = npt.NDArray[np.int64]

MOST_BYTES_ALONG = 512 * 2**20
"""Features travel with the candidates while those of all tasks in flight stay under this; else they are gathered."""
ATTEMPTS = 3
NO_WORKERS_SECONDS = 60.0
STALL_SECONDS = 600.0
_TICK_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a pass is; handed to the ``progress`` callback after each span.

    Attributes
    ----------
    rows_done, rows_total : int
    bytes_read : int
    seconds : float
        Since the pass began, in this process.
    best : float or None
        The best score so far.
    failed : int
        Spans that failed and were tried again.
    """

    rows_done: int
    rows_total: int
    bytes_read: int
    seconds: float
    best: float | None
    failed: int


@dataclass(frozen=True)
class Summary:
    """What a pass counted.

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
    """

    tally: Tally
    seconds: float
    spans: int
    spans_resumed: int
    wrote_cells: bool


@dataclass(frozen=True)
class Scan:
    """The result of a pass: the best rows, and what was counted on the way."""

    candidates: Candidates
    summary: Summary

    def __repr__(self) -> str:
        tally = self.summary.tally
        lines = [
            f"Scan: {len(self.candidates):,} candidates of {tally.rows:,} rows in {self.summary.seconds:.1f} s"
            f" ({tally.rows / max(self.summary.seconds, 1e-9):,.0f} rows/s)"
        ]
        if tally.invalid:
            lines.append(f"{tally.invalid:,} rows hold NaN or infinite values and are never asked")
        highest = max(int(np.max(tally.histogram)), 1)
        bars = "".join(" ▁▂▃▄▅▆▇█"[-(-8 * int(count) // highest)] for count in tally.histogram)
        lines.append(f"scores 0 |{bars}| 1")
        return "\n".join(lines)


def scan(
    pool: Pool,
    model: Model | None,
    strategy: Strategy,
    k: int,
    exclude: Rows | Sequence[int] = (),
    *,
    seed: int = 0,
    round: int = 0,
    codebook: Codebook | None = None,
    cells: Cells | None = None,
    client: Client | None = None,
    journal: Journal | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Scan:
    """Score every record of the pool and keep the candidates for a batch of `k`.

    The result equals a full sort of the pool by key under capacities fixed before the pass, for any chunking, span
    size, number of workers, order of completion, retry or restart.

    Parameters
    ----------
    pool : Pool
    model : Model or None
        None, in a cold start, scores by hash alone.
    strategy : Strategy
    k : int
        Size of the batch that is to be chosen.
    exclude : array of int64, default=()
        Rows that are not to be asked, in any order.
    seed, round : int, default=0
    codebook : Codebook, optional
        Needed where the strategy spreads over cells; see :func:`sample_codebook`.
    cells : Cells, optional
        Where the cell of each row is kept from one pass to the next; without it they are computed each time.
    client : distributed.Client, optional
        Without one the pass runs in this process, span after span.
    journal : Journal, optional
        Keeps finished spans, so that the same pass, begun again, goes on.
    progress : callable, optional
        Called with a :class:`Progress` after each span.

    Returns
    -------
    Scan
        Candidates ascending by row, with features as embeddings where the selector looks at them.

    Raises
    ------
    SettingsError
        If the strategy needs a model or a codebook that is not there.
    SpanError
        If a span fails every time; the message names it.
    ClusterError
        If the cluster is lost or makes no progress.
    """
    order = _order(pool, model, strategy, k, seed, round, codebook)
    excluded = np.unique(np.asarray(exclude, dtype=np.int64))
    used = cells if order.capacity.cells else None
    if used is not None and used.write and _create_cells(used.path, pool.n_rows, _unit(order, pool)) and journal:
        journal.clear()  # its spans wrote their cells into an array that is gone
    if client is None:
        run = _Pass(pool, model, order, excluded, used, journal, progress)
        run.in_process()
        return run.result()
    return _scan_on_cluster(client, pool, model, order, excluded, used, journal, progress)


def _scan_on_cluster(
    client: Client,
    pool: Pool,
    model: Model | None,
    order: Order,
    excluded: Rows,
    cells: Cells | None,
    journal: Journal | None,
    progress: Callable[[Progress], None] | None,
) -> Scan:
    usable = _probe(client, pool, cells)
    in_flight = max(2 * sum(client.nthreads().values()), 1)
    bytes_along = in_flight * order.capacity.total * (16 + 4 * pool.n_features)
    along = replace(order, carry=order.carry and bytes_along <= MOST_BYTES_ALONG)
    run = _Pass(pool, model, along, excluded, usable, journal, progress)
    job = _Job(pool, run.model_bytes, model.trusted if model else (), along, usable)
    with _Cluster(client, job, run.digest) as cluster:
        _Engine(run, cluster).run()
        found = run.result()
        if order.carry and not along.carry:
            embeddings = cluster.take(found.candidates.rows)
            found = replace(found, candidates=replace(found.candidates, embeddings=embeddings))
    return found


def _order(
    pool: Pool,
    model: Model | None,
    strategy: Strategy,
    k: int,
    seed: int,
    round: int,
    codebook: Codebook | None,
) -> Order:
    if k < 1:
        raise SettingsError(f"Expected a batch of at least 1 record, got {k}.")
    if model is None and strategy.score != "random":
        raise SettingsError(f"The score {strategy.score!r} needs a fitted model; without one, use strategy.cold().")
    if model is not None and model.n_features != pool.n_features:
        raise SettingsError(
            f"The model was fitted on {model.n_features} features, the pool {pool.path} has {pool.n_features}."
        )
    capacity = strategy.capacity(k, pool.n_rows, len(codebook.centers) if codebook else None)
    if capacity.cells and codebook is None:
        raise SettingsError("This strategy spreads over cells: pass codebook=sample_codebook(pool, n_cells, seed).")
    tile = plan.tile_rows(pool.n_features, model.tile_rows if model else None)
    carry = strategy.selector != "top"
    return Order(strategy.score, capacity, tile, seed, round, codebook if capacity.cells else None, carry)


def sample_codebook(pool: Pool, n_cells: int, seed: int) -> Codebook:
    """Find the space in which records are compared, and its cells, from a sample of the pool.

    At most 64 blocks of 4,096 rows are read, evenly spread, and 20,000 of their rows used: the same ones for any
    chunking.

    Parameters
    ----------
    pool : Pool
    n_cells : int
    seed : int

    Returns
    -------
    Codebook
    """
    return Codebook.fit(pool.take(sample_rows(pool.n_rows, seed)), n_cells, seed)


def sample_rows(n_rows: int, seed: int, size: int = 20_000, blocks: int = 64, block_rows: int = 4096) -> Rows:
    """Draw rows by hash out of evenly spread blocks, so that few chunks need reading.

    Examples
    --------
    >>> sample_rows(5, seed=0).tolist()
    [0, 1, 2, 3, 4]
    """
    n_blocks = -(-n_rows // block_rows)
    chosen = np.arange(n_blocks) if n_blocks <= blocks else np.arange(blocks) * n_blocks // blocks
    rows = np.concatenate([np.arange(b * block_rows, min((b + 1) * block_rows, n_rows)) for b in chosen.tolist()])
    return np.sort(rows[np.argsort(row_hash(rows, seed, 2), kind="stable")[:size]])


class _Pass:
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
    ) -> None:
        self.pool = pool
        self.model = model
        self.order = order
        self.excluded = excluded
        self.cells = cells
        self.journal = journal
        self.progress = progress
        self.started = time.perf_counter()
        self.best = Best(order.capacity, order.seed, order.round)
        self.tally = Tally.zero(len(model.classes) if model else 0)
        self.spans = self.failed = 0
        self.top: float | None = None
        self.unit = _unit(order, pool)
        self.model_bytes = model.dumps() if model is not None else b""
        self.digest = self._digest()
        done = self._resumed()
        self.resumed = len(done)
        self.left = plan.remaining(pool.n_rows, done)

    def _digest(self) -> str:
        order = self.order
        parts = (
            KERNEL_VERSION,
            self.pool.fingerprint,
            self.pool.n_rows,
            hashlib.sha256(self.model_bytes).hexdigest(),
            (order.score, tuple(order.capacity), order.tile, order.seed, order.round, order.carry),
            order.codebook.digest() if order.codebook else "",
            hashlib.sha256(self.excluded.tobytes()).hexdigest(),
            self.cells.write if self.cells else None,
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
        if result.candidates is not None:
            self.best.add(result.candidates)
            top = float(np.max(result.candidates.scores))
            self.top = top if self.top is None else max(self.top, top)

    def finish(self, result: SpanResult) -> None:
        """Take in a span that was just scored."""
        if self.journal is not None:
            self.journal.add(result)
        self._merge(result)
        if self.progress is not None:
            seconds = time.perf_counter() - self.started
            done = self.tally
            self.progress(Progress(done.rows, self.pool.n_rows, done.bytes_read, seconds, self.top, self.failed))

    def task(self, interval: Interval) -> tuple[Interval, Rows, Thresholds]:
        """Say what a worker needs to know of a span, beside what it knows of the pass."""
        low, high = np.searchsorted(self.excluded, interval)
        return interval, self.excluded[low:high], self.best.thresholds

    def span_rows(self, threads: int, rows_per_second: float | None) -> int:
        row_bytes = self.pool.n_features * self.pool.dtype.itemsize
        return plan.span_rows(self.pool.n_rows, row_bytes, threads, self.unit, rows_per_second)

    def in_process(self) -> None:
        for interval in plan.cut(self.left, self.span_rows(1, None), self.order.seed):
            interval, excluded, thresholds = self.task(interval)
            self.finish(score_span(self.pool, self.model, self.order, interval, excluded, thresholds, self.cells))

    def result(self) -> Scan:
        best = self.best.result()
        if best is None:
            raise ScanError(
                f"No row is left to ask: of {self.pool.n_rows:,} rows, {len(self.excluded):,} were asked or answered"
                f" before and {self.tally.invalid:,} hold NaN or infinite values."
            )
        seconds = time.perf_counter() - self.started
        wrote_cells = self.cells is not None and self.cells.write
        summary = Summary(self.tally, seconds, self.spans, self.resumed, wrote_cells)
        return Scan(best, summary)


def _unit(order: Order, pool: Pool) -> int:
    return plan.unit_rows(order.tile, pool.write_rows)


def _create_cells(path: str, n_rows: int, unit: int) -> bool:
    """Make the array of cells unless it is there; one chunk a unit, so that no two spans ever write the same chunk."""
    chunks = (min(unit, n_rows),)
    try:
        there = zarr.open_array(path, mode="r")
        if (there.shape, there.chunks) == ((n_rows,), chunks):
            return False
    except FileNotFoundError:
        pass
    zarr.create_array(path, shape=(n_rows,), chunks=chunks, dtype="uint16", compressors=None, overwrite=True)
    return True


# -- the cluster ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """What every worker knows of a pass; it reaches them once, by a plugin, and those that join later as well."""

    pool: Pool
    model_bytes: bytes
    trusted: tuple[str, ...]
    order: Order
    cells: Cells | None

    def model(self) -> Model | None:
        return Model.loads(self.model_bytes, self.trusted) if self.model_bytes else None


class _Loaded:
    """A job in a worker process, its model loaded by the first task that needs it."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self._lock = threading.Lock()
        self._model: Model | None = None

    def score(self, interval: Interval, excluded: Rows, thresholds: Thresholds) -> SpanResult:
        with self._lock:
            if self._model is None:
                self._model = self.job.model()
        job = self.job
        return score_span(job.pool, self._model, job.order, interval, excluded, thresholds, job.cells)


_JOBS: dict[str, _Loaded] = {}


class _JobPlugin(WorkerPlugin):
    idempotent = True

    def __init__(self, digest: str, job: _Job) -> None:
        self.name = f"dal-scan-{digest}"
        self.digest = digest
        self.job = job

    def setup(self, worker: object) -> None:  # noqa: ARG002 - the plugin's contract
        _JOBS[self.digest] = _Loaded(self.job)

    def teardown(self, worker: object) -> None:  # noqa: ARG002
        _JOBS.pop(self.digest, None)


def _score_task(digest: str, interval: Interval, excluded: Rows, thresholds: Thresholds) -> SpanResult:
    return _JOBS[digest].score(interval, excluded, thresholds)


def _probe_task(pool: Pool, cells: Cells | None) -> tuple[str | None, str | None]:
    """Say why this host cannot read the pool, and why it cannot use the stored cells; None where it can."""
    return _trouble(lambda: pool.read(0, 1)), _trouble(
        lambda: cells and zarr.open_array(cells.path, mode="r+" if cells.write else "r")
    )


def _trouble(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except Exception as error:  # whatever it is, the person at the coordinator needs to read it
        return f"{type(error).__name__}: {error}"
    return None


def _probe(client: Client, pool: Pool, cells: Cells | None) -> Cells | None:
    """Prove on every host that the pool can be read, before work starts; give the cells if all hosts can use them."""
    try:
        client.wait_for_workers(1, timeout=NO_WORKERS_SECONDS)
    except TimeoutError as error:
        raise ClusterError(
            f"The cluster of {client} had no worker for {NO_WORKERS_SECONDS:.0f} s: start workers, and run again."
        ) from error
    workers = client.scheduler_info(n_workers=-1)["workers"]
    one_per_host = {worker["host"]: address for address, worker in workers.items()}
    answers = client.run(_probe_task, pool, cells, workers=list(one_per_host.values()), on_error="return")
    for address, answer in answers.items():
        if isinstance(answer, BaseException):
            raise ClusterError(
                f"The worker at {address} cannot run dal ({type(answer).__name__}: {answer}): it needs the same"
                " version of dal and its dependencies as this process."
            ) from answer
        if answer[0] is not None:
            raise ClusterError(
                f"The worker at {address} cannot read the pool {pool.path} ({answer[0]}): its store must be reachable"
                " under this name from every host."
            )
        if answer[1] is not None:
            _log.warning(
                "The worker at %s cannot use %s (%s): cells are computed anew in this pass. Put the campaign where all"
                " hosts can write to save that time.",
                address,
                cells.path if cells else "",
                answer[1],
            )
            cells = None
    return cells


def _take_task(digest: str, rows: Rows) -> npt.NDArray[np.float32]:
    return _JOBS[digest].job.pool.take(rows)


class _Cluster:
    """A client with a job on its workers, and every way it can be lost turned into a ClusterError."""

    def __init__(self, client: Client, job: _Job, digest: str) -> None:
        self.client = client
        self.job = job
        self.digest = digest
        self.done: queue.SimpleQueue[Future[SpanResult]] = queue.SimpleQueue()
        self.pending: dict[Future[SpanResult], Interval] = {}

    def __enter__(self) -> "_Cluster":
        self.client.register_plugin(_JobPlugin(self.digest, self.job))
        return self

    def __exit__(self, *exception: object) -> None:
        if self.client.status != "running":
            return
        # A scan that ends early must not leave its spans running on a cluster that others use.
        if self.pending:
            self.client.cancel(list(self.pending), force=True)
        self.client.unregister_worker_plugin(f"dal-scan-{self.digest}")

    def threads(self) -> int:
        return sum(self.client.nthreads().values())

    def submit(self, interval: Interval, excluded: Rows, thresholds: Thresholds) -> None:
        future = self.client.submit(_score_task, self.digest, interval, excluded, thresholds, pure=False)
        self.pending[future] = interval
        future.add_done_callback(self.done.put)

    def next_done(self, longest_span: float) -> list[Future[SpanResult]]:
        """Wait for spans to end; every wait has an end of its own."""
        waited_from = time.monotonic()
        alive = waited_from
        while True:
            try:
                return [self.done.get(timeout=_TICK_SECONDS), *self._drained()]
            except queue.Empty:
                now = time.monotonic()
                if self._has_workers():
                    alive = now
                if now - alive > NO_WORKERS_SECONDS:
                    raise ClusterError(self._lost(f"has had no worker for {NO_WORKERS_SECONDS:.0f} s")) from None
                if now - waited_from > max(STALL_SECONDS, 20 * longest_span):
                    raise ClusterError(self._lost(f"has finished no span for {now - waited_from:.0f} s")) from None

    def _drained(self) -> list[Future[SpanResult]]:
        drained = []
        while not self.done.empty():
            drained.append(self.done.get())
        return drained

    def _has_workers(self) -> bool:
        if self.client.status != "running":
            raise ClusterError(self._lost("is gone"))
        try:
            return bool(self.client.nthreads())
        except OSError as error:
            raise ClusterError(self._lost("does not answer")) from error

    def _lost(self, what: str) -> str:
        return f"The cluster {what}. Finished spans are kept: bring it up and run again, the scan goes on from there."

    def outcome(self, future: Future[SpanResult]) -> SpanResult | BaseException:
        """Fetch a finished span, or the reason why there is none."""
        del self.pending[future]
        if future.status in ("cancelled", "lost"):
            raise ClusterError(self._lost("lost its scheduler"))
        if future.status == "error":
            error: BaseException = future.exception(timeout=STALL_SECONDS)
            return error
        result: SpanResult = future.result(timeout=STALL_SECONDS)
        return result

    def take(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Read rows on the workers, each chunk once."""
        groups = np.split(rows, np.flatnonzero(np.diff(rows // self.job.pool.write_rows)) + 1)
        futures = self.client.map(_take_task, [self.digest] * len(groups), groups, pure=False)
        return np.concatenate(self.client.gather(futures))


class _Engine:
    """Feeds a cluster with spans: short ones first, then as long as their pace allows; failed ones again."""

    def __init__(self, run: _Pass, cluster: _Cluster) -> None:
        self.run_of_pass = run
        self.cluster = cluster
        self.threads = cluster.threads()
        self.window = max(2 * self.threads, self.threads + 2)
        first, self.rest = plan.probes(run.left, run.unit, 2 * self.threads, run.order.seed)
        self.todo = deque(first)
        self.attempts: Counter[Interval] = Counter()
        self.longest_span = 0.0
        self.rows_per_second: float | None = None

    def run(self) -> None:
        while self.todo or self.rest or self.cluster.pending:
            if self.rest and (self.rows_per_second is not None or not (self.todo or self.cluster.pending)):
                rows = self.run_of_pass.span_rows(self.threads, self.rows_per_second)
                self.todo.extend(plan.cut(self.rest, rows, self.run_of_pass.order.seed))
                self.rest = []
            while self.todo and len(self.cluster.pending) < self.window:
                self.cluster.submit(*self.run_of_pass.task(self.todo.popleft()))
            if self.cluster.pending:
                for future in self.cluster.next_done(self.longest_span):
                    self._settle(future)

    def _settle(self, future: Future[SpanResult]) -> None:
        interval = self.cluster.pending[future]
        outcome = self.cluster.outcome(future)
        if isinstance(outcome, SpanResult):
            self.longest_span = max(self.longest_span, outcome.seconds)
            self.rows_per_second = (interval.stop - interval.start) / max(outcome.seconds, 1e-9)
            self.run_of_pass.finish(outcome)
        else:
            self._failed(interval, outcome)

    def _failed(self, interval: Interval, error: BaseException) -> None:
        if isinstance(error, DalError):
            raise error
        self.attempts[interval] += 1
        if self.attempts[interval] >= ATTEMPTS:
            raise SpanError(
                f"Rows {interval.start:,} to {interval.stop:,} of {self.run_of_pass.pool.path} failed {ATTEMPTS} times,"
                f" last with {type(error).__name__}: {error}. The other finished spans are kept; mend it and run again."
            ) from error
        self.run_of_pass.failed += 1
        self.todo.appendleft(interval)
