"""What the coordinator costs on pools and clusters larger than any at hand, by simulation in virtual time.

The pass is the real one: ``dal.scan.run.Run`` cuts the pool, tells thresholds and merges, and the cluster's engine
decides what is sent when. Only the cluster is not there. A stand-in gives each span to the next thread that is free,
lets it take its rows / rate of virtual seconds, and returns what a worker would: candidates at full size (1e5 with as
many again over cells), drawn from the distribution that is left above the thresholds the span was told when it was
sent. So survivors decline as they would; nothing is read or scored. Cells differ in how uncertain their rows are, so
that what the cells keep and what the whole keeps are not the same. The coordinator's own seconds pass on the virtual
clock, too: threads that wait for it stand idle.

``overhead`` is the CPU time of the coordinator over the length of the pass. It leaves out

- what Dask takes in client and scheduler to submit a task and fetch its result: ``dask_ms_per_task``, measured with
  2,000 empty tasks one by one on a local cluster whose scheduler shares the coordinator's process, and multiplied out
  in ``dask_seconds``;
- receiving and unpacking the candidates (``bytes_up``), and writing them to a journal;
- the features of the candidates, gathered once at the end;
- threads of different pace, and workers that die.
"""

import heapq
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import click
import numpy as np
import numpy.typing as npt
from distributed import Client
from rich.console import Console
from rich.table import Table

from benchmarks import machine, synthetic
from dal.client import local_cluster
from dal.pool import Pool
from dal.scan import cluster, plan
from dal.scan.kernel import HISTOGRAM_BINS, Order, SpanResult, Tally
from dal.scan.merge import Best, Thresholds
from dal.scan.plan import Interval
from dal.scan.run import Run
from dal.selection import Candidates, Capacity, Strategy, row_hash

BATCH = 10_000
"""Its shortlist is 1e5 rows in the default strategy."""
SEED = 0
EMPTY_TASKS = 2_000
PROBE_PACE = 0.1
"""Spans differ in their pace by so much, up or down."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class VirtualPool:
    """The size and shape of a pool, without records."""

    n_rows: int
    n_features: int
    write_rows: int = 32_768
    chunk_rows: int = 32_768
    path: str = "virtual"
    fingerprint: str = "virtual"

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)


class Flight(NamedTuple):
    """A span on a thread; the earliest end comes first."""

    end: float
    seconds: float
    interval: Interval
    thresholds: Thresholds


class VirtualCluster:
    """Stands in for ``dal.scan.cluster``'s own, with threads in virtual time.

    Parameters
    ----------
    workers : int
        Of one thread each.
    rate : float
        Rows per second of a thread.
    order : Order
    """

    def __init__(self, workers: int, rate: float, order: Order) -> None:
        self.rate = rate
        self.source = Source(order)
        self.pending: dict[Interval, Flight] = {}
        self.tasks = 0
        self.now = 0.0
        self.coordinator_seconds = 0.0
        self._free = [0.0] * workers
        self._flights: list[tuple[float, Interval]] = []
        self._left_at = time.thread_time()

    def threads(self) -> int:
        return len(self._free)

    def submit(self, interval: Interval, excluded: Rows, thresholds: Thresholds) -> None:  # noqa: ARG002
        self._enter()
        self.tasks += 1
        seconds = (interval.stop - interval.start) / (self.rate * self._pace(interval))
        end = max(heapq.heappop(self._free), self.now) + seconds
        heapq.heappush(self._free, end)
        heapq.heappush(self._flights, (end, interval))
        self.pending[interval] = Flight(end, seconds, interval, thresholds)
        self._leave()

    def _pace(self, interval: Interval) -> float:
        drawn = int(row_hash(np.array([interval.start]), SEED, 5)[0]) / 2**64
        return 1 + PROBE_PACE * (2 * drawn - 1)

    def ended(self, longest_span: float) -> list[tuple[Interval, SpanResult | BaseException]]:  # noqa: ARG002
        """Wait for a span to end, and give it with all that ended while the coordinator was busy."""
        self._enter()
        self.now = max(self.now, self._flights[0][0])
        outcomes: list[tuple[Interval, SpanResult | BaseException]] = []
        while self._flights and self._flights[0][0] <= self.now:
            flight = self.pending.pop(heapq.heappop(self._flights)[1])
            outcomes.append((flight.interval, self.source.result(flight)))
        self._leave()
        return outcomes

    def _enter(self) -> None:
        spent = time.thread_time() - self._left_at
        self.coordinator_seconds += spent
        self.now += spent

    def _leave(self) -> None:
        self._left_at = time.thread_time()


class Source:
    """Draws what a worker would return of a span."""

    def __init__(self, order: Order) -> None:
        self.order = order
        cells = max(order.capacity.cells, 1)
        # A cell's scores are u ** power for uniform u: from certain cells (10) to uncertain ones (1 / 2).
        self.power = np.geomspace(0.5, 10.0, cells)

    def result(self, flight: Flight) -> SpanResult:
        interval = flight.interval
        rows = interval.stop - interval.start
        best = Best(self.order.capacity, self.order.seed, self.order.round)
        best.add(self._survivors(interval, flight.thresholds))
        return SpanResult(interval, best.result(), self._tally(rows), flight.seconds)

    def _survivors(self, interval: Interval, told: Thresholds) -> Candidates:
        random = np.random.default_rng([SEED, interval.start])
        rows, cells = interval.stop - interval.start, len(self.power)
        floors = np.full(cells, told.overall) if told.cells is None else np.minimum(told.cells, told.overall)
        lowest = np.where(floors > 0, np.maximum(floors, 0) ** (1 / self.power), 0.0)
        # Of the rows, each cell has its share, of which those above its floor survive.
        counts = random.binomial(random.multinomial(rows, np.full(cells, 1 / cells)), 1 - lowest)
        cell = np.repeat(np.arange(cells), counts)
        total = len(cell)
        drawn = lowest[cell] + (1 - lowest[cell]) * random.random(total)
        chosen = interval.start + random.choice(rows, total, replace=False, shuffle=False).astype(np.int64)
        scores = drawn ** self.power[cell]
        nothing = np.empty((total, 0), dtype=np.float32)
        return Candidates(chosen, scores, cell, chosen % len(synthetic.CLASSES), nothing)

    def _tally(self, rows: int) -> Tally:
        histogram = np.full(HISTOGRAM_BINS, rows // HISTOGRAM_BINS)
        return Tally(rows, 0, synthetic.NO_ROWS, histogram, np.empty(0, dtype=np.int64), rows, 0)


# -- measuring --------------------------------------------------------------------------------------------------------


def simulate(pool: VirtualPool, capacity: Capacity, workers: int, rate: float) -> dict[str, object]:
    """Let the real engine carry a pass through, and say what it took."""
    order = Order("margin", capacity, plan.tile_rows(pool.n_features), SEED, 0, None, carry=False)
    state = Run(cast("Pool", pool), None, order, synthetic.NO_ROWS, None, None, None)
    threads = VirtualCluster(workers, rate, order)
    cluster._Engine(state, cast("cluster._Cluster", threads), skip_failed=False).run()
    found = state.result()
    threads._enter()
    return {
        "rows": found.summary.tally.rows,
        "workers": workers,
        "rate": rate,
        "tasks": threads.tasks,
        "candidates": len(found.candidates),
        "overhead": threads.coordinator_seconds / threads.now,
        "coordinator_seconds": threads.coordinator_seconds,
        "pass_seconds": threads.now,
        "ideal_seconds": pool.n_rows / rate / workers,
        "bytes_up": found.summary.bytes_up,
        "peak_mb": machine.peak_bytes() / 2**20,
    }


def capacity_of(n_rows: int) -> Capacity:
    """Say what the default strategy keeps for a batch of 10,000."""
    return Strategy().capacity(BATCH, n_rows)


def dask_ms_per_task(client: Client) -> float:
    """Measure what client and scheduler, both in this process, take for a task that does nothing."""
    client.submit(_nothing, pure=False).result()
    started = time.process_time()
    futures = [client.submit(_nothing, pure=False) for _ in range(EMPTY_TASKS)]
    for future in futures:
        future.result()
    return 1e3 * (time.process_time() - started) / EMPTY_TASKS


def _nothing() -> None:
    pass


def table(results: list[Mapping]) -> Table:
    """Lay results out for reading."""
    drawn = Table(title="the coordinator, simulated")
    headings = ("rows", "workers", "rows/s a thread", "tasks", "pass s", "coordinator s", "overhead", "sent MiB", "MiB")
    for heading in headings:
        drawn.add_column(heading, justify="right")
    for result in results:
        drawn.add_row(
            f"{result['rows']:.0e}",
            str(result["workers"]),
            f"{result['rate']:,.0f}",
            f"{result['tasks']:,}",
            f"{result['pass_seconds']:.1f}",
            f"{result['coordinator_seconds']:.2f}",
            f"{result['overhead']:.1%}",
            f"{result['bytes_up'] / 2**20:,.0f}",
            f"{result['peak_mb']:.0f}",
        )
    return drawn


@click.command("scale")
@click.option("--rows", type=float, default=1e9, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=64, show_default=True, help="Of one thread each.")
@click.option("--rate", type=float, default=1e6, show_default=True, help="Rows per second of a thread.")
@click.option("--dim", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--dask/--no-dask", default=True, show_default=True, help="Measure what Dask takes a task, too.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the result here, too."
)
def command(rows: float, workers: int, rate: float, dim: int, dask: bool, json_path: Path | None) -> None:
    """Coordinator's share of a pass over a pool that is not there, on workers that are not there."""
    pool = VirtualPool(int(rows), dim)
    capacity = capacity_of(pool.n_rows)
    result = {"capacity": capacity._asdict(), "dim": dim, **simulate(pool, capacity, workers, rate)}
    if dask:
        with local_cluster(1) as client:
            result["dask_ms_per_task"] = dask_ms_per_task(client)
        result["dask_seconds"] = result["dask_ms_per_task"] * result["tasks"] / 1e3
    result["machine"] = machine.facts()
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console.print(table([result]))
    if dask:
        console.print(f"Dask: {result['dask_ms_per_task']:.2f} ms a task, {result['dask_seconds']:.1f} s in all")
